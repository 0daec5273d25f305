"""Files as one finds them: of every format, turned, transparent, cut, damaged, or no images.

`ODD` says of each what packing makes of it.
"""

import struct
import zlib
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from tests.pictures import Pixels, decode, encode, smooth

PICTURE = smooth(48, 40)
JPEG = encode(PICTURE)
SHOWN = decode(JPEG)
RAMP = np.tile(np.linspace(0, 255, 48).astype(np.uint8), (40, 1))
"""Grey, black on the left to white on the right."""
DEEP = np.tile(np.linspace(0, 65535, 48).astype(np.uint16), (40, 1))
"""The same in 16 bits."""
BLOCKS = np.kron(PICTURE[::8, ::8], np.ones((8, 8, 1), np.uint8))
"""Plain squares: a palette and JPEG keep them exactly."""
PALETTE = Image.fromarray(BLOCKS).quantize(64, dither=Image.Dither.NONE)
RIGHT_HALF = np.indices((40, 48))[1] >= 24
ORIENTATION = 0x0112
"""Exif's tag."""


class Untouched(NamedTuple):
    """Goes into an `original` store byte by byte."""


class Converted(NamedTuple):
    """Is encoded anew."""

    pixels: Pixels
    """As they should come out, (H, W, 3) or (H, W)."""


class Rejected(NamedTuple):
    """Does not go in."""

    kind: str
    detail: str = ""
    """Words of the particulars."""


Fate = Untouched | Converted | Rejected


def turned(orientation: int) -> bytes:
    """A JPEG that shows `SHOWN`, turned as Exif says."""
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    return encode(PICTURE, exif=exif)


def exif_block(orientation: int) -> bytes:
    """A header segment that asks for a rotation."""
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    body = exif.tobytes()
    return b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body


def half_transparent() -> Image.Image:
    """Its left half can be seen; its right half is black and wholly transparent."""
    black = np.where(RIGHT_HALF[..., None], 0, PICTURE)
    alpha = np.where(RIGHT_HALF, 0, 255)
    return Image.fromarray(np.dstack([black, alpha]).astype(np.uint8))


ON_WHITE = np.where(RIGHT_HALF[..., None], 255, PICTURE).astype(np.uint8)
VEILED = Image.fromarray(np.dstack([PICTURE, np.full((40, 48), 51, np.uint8)]))
"""A fifth opaque: four fifths of white shine through."""


def in_header(data: bytes) -> bytes:
    """The JPEG with these bytes between its first and its second header segment."""
    cut = 4 + int.from_bytes(JPEG[4:6], "big")
    return JPEG[:cut] + data + JPEG[cut:]


def frame(width: int, height: int, *, marker: int = 0xC0, precision: int = 8) -> bytes:
    """The JPEG whose frame header says something else."""
    place = JPEG.index(b"\xff\xc0")
    head = struct.pack(">BBHBHH", 0xFF, marker, 17, precision, height, width)
    return JPEG[:place] + head + JPEG[place + len(head) :]


def png(levels: Pixels | Any, *, interlaced: bool = False, size: Any = None) -> bytes:
    """A PNG as Pillow does not write them: 16-bit colour, interlaced, of a false size."""
    height, width, channels = levels.shape
    big_endian = levels.astype(">u2" if levels.itemsize == 2 else "u1")
    adam7 = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2)]
    passes = [*adam7, (0, 1, 1, 2)] if interlaced else [(0, 0, 1, 1)]
    rows = b"".join(
        b"\0" + row.tobytes() for x, y, dx, dy in passes for row in big_endian[y::dy, x::dx]
    )
    colours = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    sides = size or (width, height)
    head = struct.pack(">IIBBBBB", *sides, 8 * levels.itemsize, colours, 0, 0, interlaced)
    chunks = {b"IHDR": head, b"IDAT": zlib.compress(rows), b"IEND": b""}
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        for name, body in chunks.items()
    )


def animated(kind: str, **options: Any) -> bytes:
    """`BLOCKS`, then black."""
    frames = [Image.fromarray(BLOCKS), Image.new("RGB", (48, 40))]
    return encode(frames[0], kind, save_all=True, append_images=frames[1:], **options)


def transparent_gif() -> bytes:
    """A palette picture in which the colour of the top left corner stands for nothing."""
    return encode(PALETTE, "GIF", transparency=PALETTE.getpixel((0, 0)))


def without_corner_colour() -> Pixels:
    corner = (BLOCKS[0, 0] == BLOCKS).all(axis=-1, keepdims=True)
    return np.where(corner, 255, BLOCKS).astype(np.uint8)


def flipped(data: bytes, place: int, mask: int = 0x10) -> bytes:
    damaged = bytearray(data)
    damaged[place] ^= mask
    return bytes(damaged)


def with_tags(data: bytes, values: dict[int, int]) -> bytes:
    """A little-endian TIFF with other values of some tags."""
    changed = bytearray(data)
    (directory,) = struct.unpack_from("<I", data, 4)
    (count,) = struct.unpack_from("<H", data, directory)
    for place in range(directory + 2, directory + 2 + 12 * count, 12):
        tag, kind = struct.unpack_from("<HH", data, place)
        if tag in values:
            struct.pack_into({3: "<H", 4: "<I"}[kind], changed, place + 8, values[tag])
    return bytes(changed)


