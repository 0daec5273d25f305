"""Decoding, strictly: what packing lets into a shard, so that training meets no bad image."""

from __future__ import annotations

import io
import warnings
from contextlib import nullcontext
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import simplejpeg
from PIL import Image, UnidentifiedImageError
from PIL.TiffImagePlugin import TiffImageFile

from pipeline.images import netpbm, png, tiff
from pipeline.images.formats import FORMATS, unsupported
from pipeline.images.jpeg import END_OF_IMAGE, START_OF_IMAGE, Header, read_header
from pipeline.images.metadata import without_metadata

MAX_PIXELS = 1 << 26
"""67 megapixels: beyond any camera's face crop; larger headers are refused before decoding."""

EXIF_ORIENTATION = 0x0112

TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What makes an image of each orientation upright (Exif 2.3, 4.6.4)."""

CODESTREAM, CODESTREAM_END = b"\xff\x4f\xff\x51", b"\xff\xd9"
"""Markers of JPEG 2000, whose compressed data hold no such bytes (ITU-T T.800, annex A). A file
that is cut off behind the marker of a tile, Pillow shows black from there on."""

Pixels = npt.NDArray[np.uint8]


class RejectedError(ValueError):
    """An image that training could not use.

    The message is the kind of fault, then in parentheses what is particular to this image.
    """

    @property
    def kind(self) -> str:
        """The fault without its particulars."""
        return str(self).partition(" (")[0]


class Picture(NamedTuple):
    """A decoded image."""

    pixels: Pixels
    """(H, W, 3) RGB, or (H, W, 1) grey: upright, laid over white where transparent."""
    ordinary: bool
    """Whether the file is a JPEG that DALI, libjpeg and Pillow all decode to these pixels."""


def decode(data: bytes) -> Picture:
    """Decode an image file fully, and refuse what a decoder would only warn of.

    An ordinary file is an 8-bit grey or YCbCr JPEG that needs no rotation.

    Raises:
        RejectedError: not an image, damaged, or beyond `MAX_PIXELS`.
    """
    header = read_header(data)
    if header is None or not is_ordinary(header, data):
        return Picture(_decode_by_pillow(data), ordinary=False)
    require_bounded(header.width, header.height)
    # libjpeg-turbo itself: three times Pillow's speed, and it reports what Pillow passes over
    colours = "GRAY" if header.components == 1 else "RGB"
    try:
        return Picture(simplejpeg.decode_jpeg(data, colours, strict=True), ordinary=True)
    except ValueError:  # which may be of the metadata alone
        return Picture(_decode_strictly(data, colours), ordinary=False)


def _decode_strictly(data: bytes, colours: str) -> Pixels:
    """Decode a JPEG without its metadata, and pass over no fault in what is left.

    As GRAY, libjpeg decodes CMYK and YCCK too, and reads all of the file.
    """
    plain, _ = without_metadata(data)
    try:
        height, width, *_ = simplejpeg.decode_jpeg_header(plain)
        require_bounded(width, height)
        pixels: Pixels = simplejpeg.decode_jpeg(plain, colours, strict=True)
    except RejectedError:
        raise
    except ValueError as error:
        if str(error).startswith("Unsupported"):
            raise RejectedError(f"unsupported pixels ({error})") from None
        if "subsampling" in str(error):
            if read_header(plain) is None:
                error = ValueError("unreadable header")
            elif END_OF_IMAGE not in plain:
                error = ValueError("cut off before its pixels")
            else:
                raise RejectedError("unsupported pixels (a JPEG of rare chroma sampling)") from None
        raise RejectedError(f"damaged JPEG ({error})") from None
    return pixels


def is_ordinary(header: Header, data: bytes) -> bool:
    """Whether a JPEG may go into a shard as it is, provided that it decodes."""
    coloured = header.components == 3 and header.adobe_transform != 0
    return (
        header.precision == 8
        and (coloured or header.components == 1)
        and header.exif_blocks <= 1
        and not (header.exif_blocks and _is_turned(data))
    )


def _is_turned(data: bytes) -> bool:
    """Whether some decoder may rotate a JPEG: it has an orientation, or unreadable metadata."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return _orientation(Image.open(io.BytesIO(data), formats=("JPEG",))) != 1
    except Exception:  # Pillow's parsers raise nearly every type on damaged input
        return True


