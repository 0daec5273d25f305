"""What a JPEG's header says, read without decoding it.

ITU-T T.81 (JPEG), annex B: a file is a sequence of marker segments up to the first scan.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

START_OF_IMAGE, END_OF_IMAGE, START_OF_SCAN = b"\xff\xd8", b"\xff\xd9", 0xDA

APP1, APP14 = 0xE1, 0xEE

_FRAMES = frozenset((0xFFC0, 0xFFC1, 0xFFC2))
"""Baseline, extended and progressive Huffman-coded frames: what libjpeg and DALI both decode."""

_SEGMENTS = frozenset(
    0xFF00 | marker for marker in (0xC4, 0xCC, 0xDB, 0xDC, 0xDD, 0xFE, *range(0xE0, 0xF0))
)
"""Tables, comments and applications' data, which every parser passes over by their length (T.81,
table B.1). Markers without a length and fill bytes are not among them: parsers differ on what
follows those."""

MAX_SEGMENTS = 1000
"""Before the first scan. A colour profile takes 255 at most; a hostile file could have millions of
the shortest ones."""

_MARKER_AND_LENGTH = struct.Struct(">HH").unpack_from
_FRAME = struct.Struct(">BHHB").unpack_from


class Header(NamedTuple):
    """What decides whether a JPEG goes into a shard untouched."""

    width: int
    height: int
    components: int
    precision: int
    """Bits a sample."""
    exif_blocks: int
    """Each may ask for a rotation. Of several, Pillow heeds the first, DALI the last."""
    adobe_transform: int | None
    """Adobe's colour flag: 0 says that three components are RGB, not YCbCr."""


def read_header(data: bytes | memoryview) -> Header | None:
    """Walk the segments up to the first scan, so strictly that no decoder can find another frame.

    Returns:
        None where the bytes are no JPEG with exactly one Huffman-coded frame before its first scan,
        among segments that adjoin. libjpeg skips stray bytes between segments; DALI fails on them.
    """
    if data[:2] != START_OF_IMAGE:
        return None
    place, frame, exif_blocks, transform = 2, None, 0, None
    try:
        for _ in range(MAX_SEGMENTS):
            marker, length = _MARKER_AND_LENGTH(data, place)
            if marker in _SEGMENTS:
                if marker == 0xFF00 | APP1:
                    exif_blocks += data[place + 4 : place + 9] == b"Exif\0"
                elif marker == 0xFF00 | APP14 and data[place + 4 : place + 9] == b"Adobe":
                    transform = data[place + 15] if length >= 14 else transform
            elif marker in _FRAMES:
                if frame is not None or length < 8:
                    return None
                frame = _FRAME(data, place + 4)
            elif marker == 0xFF00 | START_OF_SCAN and frame is not None:
                precision, height, width, components = frame
                return Header(width, height, components, precision, exif_blocks, transform)
            else:
                return None
            place += 2 + length
    except (struct.error, IndexError):  # the bytes end here
        pass
    return None
