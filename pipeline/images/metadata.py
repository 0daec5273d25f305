"""Image files without their metadata: text, colour profiles, cameras' notes.

Pillow gives up an image for a fault in any of these, though its pixels are whole.
"""

from __future__ import annotations

import re
import struct

from pipeline.images import png
from pipeline.images.jpeg import APP1, APP14, START_OF_IMAGE, START_OF_SCAN

TIFF_SIGNATURES = (b"II*\0", b"MM\0*")

APP0, COMMENT = 0xE0, 0xFE

JFIF = b"\xff\xe0\0\x10JFIF\0\1\1\0\0\1\0\1\0\0"
"""The block that says that colours are YCbCr, at its least: libjpeg warns of later versions."""

TIFF_LAST = 532
"""Tags above it (private ones, Exif, XMP, colour profiles) do not describe the pixels."""

TIFF_WORDS = frozenset((269, 270, 271, 272, 282, 283, 285, 296, 297, 305, 306, 315, 316))
"""Tags below it that do not either: titles, names, dates, resolutions (TIFF 6.0, part 1)."""


def without_metadata(data: bytes) -> tuple[bytes, bytes]:
    """Leave out what does not bear on the pixels; nothing is decoded.

    Returns:
        The file, unchanged if it is no PNG, JPEG or TIFF; and its Exif block, which may ask for a
        rotation, or nothing.
    """
    if data.startswith(png.SIGNATURE):
        return _png(data)
    if data.startswith(START_OF_IMAGE):
        return _jpeg(data)
    if data.startswith(TIFF_SIGNATURES):
        return _tiff(data), b""
    return data, b""


def _png(data: bytes) -> tuple[bytes, bytes]:
    kept, exif, end = bytearray(png.SIGNATURE), b"", len(png.SIGNATURE)
    for kind, start, end in png.chunks(data):
        if png.bears_on_pixels(kind):
            kept += data[start:end]
        elif kind == b"eXIf" and png.is_whole(data, start, end):
            exif = data[start + 8 : end - 4]
    kept += data[end:]
    return bytes(kept), exif


def _jpeg(data: bytes) -> tuple[bytes, bytes]:
    """Keep tables, frames, and the two blocks that tell libjpeg the colours.

    Stray bytes between segments are passed over, as in libjpeg.
    """
    kept, exif, place = bytearray(START_OF_IMAGE), b"", len(START_OF_IMAGE)
    while (found := _MARKER(data, place)) and found[0][1] not in _HEADER_ENDS:
        place, marker = found.start(), found[0][1]
        if marker in _ALONE:
            place += 2
            continue
        length = int.from_bytes(data[place + 2 : place + 4], "big")
        end = place + 2 + length
        if length < 2 or end > len(data):
            break
        jfif = marker == APP0 and length >= 16 and data.startswith(b"JFIF\0", place + 4)
        if marker == APP1 and not exif and data.startswith(b"Exif\0", place + 4):
            exif = data[place + 4 : end]
        elif jfif or marker == APP14 or not (APP0 <= marker <= 0xEF or marker == COMMENT):
            kept += JFIF if jfif else data[place:end]
        place = end
    kept += data[place:]
    return bytes(kept), exif


_MARKER = re.compile(rb"\xff[^\xff\0]").search
_ALONE = frozenset((0x01, *range(0xD0, 0xD8)))
"""Markers without a length (T.81, table B.1)."""
_HEADER_ENDS = frozenset((0xD8, 0xD9, START_OF_SCAN))


def _tiff(data: bytes) -> bytes:
    """Shorten the first directory where it lies, and end the list of directories there."""
    order = "<" if data.startswith(b"II") else ">"
    try:
        (start,) = struct.unpack_from(f"{order}I", data, 4)
        (count,) = struct.unpack_from(f"{order}H", data, start)
    except struct.error:  # the file ends before
        return data
    end = start + 2 + 12 * count + 4
    if end > len(data):
        return data
    entries = [data[place : place + 12] for place in range(start + 2, end - 4, 12)]
    tags = [int.from_bytes(entry[:2], "little" if order == "<" else "big") for entry in entries]
    kept = [
        entry
        for entry, tag in zip(entries, tags, strict=True)
        if tag <= TIFF_LAST and tag not in TIFF_WORDS
    ]
    shorter = struct.pack(f"{order}H", len(kept)) + b"".join(kept)
    return data[:start] + shorter.ljust(end - start, b"\0") + data[end:]
