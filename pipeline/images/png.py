"""Faults of a PNG that Pillow passes over or takes wrongly (W3C recommendation, third edition)."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator

from PIL import Image

SIGNATURE = b"\x89PNG\r\n\x1a\n"

BIT_DEPTH = 24
"""The byte of a file that holds it: in the header chunk, which comes first."""


def chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Type, start and end of each chunk that is whole; the last end is where they stop."""
    place = len(SIGNATURE)
    while place + 12 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, place)
        end = place + 12 + length
        if end > len(data):
            return
        yield kind, place, end
        place = end


def bears_on_pixels(kind: bytes) -> bool:
    """Whether a chunk is critical (5.4: its first letter is a capital), or says what is clear."""
    return kind[:1].isupper() or kind == b"tRNS"


def is_whole(data: bytes, start: int, end: int) -> bool:
    """Whether a chunk's checksum is right."""
    checksum = int.from_bytes(data[end - 4 : end], "big")
    return checksum == zlib.crc32(memoryview(data)[start + 4 : end - 4])


def are_pixels_whole(data: bytes) -> bool:
    """Whether the checksums of the pixels are right, which Pillow does not look at."""
    return all(is_whole(data, start, end) for kind, start, end in chunks(data) if kind == b"IDAT")


def fault(data: bytes) -> str:
    """Say why a file that begins as a PNG is not read as one."""
    for kind, start, end in chunks(data):
        if bears_on_pixels(kind) and not is_whole(data, start, end):
            return f"wrong checksum of {kind.decode('latin-1')}"
    return "unreadable header"


def scale_transparent_grey(image: Image.Image, data: bytes) -> bool:
    """Scale the transparent colour to the depth that Pillow has scaled the pixels to.

    Returns:
        Whether that is possible: of 16-bit RGB, Pillow keeps eight bits.
    """
    colour, depth = image.info.get("transparency"), data[BIT_DEPTH]
    if image.mode == "L" and isinstance(colour, int):
        image.info["transparency"] = colour * 255 // (2**depth - 1)
    return not (image.mode == "RGB" and colour is not None and depth == 16)
