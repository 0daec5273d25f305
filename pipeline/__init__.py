"""From image files to batches on the device. Knows nothing of GANs: imports nothing of `dcgan`."""
