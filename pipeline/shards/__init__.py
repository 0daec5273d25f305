"""The format of a shard set, and the seeded orders of its samples."""