CUT_TURN = b"\xff\xe1\x00\x1eExif\0\0II*\0" + struct.pack("<IHHHII", 8, 5, ORIENTATION, 3, 1, 6)
"""An Exif block that promises five entries, and has one: a rotation."""
DEEP_RGB = np.dstack([DEEP, DEEP[:, ::-1], DEEP // 2])
WIDE, TALL = smooth(4000, 3), smooth(3, 4000)
GIF = encode(PALETTE, "GIF")
PNG = encode(PICTURE, "PNG")
CLEAR_PNG = encode(PICTURE, "PNG", transparency=(1, 2, 3))
WEBP = encode(PICTURE, "WEBP", lossless=True)
TIFF = encode(PICTURE, "TIFF")
BMP = encode(PICTURE, "BMP")
CMYK = Image.fromarray(PICTURE).convert("CMYK")
PROGRESSIVE = encode(PICTURE, progressive=True)
SCAN = JPEG.index(b"\xff\xda") + 14
"""Where the header ends and the pixels' bits begin."""
NO_IMAGE, DAMAGED_JPEG, DAMAGED = "not an image", "damaged JPEG", "damaged image"

ODD: dict[str, tuple[bytes, Fate]] = {
    # JPEGs that every decoder takes
    "baseline.jpg": (JPEG, Untouched()),
    "progressive.jpg": (PROGRESSIVE, Untouched()),
    "restarts.jpg": (encode(PICTURE, restart_marker_blocks=2), Untouched()),
    "422.jpg": (encode(PICTURE, subsampling=1), Untouched()),
    "grey.jpg": (encode(RAMP), Untouched()),
    "upright.jpg": (turned(1), Untouched()),
    "colour-profile.jpg": (encode(PICTURE, icc_profile=bytes(3000)), Untouched()),
    "comment.jpg": (in_header(b"\xff\xfe\x00\x06text"), Untouched()),
    "trailing-bytes.jpg": (JPEG + b"written by a camera", Untouched()),
    "trailing-jpeg.jpg": (JPEG + JPEG, Untouched()),
    "cut-exif.jpg": (
        encode(PICTURE, exif=b"Exif\0\0II*\0\x08\0\0\0\x05\0cut"),
        Untouched(),  # the pixels are whole
    ),
    "one-pixel.jpg": (encode(PICTURE[:1, :1]), Untouched()),
    "wide.jpg": (encode(WIDE), Untouched()),
    "tall.jpg": (encode(TALL), Untouched()),
    # JPEGs that some decoder shows otherwise, or refuses
    "mirrored.jpg": (turned(2), Converted(SHOWN[:, ::-1])),
    "upside-down.jpg": (turned(3), Converted(SHOWN[::-1, ::-1])),
    "flipped.jpg": (turned(4), Converted(SHOWN[::-1])),
    "transposed.jpg": (turned(5), Converted(SHOWN.transpose(1, 0, 2))),
    "lying-right.jpg": (turned(6), Converted(np.rot90(SHOWN, -1))),
    "transverse.jpg": (turned(7), Converted(np.rot90(SHOWN, 2).transpose(1, 0, 2))),
    "lying-left.jpg": (turned(8), Converted(np.rot90(SHOWN))),
    "turned-twice.jpg": (  # Pillow heeds the first block, DALI the last
        in_header(exif_block(1) + exif_block(6)),
        Converted(SHOWN),
    ),
    "cut-turn.jpg": (in_header(CUT_TURN), Converted(np.rot90(SHOWN, -1))),
    "unknown-turn.jpg": (turned(9), Converted(SHOWN)),
    "rgb-inside.jpg": (encode(PICTURE, keep_rgb=True, quality=98), Converted(PICTURE)),
    "cmyk.jpg": (encode(CMYK, quality=95), Converted(PICTURE)),
    "stray-zeros.jpg": (in_header(b"\0\0"), Converted(SHOWN)),
    "stray-marker.jpg": (in_header(b"\xff\xd0"), Converted(SHOWN)),
    # Other formats
    "rgb.png": (PNG, Converted(PICTURE)),
    "grey.png": (encode(RAMP, "PNG"), Converted(RAMP)),
    "two-levels.png": (
        encode(Image.fromarray(RAMP > 99), "PNG"),
        Converted(np.where(RAMP > 99, np.uint8(255), np.uint8(0))),
    ),
    "16-bit-grey.png": (encode(Image.fromarray(DEEP), "PNG"), Converted(RAMP)),
    "16-bit-colour.png": (png(DEEP_RGB), Converted((DEEP_RGB // 256).astype(np.uint8))),
    "interlaced.png": (png(PICTURE, interlaced=True), Converted(PICTURE)),
    "rgba.png": (encode(half_transparent(), "PNG"), Converted(ON_WHITE)),
    "veiled.png": (encode(VEILED, "PNG"), Converted((PICTURE // 5 + 204).astype(np.uint8))),
    "grey-alpha.png": (
        encode(half_transparent().convert("LA"), "PNG"),
        Converted(np.asarray(Image.fromarray(ON_WHITE).convert("L"))),
    ),
    "palette.png": (encode(PALETTE, "PNG"), Converted(BLOCKS)),
    "clear-palette.png": (
        encode(PALETTE, "PNG", transparency=bytes(64)),
        Converted(np.full((40, 48), 255, np.uint8)),
    ),
    "wide.png": (encode(WIDE, "PNG"), Converted(WIDE)),
    "lossless.webp": (WEBP, Converted(PICTURE)),
    "lossy.webp": (encode(PICTURE, "WEBP", quality=95), Converted(PICTURE)),
    "alpha.webp": (
        encode(half_transparent(), "WEBP", lossless=True, exact=True),
        Converted(ON_WHITE),
    ),
    "animated.webp": (animated("WEBP", lossless=True), Converted(BLOCKS)),
    "still.gif": (GIF, Converted(BLOCKS)),
    "animated.gif": (animated("GIF"), Converted(BLOCKS)),
    "transparent.gif": (transparent_gif(), Converted(without_corner_colour())),
    "gif-named.jpg": (GIF, Converted(BLOCKS)),
    "rgb.bmp": (BMP, Converted(PICTURE)),
    "rgb.tiff": (TIFF, Converted(PICTURE)),
    "pages.tiff": (animated("TIFF"), Converted(BLOCKS)),
    "lossless.jp2": (encode(PICTURE, "JPEG2000"), Converted(PICTURE)),
    "alpha.jp2": (encode(half_transparent(), "JPEG2000"), Converted(ON_WHITE)),
    "lossy.avif": (encode(PICTURE, "AVIF", quality=90), Converted(PICTURE)),
    # No images
    "html.jpg": (b"<!doctype html><title>Quota", Rejected(NO_IMAGE, "a web page")),
    # Ghostscript is not run
    "postscript.jpg": (encode(PICTURE, "EPS"), Rejected("unsupported PostScript")),
    # Of pixels that no file tells the range of, or that libjpeg does not decode
    "12-bit.jpg": (
        frame(48, 40, marker=0xC1, precision=12),
        Rejected("unsupported pixels", "12-bit JPEG"),
    ),
    "lossless.jpg": (frame(48, 40, marker=0xC3), Rejected("unsupported pixels")),
    # Cut
    "start-marker.jpg": (JPEG[:2], Rejected(NO_IMAGE)),
    "cut-in-header.jpg": (JPEG[:100], Rejected(DAMAGED)),
    "cut-in-scan.jpg": (
        JPEG[: SCAN + len(JPEG[SCAN:]) // 2],
        Rejected(DAMAGED_JPEG, "remature end"),
    ),
    "cut-in-a-scan.jpg": (PROGRESSIVE[:-200], Rejected(DAMAGED_JPEG, "remature end")),
    "cut-by-ten.jpg": (JPEG[:-10], Rejected(DAMAGED_JPEG, "remature end")),
    "cut.png": (PNG[:-30], Rejected(DAMAGED)),
    # Damaged so that decoders go on with a warning, or with a wrong picture and none
    "padded-scan.jpg": (JPEG[:-2] + bytes(20) + JPEG[-2:], Rejected(DAMAGED_JPEG, "extraneous")),
    "lost-bytes.jpg": (JPEG[:-60] + JPEG[-40:], Rejected(DAMAGED_JPEG)),
    "wrong-checksum.png": (flipped(PNG, PNG.index(b"IHDR") + 18), Rejected("damaged PNG", "IHDR")),
    "cut-in-signature.png": (PNG[:8], Rejected("damaged PNG", "header")),
    "cut-in-first-segment.jpg": (JPEG[:3], Rejected(DAMAGED_JPEG, "header")),
    "wrong-clear-colour.png": (
        flipped(CLEAR_PNG, CLEAR_PNG.index(b"tRNS") + 5),
        Rejected("damaged PNG", "tRNS"),
    ),
    "wrong-pixels.png": (flipped(PNG, len(PNG) // 2), Rejected(DAMAGED)),
    # Decompression bombs
    "huge.jpg": (frame(65500, 65500), Rejected("too large", "65500×65500")),
    "huge.png": (png(PICTURE, size=(60000, 60000)), Rejected("too large")),
    "larger-than-allowed.png": (png(PICTURE, size=(8192, 8193)), Rejected("too large")),
    "huge.gif": (GIF[:6] + b"\xff" * 4 + GIF[10:], Rejected("too large")),
    "huge.bmp": (
        BMP[:18] + struct.pack("<ii", 60000, 60000) + BMP[26:],
        Rejected("too large"),
    ),
    "huge.tiff": (with_tags(TIFF, {256: 60000, 257: 60000}), Rejected("too large")),
    "huge.webp": (WEBP[:21] + b"\xff\xff\xff\x0f" + WEBP[25:], Rejected("too large")),
    "no-pixels.jpg": (frame(0, 40), Rejected("no pixels")),
}
