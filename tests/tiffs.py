"""TIFFs written by hand, in the layouts that Pillow does not write (TIFF 6.0)."""

import struct
import zlib
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

WIDTH, HEIGHT, ROWS_PER_STRIP = 48, 40, 16

_Y, _X = np.mgrid[0:HEIGHT, 0:WIDTH] / np.array([HEIGHT - 1, WIDTH - 1]).reshape(2, 1, 1)
COLOURS = np.dstack([_X, _Y, (_X + _Y) / 2])
"""(H, W, 3), from 0 to 1."""
ALPHA = np.dstack([1 - _X / 2])


def lzw(data: bytes) -> bytes:
    """Compress nothing: literals of nine bits, and a fresh table before it grows (section 13)."""
    codes = []
    for place in range(0, len(data), 250):
        codes += [256, *data[place : place + 250]]
    bits = "".join(f"{code:09b}" for code in [*codes, 257])
    bits += "0" * (-len(bits) % 8)
    return int(bits, 2).to_bytes(len(bits) // 8, "big")


COMPRESSIONS: dict[int, Callable[[bytes], bytes]] = {1: bytes, 5: lzw, 8: zlib.compress}


class Layout(NamedTuple):
    """How a picture lies in a TIFF."""

    order: str = "II"
    bits: int = 8
    compression: int = 1
    photometric: int = 2
    """0 white is zero, 1 black is zero, 2 RGB."""
    extra: int | None = None
    """A further sample: 0 means nothing, 1 alpha by which the colours are multiplied, 2 alpha."""
    planar: int = 1
    number: int = 1
    """1 unsigned, 2 signed, 3 floating-point."""

    @property
    def endian(self) -> str:
        return "<" if self.order == "II" else ">"


def shown(layout: Layout) -> npt.NDArray[np.float64]:
    """The picture, (H, W, 1 or 3), from 0 to 255, laid over white."""
    colours = COLOURS if layout.photometric == 2 else COLOURS[..., :1]
    return 255 * (colours * ALPHA + 1 - ALPHA if layout.extra in (1, 2) else colours)


def tiff(layout: Layout, tags: dict[int, Any] | None = None) -> bytes:
    """The picture as a file.

    Args:
        layout: of the pixels.
        tags: others, or other values: a number, a tuple of numbers, or bytes.
    """
    colours = COLOURS if layout.photometric == 2 else COLOURS[..., :1]
    if layout.extra == 1:
        colours = colours * ALPHA
    if layout.photometric == 0:
        colours = 1 - colours
    samples = colours if layout.extra is None else np.dstack([colours, ALPHA])
    return tiff_of(_levels(samples, layout), layout, tags)


def _levels(samples: npt.NDArray[np.float64], layout: Layout) -> npt.NDArray[Any]:
    kind = f"{layout.endian}{' uif'[layout.number]}{layout.bits // 8}"
    if layout.number == 3:
        return samples.astype(kind)
    least = 1 << layout.bits - 1 if layout.number == 2 else 0
    return ((samples * ((1 << layout.bits) - 1)).round() - least).astype(kind)


def tiff_of(levels: npt.NDArray[Any], layout: Layout, tags: dict[int, Any] | None = None) -> bytes:
    """(H, W, samples) in the file's own numbers as a file."""
    count = levels.shape[2]
    planes = [levels] if layout.planar == 1 else list(levels.transpose(2, 0, 1))
    compress = COMPRESSIONS[layout.compression]
    strips = [
        compress(plane[row : row + ROWS_PER_STRIP].tobytes())
        for plane in planes
        for row in range(0, HEIGHT, ROWS_PER_STRIP)
    ]
    places = 8 + np.cumsum([0, *map(len, strips)])
    entries = {
        256: WIDTH,
        257: HEIGHT,
        258: (layout.bits,) * count,
        259: layout.compression,
        262: layout.photometric,
        273: tuple(places[:-1].tolist()),
        277: count,
        278: ROWS_PER_STRIP,
        279: tuple(map(len, strips)),
        284: layout.planar,
        **({} if layout.extra is None else {338: layout.extra}),
        339: (layout.number,) * count,
    } | (tags or {})
    start = int(places[-1])
    directory, spilt = b"", b""
    for tag, value in sorted(entries.items()):
        kind, number, body = _packed(value, layout.endian)
        if len(body) > 4:
            place = start + 2 + 12 * len(entries) + 4 + len(spilt)
            spilt, body = spilt + body, struct.pack(f"{layout.endian}I", place)
        directory += struct.pack(f"{layout.endian}HHI", tag, kind, number) + body.ljust(4, b"\0")
    head = layout.order.encode() + struct.pack(f"{layout.endian}HI", 42, start)
    count_of_tags = struct.pack(f"{layout.endian}H", len(entries))
    return head + b"".join(strips) + count_of_tags + directory + bytes(4) + spilt


def _packed(value: Any, endian: str) -> tuple[int, int, bytes]:
    """Type, count and bytes of a tag's value."""
    if isinstance(value, bytes):
        return 7, len(value), value
    values = value if isinstance(value, tuple) else (value,)
    kind, letter = (3, "H") if max(values) < 1 << 16 else (4, "I")
    return kind, len(values), struct.pack(f"{endian}{len(values)}{letter}", *values)