def _orientation(image: Image.Image) -> int:
    """The orientation in its Exif; 0, which rotates nothing, if that is unreadable."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return int(image.getexif().get(EXIF_ORIENTATION, 1))
    except Exception:  # Pillow's parsers raise nearly every type on damaged input
        return 0


def _decode_by_pillow(data: bytes) -> Pixels:
    try:
        return _read(data)
    except RejectedError:
        raise
    except Exception as error:  # Pillow's decoders raise nearly every type on damaged input
        plain, exif = without_metadata(data)
        if plain != data:
            try:
                return _read(plain, exif)
            except RejectedError:
                raise
            except Exception as again:  # likewise
                raise _rejected(error, data) from again
        raise _rejected(error, data) from error


def _read(data: bytes, exif: bytes = b"") -> Pixels:
    with warnings.catch_warnings():
        # Pillow only warns of damaged tags, which in a TIFF describe the pixels
        warnings.simplefilter("error" if data.startswith(tiff.PREFIXES) else "ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        if data.startswith(tiff.BIG_ENDIAN_BIGTIFF):
            raise RejectedError("unsupported pixels (big-endian BigTIFF)")
        formats: tuple[str, ...] = FORMATS
        if netpbm.is_netpbm(data):
            if found := netpbm.fault(data):
                raise RejectedError(found)
            formats = ("PPM",)
        image = Image.open(io.BytesIO(data), formats=formats)
        require_bounded(image.width, image.height)
        _require_what_pillow_does_not(image, data)
        with tiff.quiet() if isinstance(image, TiffImageFile) else nullcontext():
            image.load()
        if exif:
            image.info["exif"] = exif
        return _upright_and_opaque(image)


def _require_what_pillow_does_not(image: Image.Image, data: bytes) -> None:
    """Refuse an opened image that Pillow would silently show wrongly."""
    if isinstance(image, TiffImageFile):
        if found := tiff.fault(image):
            raise RejectedError(f"unsupported pixels ({found})")
        for strip in tiff.jpegs(image, data):
            _decode_strictly(strip, "GRAY")
    if image.format in ("JPEG", "MPO"):
        _decode_strictly(data, "RGB" if image.mode == "RGB" else "GRAY")
    if image.format == "JPEG2000" and data.find(CODESTREAM_END, data.find(CODESTREAM)) < 0:
        raise RejectedError("damaged image (a JPEG 2000 that is cut off)")
    if image.format == "PNG":
        if not png.are_pixels_whole(data):
            raise RejectedError("damaged image (wrong checksum of pixels)")
        if not png.scale_transparent_grey(image, data):
            raise RejectedError("unsupported pixels (16-bit RGB PNG with a transparent colour)")


def _upright_and_opaque(image: Image.Image) -> Pixels:
    turn = TURNS.get(_orientation(image))
    if image.mode.startswith("I;16"):
        levels = tiff.levels(image) if isinstance(image, TiffImageFile) else np.asarray(image)
        clear = levels == image.info.get("transparency")
        image = Image.fromarray(np.where(clear, 255, levels >> 8).astype(np.uint8))
    if (
        image.format == "PPM" and image.mode == "I"
    ):  # more than 8 bits, which Pillow spreads over 16
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode == "La":
        image = image.convert("LA")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, "white")
        image = Image.alpha_composite(white, rgba)
    image = image.convert("L" if image.mode in ("1", "L") else "RGB")
    pixels = np.asarray(image if turn is None else image.transpose(turn))
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


def _rejected(error: Exception, data: bytes) -> RejectedError:
    if isinstance(error, (Image.DecompressionBombWarning, Image.DecompressionBombError)):
        return RejectedError(f"too large (over {MAX_PIXELS:,} pixels)")  # Pillow's own limit
    if data.startswith(tiff.PREFIXES):
        # a KeyError is a compression that Pillow does not know
        unknown = isinstance(error, (UnidentifiedImageError, KeyError))
        if unknown and (found := tiff.unsupported(data)) is not None:
            return RejectedError(f"unsupported pixels ({found})")
        if unknown:
            return RejectedError("damaged image (a TIFF whose tags are unreadable)")
    elif isinstance(error, UnidentifiedImageError):
        header = read_header(data)
        if header is not None and header.precision != 8:
            return RejectedError(f"unsupported pixels ({header.precision}-bit JPEG)")
        if data.startswith(png.SIGNATURE):
            return RejectedError(f"damaged PNG ({png.fault(data)})")
        if data.startswith(START_OF_IMAGE + b"\xff"):
            return RejectedError("damaged JPEG (unreadable header)")
        return RejectedError(unsupported(data))
    detail = " ".join(f"{type(error).__name__}: {error}".split())
    return RejectedError(f"damaged image ({detail[:200]})")
