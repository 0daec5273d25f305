"""What `dcgan-profile` measures, how, and beside what."""
