"""From a shard set to batches on a device."""
