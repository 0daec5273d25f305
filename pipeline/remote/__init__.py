"""Shard sets in object stores, and the cache that checks what it fetched."""
