"""Which part of an image is seen, in integers: torchvision's Resize and CenterCrop, reproduced.

`graph.py` says the same in DALI's expressions, for images whose size only the graph knows.
"""

from __future__ import annotations

Box = tuple[float, float, float, float]
"""Left, top, right, bottom, in pixels of the image."""


def resized(width: int, height: int, size: int) -> tuple[int, int]:
    """Width and height after Resize(size): the shorter side becomes it, the longer is truncated."""
    shorter = min(width, height)
    return size * width // shorter, size * height // shorter


def centre_box(width: int, height: int, size: int) -> Box:
    """The region that Resize(size) and then CenterCrop(size) keep."""
    new_width, new_height = resized(width, height, size)
    left, right = _span(width, new_width, size)
    top, bottom = _span(height, new_height, size)
    return left, top, right, bottom


def crop_box(width: int, height: int, side: int) -> Box:
    """The square that CenterCrop(side) keeps; the image is at least that large."""
    left, top = round((width - side) / 2), round((height - side) / 2)
    return left, top, left + side, top + side


def _span(length: int, new_length: int, size: int) -> tuple[float, float]:
    offset = round((new_length - size) / 2)  # halves to even, as in torchvision
    scale = length / new_length
    return offset * scale, (offset + size) * scale
