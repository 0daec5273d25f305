"""An image whose pixels decode is an image, whatever else its file holds."""

import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from pipeline.images.decode import RejectedError, decode
from pipeline.packing.store import store
from pipeline.shards.manifest import Recipe
from tests.odd_files import (
    CMYK,
    CUT_TURN,
    DEEP,
    JPEG,
    PALETTE,
    PICTURE,
    PNG,
    SHOWN,
    exif_block,
    flipped,
)
from tests.odd_files import png as odd_png
from tests.pictures import Pixels, encode, noisy

EXIF = exif_block(6)[4:]
"""Asks for a rotation."""
LYING = np.rot90(PICTURE, -1)
CUT_EXIF = b"Exif\0\0II*\0\x08\0\0\0\x05\0cut"
NO_EXIF = b"Exif\0\0no header"
MEGABYTES = bytes(3 << 20)


def chunk(kind: bytes, body: bytes, *, damaged: bool = False) -> bytes:
    checksum = zlib.crc32(kind + body) ^ damaged
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", checksum)


def in_png(*chunks: bytes, before: bytes = b"IDAT") -> bytes:
    place = PNG.index(before) - 4
    return PNG[:place] + b"".join(chunks) + PNG[place:]


def in_jpeg(whole: bytes, marker: int, body: bytes) -> bytes:
    """A JPEG with one more segment, before all others."""
    return whole[:2] + struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body + whole[2:]


def in_webp(exif: bytes) -> bytes:
    return encode(PICTURE, "WEBP", lossless=True, exif=exif)


def assert_shows(data: bytes, expected: Pixels, most: int = 2) -> None:
    picture = decode(data)
    assert picture.pixels.shape == expected.shape
    assert np.abs(picture.pixels.astype(int) - expected).max() <= most


XMP = b"XML:com.adobe.xmp\0\0\0\0\0"
PACKED = zlib.compress(MEGABYTES)
PNGS = {
    "text": in_png(chunk(b"tEXt", b"a\0" + bytes(2 << 20))),
    "much text": in_png(*[chunk(b"tEXt", b"%d\0" % n + bytes(1 << 20)) for n in range(70)]),
    "packed text": in_png(chunk(b"zTXt", b"a\0\0" + PACKED)),
    "text that cannot be unpacked": in_png(chunk(b"zTXt", b"a\0\7" + PACKED)),
    "xmp": in_png(chunk(b"iTXt", XMP.replace(b"\0\0\0", b"\0\1\0", 1) + PACKED)),
    "text behind the pixels": in_png(chunk(b"zTXt", b"a\0\0" + PACKED), before=b"IEND"),
    "colour profile": in_png(chunk(b"iCCP", b"a\0\0" + PACKED)),
    "no colour profile": in_png(chunk(b"iCCP", b"a")),
    "short gamma": in_png(chunk(b"gAMA", b"\0")),
    "wrong checksum of text": in_png(chunk(b"tEXt", b"a\0b", damaged=True)),
    "wrong checksum of a profile": in_png(chunk(b"iCCP", b"a\0\0" + PACKED[:99], damaged=True)),
    "wrong checksum of what nobody knows": in_png(chunk(b"prIv", b"a", damaged=True)),
    "wrong checksum of a rotation": in_png(chunk(b"eXIf", EXIF[6:], damaged=True)),
    "cut exif": in_png(chunk(b"eXIf", CUT_EXIF[6:])),
    "no exif": in_png(chunk(b"eXIf", NO_EXIF)),
    "no animation": in_png(chunk(b"acTL", bytes(8))),
    "half an animation": in_png(chunk(b"acTL", bytes(8)[:3])),
}


@pytest.mark.parametrize("name", PNGS)
def test_whatever_else_a_png_holds_its_pixels_are_taken(name):
    assert_shows(PNGS[name], PICTURE, 0)


@pytest.mark.parametrize("name", ["text", "colour profile", "wrong checksum of text"])
def test_beside_a_fault_a_rotation_still_counts(name):
    place = PNG.index(b"IDAT") - 4
    data = PNGS[name][:place] + chunk(b"eXIf", EXIF[6:]) + PNGS[name][place:]
    assert_shows(data, LYING, 0)


