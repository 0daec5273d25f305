"""TIFFs that Pillow shows wrongly or cannot read, and what they hold."""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import numpy.typing as npt
from PIL import TiffImagePlugin

from pipeline.images.jpeg import END_OF_IMAGE, START_OF_IMAGE

PREFIXES = tuple(TiffImagePlugin.PREFIXES)
BIG_ENDIAN_BIGTIFF = b"MM\0+"
"""Pillow accepts this one, and reads it as if it were an ordinary TIFF."""

# Pillow's own reader of uncompressed files takes 16-bit planes for 8-bit ones; libtiff does not
TiffImagePlugin.READ_LIBTIFF = True
# 16-bit white-is-zero, which Pillow knows in the other byte order alone
TiffImagePlugin.OPEN_INFO[b"MM", 0, (1,), 1, (16,), ()] = ("I;16B", "I;16B")

COLOURS = {0: "white-is-zero", 1: "grey", 2: "RGB", 3: "palette", 5: "CMYK", 6: "YCbCr", 8: "Lab"}
"""By photometric interpretation."""

JPEG = 7
"""The compression."""

SIGNED, FLOATING = 2, 3
"""Sample formats."""


@contextmanager
def quiet() -> Iterator[None]:
    """Keep libtiff's messages from the terminal: it returns the same errors to Pillow.

    All of stderr is silent meanwhile, for other threads too.
    """
    try:
        kept = os.dup(2)
    except OSError:  # nothing is there to be written to
        yield
        return
    try:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 2)
        os.close(nowhere)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def jpegs(image: TiffImagePlugin.TiffImageFile, data: bytes) -> Iterator[bytes]:
    """The strips or tiles of a file compressed as JPEG, each with its tables before it.

    A file of grey and alpha gives none: libjpeg decodes no JPEG of two components.
    """
    tags = image.tag_v2
    if tags.get(TiffImagePlugin.COMPRESSION) != JPEG or image.mode in ("LA", "La", "PA"):
        return
    places, lengths = (
        np.ravel(tags.get(strips, tags.get(tiles, ()))).tolist()
        for strips, tiles in ((273, 324), (279, 325))
    )
    if sum(lengths) > len(data):
        raise ValueError("strips that overlap")
    tables = bytes(tags.get(TiffImagePlugin.JPEGTABLES, b"")).removesuffix(END_OF_IMAGE)
    for place, length in zip(places, lengths, strict=True):
        strip = data[place : place + length]
        yield tables + strip.removeprefix(START_OF_IMAGE) if tables else strip


def fault(image: TiffImagePlugin.TiffImageFile) -> str | None:
    """Describe the pixels of an opened file, if Pillow would not show them as they are meant."""
    formats = np.ravel(image.tag_v2.get(TiffImagePlugin.SAMPLEFORMAT, 1))
    grey_and_alpha = image.mode in ("LA", "La", "PA")
    planes = image.tag_v2.get(TiffImagePlugin.PLANAR_CONFIGURATION) == 2
    unknown = image.mode in ("I", "F", "LAB") or SIGNED in formats
    return _described(image.tag_v2) if unknown or (grey_and_alpha and planes) else None


def unsupported(data: bytes) -> str | None:
    """Describe the pixels of a file that Pillow does not open; None if its directory is damaged."""
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
