"""What may enter a shard: every image is decoded here once, so that training meets no bad one."""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass

from PIL import Image, ImageOps, UnidentifiedImageError

MAX_PIXELS = 1 << 26
"""67 megapixels: beyond any camera's face crop; larger headers are refused before decoding."""

CONVERTED_QUALITY = 95
"""With 4:4:4 chroma, the JPEG closest to its source that is still of ordinary size."""

EXIF_ORIENTATION = 0x0112

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")
"""Pillow's names. All that it knows would include EPS, for which it runs Ghostscript."""

START_OF_SCAN = 0xDA


class RejectedError(ValueError):
    """An image that training could not decode; the message is the reason."""


@dataclass(frozen=True)
class Admitted:
    """An image as it enters a shard."""

    jpeg: bytes
    width: int
    height: int
    converted: bool
    """Whether the bytes are ours rather than the source's."""


def admit(data: bytes) -> Admitted:
    """Decode an image fully; take an ordinary JPEG as it is and convert whatever else decodes.

    Ordinary is an 8-bit grey or colour JPEG that needs no rotation and that DALI takes too.
    Everything else is turned upright, laid over white where transparent, and encoded once.

    Raises:
        RejectedError: not an image, damaged, or beyond `MAX_PIXELS`.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # Pillow only warns of some kinds of damage
            image = Image.open(io.BytesIO(data), formats=FORMATS)
            if image.width * image.height > MAX_PIXELS:
                raise RejectedError(f"{image.width}×{image.height} pixels, over {MAX_PIXELS:,}")
            image.load()
            upright = image.getexif().get(EXIF_ORIENTATION, 1) == 1
            ordinary = image.format == "JPEG" and image.mode in ("L", "RGB")
            if ordinary and upright and _segments_adjoin(data):
                return Admitted(data, image.width, image.height, converted=False)
            return _convert(image)
    except RejectedError:
        raise
    except UnidentifiedImageError:
        raise RejectedError(f"{len(data):,} bytes that are no image") from None
    except Exception as error:  # Pillow's decoders raise nearly every type on damaged input
        raise RejectedError(f"{type(error).__name__}: {error}"[:200]) from error


def _segments_adjoin(jpeg: bytes) -> bool:
    """Whether a JPEG's header segments follow one another without a gap, up to the first scan.

    libjpeg, and with it Pillow, skips stray bytes between them; DALI's parser fails on them.
    """
    place = 2  # after the start-of-image marker
    while place + 4 <= len(jpeg) and jpeg[place] == 0xFF:
        if jpeg[place + 1] == START_OF_SCAN:
            return True
        place += 2 + int.from_bytes(jpeg[place + 2 : place + 4], "big")
    return False


def _convert(image: Image.Image) -> Admitted:
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16"):
        image = image.point(lambda level: level / 256).convert("L")  # convert() alone would clip
    if image.mode in ("I", "F"):  # whose range no file tells
        raise RejectedError(f"32-bit pixels (mode {image.mode}), not 8- or 16-bit ones")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, "white")
        image = Image.alpha_composite(white, rgba)
    image = image.convert("L" if image.mode in ("1", "L") else "RGB")
    encoded = io.BytesIO()
    image.save(encoded, "JPEG", quality=CONVERTED_QUALITY, subsampling=0)
    return Admitted(encoded.getvalue(), image.width, image.height, converted=True)