@pytest.mark.parametrize("exif", [CUT_EXIF, NO_EXIF, b"Exif\0\0", b"Exif\0\0II*\0\xff\xff\xff\x7f"])
def test_broken_exif_costs_no_image(exif):
    assert_shows(in_webp(exif), PICTURE, 0)
    cmyk = encode(CMYK, quality=100)
    assert_shows(in_jpeg(cmyk, 0xE1, exif), decode(cmyk).pixels, 0)
    assert_shows(in_png(chunk(b"eXIf", exif)), PICTURE, 0)


def test_broken_exif_costs_no_avif_which_has_its_rotation_elsewhere():
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "words"
    whole = encode(PICTURE, "AVIF", exif=exif)
    entries = whole.index(b"MM\0*") + 8
    data = whole[:entries] + b"\0\x09" + whole[entries + 2 :]
    assert_shows(data, decode(whole).pixels, 0)
    assert decode(whole).pixels.shape == LYING.shape


def test_a_rotation_before_the_fault_counts_as_in_an_ordinary_jpeg():
    exif = CUT_TURN[4:]
    assert_shows(in_webp(exif), LYING, 0)
    assert_shows(in_png(chunk(b"eXIf", exif[6:])), LYING, 0)
    assert_shows(in_jpeg(JPEG, 0xE1, exif), np.rot90(SHOWN, -1))


SEGMENTS = {
    "photoshop": (0xED, b"Photoshop 3.0\x008BIM\x04\x04"),
    "profile": (0xE2, b"ICC_PROFILE\0"),
    "pictures": (0xE2, b"MPF\0II*\0\x08\0\0\0\x05\0"),
    "jfif": (0xE0, b"JFIF\0"),
    "adobe": (0xE1, b"Exif\0\0MM"),
    "half a profile": (0xE2, b"ICC_PROFILE\0\1\2half"),
    "two versions on": (0xE0, b"JFIF\0\3\0\0\0\1\0\1\0\0"),
}


@pytest.mark.parametrize("name", SEGMENTS)
def test_whatever_else_a_jpeg_holds_its_pixels_are_taken(name):
    for image in (CMYK, PICTURE):
        whole = encode(image, quality=95)
        data = in_jpeg(whole, *SEGMENTS[name])
        assert_shows(data, decode(whole).pixels, 0)
        turned = in_jpeg(data, 0xE1, EXIF)
        assert_shows(turned, np.rot90(decode(whole).pixels, -1), 2)


def test_the_colours_of_a_jpeg_are_those_that_its_header_says():
    """What says so is not left out with the rest: JFIF's block, then Adobe's."""
    jfif_ends = 4 + int.from_bytes(JPEG[4:6], "big")
    rgb_by_adobe = in_jpeg(JPEG[:2] + JPEG[jfif_ends:], 0xEE, b"Adobe\0\x64\0\0\0\0\0")
    ycbcr_by_jfif = in_jpeg(JPEG, 0xEE, b"Adobe\0\x64\0\0\0\0\0")
    for whole in (rgb_by_adobe, ycbcr_by_jfif):
        data = in_jpeg(whole, *SEGMENTS["photoshop"])
        assert_shows(data, decode(whole).pixels, 0)
    assert_shows(ycbcr_by_jfif, SHOWN)
    with pytest.raises(AssertionError):
        assert_shows(rgb_by_adobe, SHOWN)


# The pixels are looked at no less


def test_no_bit_of_a_pngs_pixels_may_be_wrong():
    first = PNG.index(b"IDAT") + 4
    last = first + int.from_bytes(PNG[first - 8 : first - 4], "big") + 4
    for faulty in (PNG, PNGS["text that cannot be unpacked"]):
        shift = faulty.index(b"IDAT") + 4 - first
        for place in range(first, last, 5):
            with pytest.raises(RejectedError, match="damaged"):
                decode(flipped(faulty, place + shift, 1 << place % 8))


@pytest.mark.parametrize("kind", [b"PLTE", b"tRNS"])
def test_palette_and_transparency_are_no_metadata(kind):
    palette = encode(PALETTE, "PNG", transparency=bytes(64))
    place = palette.index(kind) + 6
    with pytest.raises(RejectedError):
        decode(flipped(palette, place))


