"""The pages of `dcgan-report`."""
