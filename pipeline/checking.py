"""What may enter a shard: every image is decoded here once, so that training meets no bad one."""

from __future__ import annotations

import io
import warnings
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import simplejpeg
from PIL import Image, ImageOps, UnidentifiedImageError

from pipeline.jpeg import Header, read_header, read_sides

MAX_PIXELS = 1 << 26
"""67 megapixels: beyond any camera's face crop; larger headers are refused before decoding."""

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")
"""Pillow's names. All that it knows would include EPS, for which it runs Ghostscript."""

EXIF_ORIENTATION = 0x0112

Pixels = npt.NDArray[np.uint8]


class RejectedError(ValueError):
    """An image that training could not use.

    The message is the kind of fault, then in parentheses what is particular to this image.
    """

    @property
    def kind(self) -> str:
        """The fault without its particulars, to be counted by."""
        return str(self).partition(" (")[0]


class Picture(NamedTuple):
    """A decoded image."""

    pixels: Pixels
    """(H, W, 3) RGB, or (H, W, 1) grey: upright, laid over white where transparent."""
    ordinary: bool
    """Whether the file is a JPEG that DALI, libjpeg and Pillow all decode to these pixels."""


def decode(data: bytes) -> Picture:
    """Decode an image file fully, and strictly: what a decoder would only warn of is refused.

    Ordinary is an 8-bit grey or YCbCr JPEG that needs no rotation.

    Raises:
        RejectedError: not an image, damaged, or beyond `MAX_PIXELS`.
    """
    header = read_header(data)
    if header is None or not is_ordinary(header, data):
        return Picture(_decode_by_pillow(data), ordinary=False)
    require_bounded(header.width, header.height)
    try:
        # libjpeg-turbo itself: three times Pillow's speed, and it reports what Pillow passes over
        colours = "GRAY" if header.components == 1 else "RGB"
        return Picture(simplejpeg.decode_jpeg(data, colours, strict=True), ordinary=True)
    except ValueError as error:
        raise RejectedError(f"damaged JPEG ({error})") from None


def is_ordinary(header: Header, data: bytes) -> bool:
    """Whether a JPEG may go into a shard as it is, provided that it decodes."""
    coloured = header.components == 3 and header.adobe_transform != 0
    return (
        header.precision == 8
        and read_sides(data) == (header.width, header.height)
        and (coloured or header.components == 1)
        and header.exif_blocks <= 1
        and not (header.exif_blocks and _orientation(data) != 1)
    )


def _orientation(data: bytes) -> int:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            exif = Image.open(io.BytesIO(data), formats=("JPEG",)).getexif()
            return int(exif.get(EXIF_ORIENTATION, 1))
    except Exception as error:  # Pillow's parsers raise nearly every type on damaged input
        raise _rejected(error) from error


def _decode_by_pillow(data: bytes) -> Pixels:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # Pillow only warns of some kinds of damage
            image = Image.open(io.BytesIO(data), formats=FORMATS)
            require_bounded(image.width, image.height)
            image.load()
            return _upright_and_opaque(image)
    except RejectedError:
        raise
    except Exception as error:  # Pillow's decoders raise nearly every type on damaged input
        raise _rejected(error) from error


def _upright_and_opaque(image: Image.Image) -> Pixels:
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16"):
        image = image.point(lambda level: level / 256).convert("L")  # convert() alone would clip
    if image.mode in ("I", "F"):  # whose range no file tells
        raise RejectedError(f"unsupported pixels (32-bit, mode {image.mode})")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, "white")
        image = Image.alpha_composite(white, rgba)
    image = image.convert("L" if image.mode in ("1", "L") else "RGB")
    pixels = np.asarray(image)
    return pixels if pixels.ndim == 3 else pixels[:, :, None]


def require_bounded(width: int, height: int) -> None:
    """Refuse what its header alone rules out.

    Raises:
        RejectedError: no pixels, or more than `MAX_PIXELS`.
    """
    if width * height > MAX_PIXELS:
        raise RejectedError(f"too large ({width}×{height}, over {MAX_PIXELS:,} pixels)")
    if width * height == 0:
        raise RejectedError("no pixels")


def require_stored(data: bytes, largest: tuple[int, int]) -> None:
    """Refuse a sample of a JPEG set by its header, before a decoder sets memory aside for it.

    DALI decodes PNG and other formats too, and as much as their headers claim.

    Args:
        data: the sample's bytes.
        largest: width and height that no image of the set exceeds, in pixels.

    Raises:
        RejectedError: no JPEG as packing stores them, or larger than it may be.
    """
    sides = read_sides(data)
    if sides is None:
        raise RejectedError("not a JPEG with one frame")
    width, height = sides
    require_bounded(width, height)
    if width > largest[0] or height > largest[1]:
        most = f"{largest[0]}×{largest[1]}"
        raise RejectedError(f"too large ({width}×{height}, over the set's largest, {most})")


def _rejected(error: Exception) -> RejectedError:
    if isinstance(error, UnidentifiedImageError):
        return RejectedError("not an image")
    if isinstance(error, (Image.DecompressionBombWarning, Image.DecompressionBombError)):
        return RejectedError(f"too large (over {MAX_PIXELS:,} pixels)")  # Pillow's own limit
    detail = " ".join(f"{type(error).__name__}: {error}".split())
    return RejectedError(f"damaged image ({detail[:200]})")
