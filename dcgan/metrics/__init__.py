"""Metrics: how good a generator's images are."""