@pytest.mark.parametrize("name", ["text", "text behind the pixels", "colour profile"])
def test_a_png_that_is_cut_off_is_damaged_whatever_else_it_holds(name):
    with pytest.raises(RejectedError):
        decode(PNGS[name][:-60])


NOISE = np.asarray(Image.fromarray(noisy(6, 6)).resize((160, 160), Image.Resampling.BICUBIC))
NOISY, NOISY_CMYK = encode(NOISE), encode(Image.fromarray(NOISE).convert("CMYK"))
HALF_PROFILE = SEGMENTS["half a profile"]
JPEGS = {
    "ordinary": NOISY,
    "rotated": in_jpeg(NOISY, 0xE1, EXIF),
    "rgb inside": encode(NOISE, keep_rgb=True),
    "cmyk": NOISY_CMYK,
    "rotated cmyk": in_jpeg(NOISY_CMYK, 0xE1, EXIF),
    "progressive cmyk": encode(Image.fromarray(NOISE).convert("CMYK"), progressive=True),
    "stray bytes": NOISY[:20] + b"\0\0\xff\xff" + NOISY[20:],
    "half a profile": in_jpeg(NOISY, *HALF_PROFILE),
    "rotated, half a profile": in_jpeg(in_jpeg(NOISY, 0xE1, EXIF), *HALF_PROFILE),
    "cmyk, photoshop": in_jpeg(NOISY_CMYK, *SEGMENTS["photoshop"]),
}


@pytest.mark.parametrize("name", JPEGS)
def test_no_kind_of_jpeg_may_be_damaged(name):
    whole = JPEGS[name]
    assert decode(whole).pixels.size == NOISE.size
    half = (whole.index(b"\xff\xda") + len(whole)) // 2
    for damaged in (
        whole[:half],
        whole[:half] + b"\xff\xd9",
        whole[:half] + bytes(60) + whole[half + 60 :],
    ):
        with pytest.raises(RejectedError, match="damaged JPEG"):
            decode(damaged)


def test_a_jpeg_that_libjpeg_warns_of_is_stored_without_what_it_warns_of():
    data = in_jpeg(JPEG, *SEGMENTS["half a profile"])
    stored = store(data, Recipe())
    assert stored.converted
    assert b"ICC_PROFILE" not in stored.data
    assert decode(stored.data).ordinary
    assert np.abs(decode(stored.data).pixels.astype(int) - SHOWN).mean() <= 1.4


def test_a_jpeg_whose_damage_libjpeg_cannot_tell_is_unsupported():
    place = JPEG.index(b"\xff\xc0") + 11
    rare = JPEG[:place] + b"\x31" + JPEG[place + 1 :]
    for data in (rare, in_jpeg(rare, 0xE1, EXIF)):
        with pytest.raises(RejectedError, match=r"unsupported pixels \(a JPEG of rare chroma"):
            decode(data)


# Transparent colours, which Pillow keeps at the file's depth


@pytest.mark.parametrize("depth", [2, 4, 8, 16])
def test_a_transparent_level_of_grey_is_white_at_every_depth(depth):
    levels = np.tile(np.arange(48) * ((1 << depth) - 1) // 47, (40, 1))
    clear = int(levels[0, 20])
    expected = np.where(levels == clear, 255, levels * 255 // ((1 << depth) - 1))
    rows = "".join("0" * 8 + "".join(f"{level:0{depth}b}" for level in row) for row in levels)
    body = int(rows, 2).to_bytes(len(rows) // 8, "big")
    head = struct.pack(">IIBBBBB", 48, 40, depth, 0, 0, 0, 0)
    chunks = [
        chunk(b"IHDR", head),
        chunk(b"tRNS", struct.pack(">H", clear)),
        chunk(b"IDAT", zlib.compress(body)),
    ]
    data = PNG[:8] + b"".join(chunks) + chunk(b"IEND", b"")
    assert np.abs(decode(data).pixels[..., 0].astype(int) - expected).max() <= 1


def test_a_transparent_colour_of_which_pillow_keeps_half_is_unsupported():
    data = odd_png(np.dstack([DEEP] * 3))
    place = data.index(b"IDAT") - 4
    with pytest.raises(RejectedError, match=r"unsupported pixels \(16-bit RGB PNG"):
        decode(data[:place] + chunk(b"tRNS", bytes(6)) + data[place:])
