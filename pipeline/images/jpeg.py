"""What a JPEG's header says, read without decoding it.

ITU-T T.81 (JPEG), annex B: a file is a sequence of marker segments up to the first scan.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

START_OF_IMAGE, END_OF_IMAGE, START_OF_SCAN = b"\xff\xd8", b"\xff\xd9", 0xDA
FRAMES = frozenset((0xC0, 0xC1, 0xC2))
"""Baseline, extended and progressive Huffman-coded frames: what libjpeg and DALI both decode."""

APP1, APP14 = 0xE1, 0xEE

_SEGMENTS = frozenset(
    0xFF00 | marker for marker in (0xC4, 0xCC, 0xDB, 0xDC, 0xDD, 0xFE, *range(0xE0, 0xF0))
)
"""Tables, comments and applications' data: what every parser passes over by its length (T.81, table
B.1). Markers without one, and fill bytes, are not among them: parsers differ on what follows."""

_FRAMES = frozenset(0xFF00 | marker for marker in FRAMES)
_START_OF_SCAN = 0xFF00 | START_OF_SCAN

MAX_SEGMENTS = 1000
"""Before the first scan. A colour profile takes 255 at most; of the shortest segments, a hostile
file could have millions."""


class Header(NamedTuple):
    """The properties on which it depends whether a JPEG goes into a shard untouched."""

    width: int
    height: int
    components: int
    precision: int
    """Bits a sample."""
    exif_blocks: int
    """How many: each may ask for a rotation. Of several, Pillow heeds the first, DALI the last."""
    adobe_transform: int | None
    """Adobe's colour flag: 0 says that three components are RGB, not YCbCr."""


def read_header(data: bytes) -> Header | None:
    """Walk the segments up to the first scan.

    Returns:
        None where the bytes are no JPEG with one Huffman-coded frame whose segments adjoin. libjpeg
        skips stray bytes between segments; DALI's parser fails on them.
    """
    if data[:2] != START_OF_IMAGE:
        return None
    place, exif_blocks, transform, frame = 2, 0, None, None
    while place + 4 <= len(data) and data[place] == 0xFF:
        marker = data[place + 1]
        length = int.from_bytes(data[place + 2 : place + 4], "big")
        body = place + 4
        if marker == START_OF_SCAN:
            return Header(*frame, exif_blocks, transform) if frame else None
        if marker in FRAMES and length >= 8 and body + 6 <= len(data):
            height = int.from_bytes(data[body + 1 : body + 3], "big")
            width = int.from_bytes(data[body + 3 : body + 5], "big")
            frame = width, height, data[body + 5], data[body]
        elif marker == APP1 and data.startswith(b"Exif\0", body):
            exif_blocks += 1
        elif marker == APP14 and data.startswith(b"Adobe", body) and length >= 14:
            transform = data[body + 11] if body + 11 < len(data) else None
        place += 2 + length
    return None


def read_sides(data: bytes | memoryview) -> tuple[int, int] | None:
    """Read what a decoder will set memory aside for: three times as fast as `read_header`.

    Stricter, too, so that no decoder can find another frame than this one.

    Returns:
        Width and height in pixels; None where the bytes are no JPEG with exactly one Huffman-coded
        frame before its first scan, among segments that adjoin.
    """
    if data[:2] != START_OF_IMAGE:
        return None
    place, sides = 2, None
    try:
        for _ in range(MAX_SEGMENTS):
            marker, length = _MARKER_AND_LENGTH(data, place)
            if marker in _FRAMES:
                if sides is not None or length < 8:
                    return None
                height, width = _SIDES(data, place + 5)
                sides = width, height
            elif marker == _START_OF_SCAN:
                return sides
            elif marker not in _SEGMENTS:
                return None
            place += 2 + length
    except struct.error:  # the bytes end here
        pass
    return None


_MARKER_AND_LENGTH = struct.Struct(">HH").unpack_from
_SIDES = struct.Struct(">HH").unpack_from
