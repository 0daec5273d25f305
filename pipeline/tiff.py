"""TIFFs whose pixels Pillow shows wrongly, or does not name."""

from __future__ import annotations

import io
import warnings

import numpy as np
import numpy.typing as npt
from PIL import TiffImagePlugin

PREFIXES = tuple(TiffImagePlugin.PREFIXES)
BIG_ENDIAN_BIGTIFF = b"MM\0+"
"""Which Pillow announces, and reads as if it were an ordinary TIFF."""

# Pillow's own reader of uncompressed files takes 16-bit planes for 8-bit ones; libtiff does not
TiffImagePlugin.READ_LIBTIFF = True
# 16-bit white-is-zero, which Pillow knows in the other byte order alone
TiffImagePlugin.OPEN_INFO[b"MM", 0, (1,), 1, (16,), ()] = ("I;16B", "I;16B")

COLOURS = {0: "white-is-zero", 1: "grey", 2: "RGB", 3: "palette", 5: "CMYK", 6: "YCbCr", 8: "Lab"}
"""By photometric interpretation."""

SIGNED, FLOATING = 2, 3
"""Sample formats."""


def fault(image: TiffImagePlugin.TiffImageFile) -> str | None:
    """Say what pixels an opened file has, if they are none that Pillow shows as they are meant."""
    formats = np.ravel(image.tag_v2.get(TiffImagePlugin.SAMPLEFORMAT, 1))
    grey_and_alpha = image.mode in ("LA", "La", "PA")
    planes = image.tag_v2.get(TiffImagePlugin.PLANAR_CONFIGURATION) == 2
    unknown = image.mode in ("I", "F", "LAB") or SIGNED in formats
    return _described(image.tag_v2) if unknown or (grey_and_alpha and planes) else None


def unsupported(data: bytes) -> str | None:
    """Say what pixels a file has that Pillow does not open; None if its directory is damaged."""
    try:
        tags = TiffImagePlugin.ImageFileDirectory_v2(data[: 16 if data[2] == 43 else 8])
        file = io.BytesIO(data)
        file.seek(tags.next)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            tags.load(file)
        return _described(tags) if TiffImagePlugin.IMAGEWIDTH in tags else None
    except Exception:  # Pillow's parsers raise nearly every type on damaged input
        return None


def _described(tags: TiffImagePlugin.ImageFileDirectory_v2) -> str:
    bits = max(np.ravel(tags.get(TiffImagePlugin.BITSPERSAMPLE, 1)))
    formats = np.ravel(tags.get(TiffImagePlugin.SAMPLEFORMAT, 1))
    number = "signed " if SIGNED in formats else "floating-point " if FLOATING in formats else ""
    colour = COLOURS.get(tags.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION, 0), "unknown")
    samples = tags.get(TiffImagePlugin.SAMPLESPERPIXEL, 1)
    compression = tags.get(TiffImagePlugin.COMPRESSION, 1)
    planes = tags.get(TiffImagePlugin.PLANAR_CONFIGURATION) == 2
    return (
        f"{number}{bits}-bit {colour} TIFF"
        + (f", {samples} samples a pixel" if samples > 1 else "")
        + (" in separate planes" if planes else "")
        + (
            f", compression {compression}"
            if compression not in TiffImagePlugin.COMPRESSION_INFO
            else ""
        )
    )


def levels(image: TiffImagePlugin.TiffImageFile) -> npt.NDArray[np.uint16]:
    """The pixels of an image in 16-bit mode, (H, W): from 0, black, to 65,535, white."""
    found = np.asarray(image)
    if image.tag_v2.get(TiffImagePlugin.BITSPERSAMPLE) in (12, (12,)):
        found = found << 4
    white_is_zero = image.tag_v2.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION, 0) == 0
    return 65535 - found if white_is_zero else found
