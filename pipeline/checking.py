"""What may enter a shard: every image is decoded here once, so that training meets no bad one."""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass

from PIL import Image, ImageOps

MAX_PIXELS = 1 << 26
"""67 megapixels: beyond any camera's face crop; larger headers are refused before decoding."""

CONVERTED_QUALITY = 95
"""With 4:4:4 chroma, the JPEG closest to its source that is still of ordinary size."""

EXIF_ORIENTATION = 0x0112


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

    Ordinary is an 8-bit grey or colour JPEG that needs no rotation. Everything else is turned
    upright, laid over white where transparent, and encoded once.

    Raises:
        RejectedError: not an image, damaged, or beyond `MAX_PIXELS`.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # Pillow only warns of some kinds of damage
            image = Image.open(io.BytesIO(data))
            if image.width * image.height > MAX_PIXELS:
                raise RejectedError(f"{image.width}×{image.height} pixels, over {MAX_PIXELS:,}")
            image.load()
            upright = image.getexif().get(EXIF_ORIENTATION, 1) == 1
            if image.format == "JPEG" and image.mode in ("L", "RGB") and upright:
                return Admitted(data, image.width, image.height, converted=False)
            return _convert(image)
    except RejectedError:
        raise
    except Exception as error:  # Pillow's decoders raise nearly every type on damaged input
        raise RejectedError(f"{type(error).__name__}: {error}"[:200]) from error


def _convert(image: Image.Image) -> Admitted:
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16"):
        image = image.point(lambda level: level / 256).convert("L")  # convert() alone would clip
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, "white")
        image = Image.alpha_composite(white, rgba)
    image = image.convert("L" if image.mode in ("1", "L") else "RGB")
    encoded = io.BytesIO()
    image.save(encoded, "JPEG", quality=CONVERTED_QUALITY, subsampling=0)
    return Admitted(encoded.getvalue(), image.width, image.height, converted=True)
