"""PBM, PGM and PPM: the headers that Pillow would read byte by byte, however long they are.

netpbm.sourceforge.net/doc/pnm.html: `P` and a digit, then width, height and, except for bitmaps,
the value of white, with white space or comments between them; P1 to P3 are text.
"""

from __future__ import annotations

import re

HEADER_BYTES = 4096

MAX_SLOW_PIXELS = 1 << 20
"""Pillow loops in Python over text and over samples of odd depth, a second for a megapixel."""

_MAGIC = re.compile(rb"P[1-6][\s#]")
_GAP = rb"(?:\s|#[^\r\n]*[\r\n])+"
_NUMBER = _GAP + rb"(\d{1,10})"
_BITMAP = re.compile(rb"P[14]" + _NUMBER + _NUMBER + rb"\s")
_OTHER = re.compile(rb"P[2356]" + _NUMBER + _NUMBER + _NUMBER + rb"\s")


def is_netpbm(data: bytes) -> bool:
    """Whether a file begins as one of these."""
    return _MAGIC.match(data) is not None


def fault(data: bytes) -> str | None:
    """Why a file for which `is_netpbm` holds is not decoded, as a fault and its particulars."""
    head = data[:HEADER_BYTES]
    header = _BITMAP.match(head) or _OTHER.match(head)
    if header is None:
        return "damaged image (a Netpbm header that cannot be read)"
    width, height, *white = map(int, header.groups())
    if width * height == 0:
        return "no pixels"
    as_stored = white in ([], [255]) or (data.startswith(b"P5") and white == [65535])
    if (data[1:2] in b"123" or not as_stored) and width * height > MAX_SLOW_PIXELS:
        return f"unsupported pixels (text or odd depth, over {MAX_SLOW_PIXELS:,} pixels)"
    return None
