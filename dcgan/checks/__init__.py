"""What `dcgan-doctor` looks at."""
