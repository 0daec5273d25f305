"""Which part of an image is seen, in integers: torchvision's Resize and CenterCrop, reproduced.

`graph.py` says the same in DALI's expressions, for images whose size only the graph knows.
"""

from __future__ import annotations


def resized(width: int, height: int, size: int) -> tuple[int, int]:
    """Width and height after Resize(size): the shorter side becomes it, the longer is truncated."""
    shorter = min(width, height)
    return size * width // shorter, size * height // shorter


def centred(length: int, kept: int) -> int:
    """Where CenterCrop begins to keep `kept` pixels of `length`, which has at least as many."""
    return round((length - kept) / 2)  # halves to even, as torchvision rounds
