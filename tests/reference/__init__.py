"""Slow, literal texts that fast ones are held against."""
