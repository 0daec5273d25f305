"""From a source of images to a shard set."""
