"""What becomes of odd images: untouched, converted, or rejected with the reason."""

import io
import struct
import warnings

import numpy as np
import pytest
from PIL import Image

from pipeline import checking
from pipeline.checking import RejectedError, admit
from pipeline.loader import Loader
from tests.needs import require, within
from tests.pictures import decode, encode, noisy, pack_pictures, smooth

PICTURE = smooth(48, 40)
JPEG = encode(PICTURE)
SHOWN = decode(JPEG)
RAMP = np.tile(np.linspace(0, 255, 48).astype(np.uint8), (40, 1))
"""Grey, black on the left to white on the right."""
DEEP = np.tile(np.linspace(0, 65535, 48).astype(np.uint16), (40, 1))
"""The same in 16 bits."""


def turned(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[checking.EXIF_ORIENTATION] = orientation
    return encode(PICTURE, exif=exif)  # shows SHOWN, turned


def half_transparent() -> Image.Image:
    """Its left half can be seen; its right half is black and wholly transparent."""
    alpha = np.zeros((40, 48), np.uint8)
    alpha[:, :24] = 255
    black = np.where(alpha[..., None], PICTURE, np.zeros_like(PICTURE))
    return Image.fromarray(np.dstack([black, alpha]))


def on_white() -> np.ndarray:
    expected = PICTURE.copy()
    expected[:, 24:] = 255
    return expected


def with_gap(stray: bytes) -> bytes:
    """The JPEG with stray bytes between its first and its second header segment."""
    cut = 4 + struct.unpack(">H", JPEG[4:6])[0]
    return JPEG[:cut] + stray + JPEG[cut:]


UNTOUCHED = {
    "baseline": JPEG,
    "progressive": encode(PICTURE, progressive=True),
    "444": encode(PICTURE, subsampling=0),
    "rgb-inside": encode(PICTURE, keep_rgb=True),
    "grey": encode(RAMP),
    "upright": turned(1),
    "one-pixel": encode(PICTURE[:1, :1]),
    "trailing-bytes": JPEG + b"written by a camera",
    "with-comment": with_gap(b"\xff\xfe\x00\x06text"),
}


@pytest.mark.parametrize("data", UNTOUCHED.values(), ids=UNTOUCHED)
def test_ordinary_jpegs_go_in_untouched(data):
    image = admit(data)
    assert image.jpeg is data
    assert not image.converted
    assert (image.height, image.width) == decode(data).shape[:2]


BLOCKS = np.kron(PICTURE[::8, ::8], np.ones((8, 8, 1), np.uint8))  # plain: JPEG keeps them exactly
PALETTE = Image.fromarray(BLOCKS).quantize(64, dither=Image.Dither.NONE)
CONVERTED = {
    # file → its pixels as they should come out
    "cmyk": (encode(Image.fromarray(PICTURE).convert("CMYK"), quality=95), PICTURE),
    "turned-180": (turned(3), SHOWN[::-1, ::-1]),
    "turned-6": (turned(6), np.rot90(SHOWN, -1)),
    "mirrored": (turned(2), SHOWN[:, ::-1]),
    "png": (encode(PICTURE, "PNG"), PICTURE),
    "png-grey": (encode(RAMP, "PNG"), RAMP),
    "png-16-bit": (encode(Image.fromarray(DEEP), "PNG"), RAMP),
    "tiff-16-bit": (encode(Image.fromarray(DEEP), "TIFF"), RAMP),
    "png-rgba": (encode(half_transparent(), "PNG"), on_white()),
    "png-grey-alpha": (
        encode(half_transparent().convert("LA"), "PNG"),
        np.asarray(Image.fromarray(on_white()).convert("L")),
    ),
    "png-palette": (encode(PALETTE, "PNG"), BLOCKS),
    "png-clear-palette": (encode(PALETTE, "PNG", transparency=bytes(64)), np.full((40, 48), 255)),
    "png-two-levels": (encode(Image.fromarray(RAMP > 99), "PNG"), 255 * (RAMP > 99)),
    "gif-named-jpg": (encode(PALETTE, "GIF"), BLOCKS),
    "webp": (encode(PICTURE, "WEBP", lossless=True), PICTURE),
    "bmp": (encode(PICTURE, "BMP"), PICTURE),
    "stray-zeros": (with_gap(b"\0\0"), SHOWN),
    "stray-text": (with_gap(b"stray"), SHOWN),
    "stray-marker": (with_gap(b"\xff\xd0"), SHOWN),
}


@pytest.mark.parametrize(("data", "expected"), CONVERTED.values(), ids=CONVERTED)
def test_other_images_are_converted_with_their_pixels_right(data, expected):
    image = admit(data)
    assert image.converted
    colour = expected.ndim == 3
    stored = Image.open(io.BytesIO(image.jpeg))
    assert stored.format == "JPEG"
    assert stored.mode == "RGB" or not colour
    assert (image.width, image.height) == stored.size
    got = decode(image.jpeg, "RGB" if colour else "L").astype(int)
    assert got.shape == expected.shape
    error = np.abs(got - expected)
    assert error.mean() < 1.2  # levels; measured: at most 1.04, which is JPEG at quality 95
    assert admit(image.jpeg).jpeg is image.jpeg  # what we wrote is itself ordinary


REJECTED = {
    # file → words of the reason
    "empty": (b"", "0 bytes that are no image"),
    "html": (b"<!doctype html><title>Quota exceeded</title>", "44 bytes that are no image"),
    "zeros": (bytes(3000), "3,000 bytes that are no image"),
    "header-only": (JPEG[:20], ""),
    "cut-in-header": (JPEG[:100], ""),
    "cut-in-half": (JPEG[: len(JPEG) // 2], "runcated"),
    "cut-by-ten": (JPEG[:-10], "truncated"),
    "no-end-marker": (JPEG[:-2], "truncated"),
    "cut-by-one": (JPEG[:-1], "truncated"),
    "cut-png": (encode(PICTURE, "PNG")[:-30], ""),
    "32-bit-int": (encode(Image.fromarray(DEEP.astype(np.int32)), "TIFF"), "32-bit"),
    "32-bit-float": (encode(Image.fromarray(DEEP / np.float32(65535)), "TIFF"), "32-bit"),
    # Pillow would hand it to Ghostscript
    "postscript": (encode(PICTURE, "EPS"), "no image"),
}


@pytest.mark.parametrize(("data", "reason"), REJECTED.values(), ids=REJECTED)
def test_what_does_not_decode_is_rejected_with_the_reason(data, reason):
    with pytest.raises(RejectedError) as error:
        admit(data)
    assert reason in str(error.value)
    assert 0 < len(str(error.value)) <= 200
    assert " at 0x" not in str(error.value)  # no object's address: the same every time


@pytest.mark.parametrize("data", [JPEG, encode(PICTURE, progressive=True)], ids=["jpeg", "scans"])
def test_no_cut_anywhere_passes(data):
    for length in range(len(data)):
        with pytest.raises(RejectedError):
            admit(data[:length])


def test_too_many_pixels_are_refused_before_decoding(monkeypatch):
    monkeypatch.setattr(checking, "MAX_PIXELS", 48 * 40 - 1)
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("decoded"))
    with pytest.raises(RejectedError, match="48×40 pixels"):
        admit(JPEG)


def test_damage_that_pillow_only_warns_of_is_rejected():
    damaged = encode(PICTURE, exif=b"Exif\0\0II*\0\x08\0\0\0\x05\0cut")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # as outside of tests, where no warning is an error
        assert decode(damaged).shape == PICTURE.shape
        with pytest.raises(RejectedError, match="Corrupt EXIF data"):
            admit(damaged)


def test_strict_checking_leaves_the_callers_warnings_alone():
    filters = list(warnings.filters)
    with pytest.raises(RejectedError):
        admit(JPEG[:100])
    assert warnings.filters == filters


def damage(data: bytes, random: np.random.Generator) -> bytes:
    """Change or delete a few bytes, anywhere after the start marker."""
    damaged = bytearray(data)
    for _ in range(random.integers(1, 4)):
        place = int(random.integers(2, len(damaged) - 2))
        if random.random() < 0.5:
            damaged[place] = int(random.integers(256))
        else:
            del damaged[place : place + int(random.integers(1, 6))]
    return bytes(damaged)


def test_dali_takes_whatever_was_admitted(tmp_path, capfd):
    """The promise of checking: of 1,000 damaged JPEGs, those that pass do not stop training."""
    require("dali")
    random = np.random.default_rng(0)
    bases = [JPEG, encode(noisy(48, 40)), encode(RAMP), encode(PICTURE, progressive=True)]
    passed = {f"{name}.jpg": data for name, data in UNTOUCHED.items()}
    for number in range(1000):
        data = damage(bases[number % len(bases)], random)
        try:
            admit(data)
        except RejectedError:
            continue
        passed[f"{number:04d}.jpg"] = data
    assert 500 < len(passed) < 950
    loader = Loader(pack_pictures(tmp_path, passed), 1, image_size=32, workers=2)
    try:
        for _ in passed:
            within(20, lambda: next(loader))
    finally:
        loader.close()
        capfd.readouterr()  # libjpeg's own remarks on each
