"""A run's pictures as WebP inside the page, within a budget of bytes."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from dcgan.sampling.pictures import open_picture
from pipeline.errors import UserError

MOST_GRIDS = 40
"""Sample grids of a run that are shown; more would make each too small to see."""

SIDE = 560
"""CSS pixels up to which small pictures are enlarged, all by one whole factor: reals and fakes are
compared."""

QUALITY = 82
"""WebP's: pictures of DCGANs look the same from about 80 on."""

SMALLEST = 16
"""Pixels; below this no picture shrinks further."""


@dataclass(frozen=True)
class Picture:
    """A picture in the page."""

    src: str
    """`data:` URL."""
    width: int
    """CSS pixels, where there is room for them."""
    height: int
    enlarged: bool
    """Each pixel is to stay a square."""


@dataclass(frozen=True)
class Packed:
    """Pictures by path, those that could be read."""

    pictures: dict[Path, Picture]
    notes: list[str]
    """In words: what was unreadable or made smaller."""


def pack_pictures(paths: Iterable[Path], budget: int) -> Packed:
    """Encode PNGs, smaller and smaller until all together have `budget` bytes of base64 text.

    Absent ones are left out in silence.
    """
    notes: list[str] = []
    images: dict[Path, Image.Image] = {}
    for path in paths:
        try:
            if path.exists():
                images[path] = open_picture(path)
        except UserError:
            notes.append(f"{path.name} cannot be read: it is damaged, or no picture.")
    largest, scale = max((max(image.size) for image in images.values()), default=0), 1.0
    while True:
        encoded = {path: _encode(image, scale) for path, image in images.items()}
        total = sum(len(text) for text, _ in encoded.values())
        if total <= budget or scale * largest < SMALLEST:
            break
        # Bytes grow a little slower than the area
        scale *= min(0.9, 0.95 * math.sqrt(budget / total))
    if scale < 1:
        notes.append(f"Pictures are shown at {scale:.0%} of their size, to keep this file small.")
    factor = max(1, SIDE // max((max(size) for _, size in encoded.values()), default=SIDE))
    return Packed({path: _picture(*each, factor) for path, each in encoded.items()}, notes)


def _encode(image: Image.Image, scale: float) -> tuple[str, tuple[int, int]]:
    if scale < 1:
        image = image.copy()
        side = max(SMALLEST // 2, round(max(image.size) * scale))
        image.thumbnail((side, side), Image.Resampling.LANCZOS)
    stream = io.BytesIO()
    image.save(stream, "WEBP", quality=QUALITY, method=4)
    return base64.b64encode(stream.getvalue()).decode(), image.size


def _picture(text: str, size: tuple[int, int], factor: int) -> Picture:
    width, height = (side * factor for side in size)
    return Picture(f"data:image/webp;base64,{text}", width, height, enlarged=factor > 1)
