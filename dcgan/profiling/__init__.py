"""`dcgan-profile`: a module for each command, and what they share."""
