"""Shard sets in object stores: their addresses, and the stores themselves."""
