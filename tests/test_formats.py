"""Formats beside the ordinary ones: taken where they decode, called by their name where not."""

import numpy as np
import pytest
from PIL import Image
from torchvision.datasets.folder import IMG_EXTENSIONS

from pipeline.images.decode import RejectedError, decode
from pipeline.images.formats import is_image
from pipeline.packing.sources.sieve import IMAGE_SUFFIXES
from tests.pictures import encode, smooth

PICTURE = smooth(48, 40)
AVIF = encode(PICTURE, "AVIF")
JP2 = encode(PICTURE, "JPEG2000")


def box(brand: bytes, *compatible: bytes) -> bytes:
    """The beginning of a file of ISO/IEC 14496-12."""
    body = b"ftyp" + brand + bytes(4) + b"".join(compatible)
    return (len(body) + 4).to_bytes(4, "big") + body + bytes(99)


UNSUPPORTED = {
    "HEIC": [box(b"heic", b"mif1"), box(b"mif1", b"mif1", b"heic"), box(b"msf1", b"hevc")],
    "Canon raw (CR3)": [box(b"crx ", b"crx ", b"isom")],
    "Photoshop (PSD)": [b"8BPS\0\1" + bytes(99)],
    "JPEG XL": [b"\xff\x0a" + bytes(99), b"\0\0\0\x0cJXL \r\n\x87\n" + bytes(99)],
    "JPEG XR": [b"II\xbc\x01" + bytes(99)],
    "SVG": [b"<svg>", b"<?xml version='1.0'?>\n<!-- drawn -->\n<svg>", b"\xef\xbb\xbf <SVG>"],
    "PAM": [b"P7\nWIDTH 48\n" + bytes(99)],
    "PFM": [b"Pf\n48 40\n-1.0\n" + bytes(99)],
    "DDS": [b"DDS |" + bytes(99)],
    "OpenEXR": [b"v/1\x01" + bytes(99)],
    "ICO": [encode(Image.fromarray(PICTURE), "ICO")],
}

NO_IMAGES = {
    "an empty file": [b""],
    "only zeros": [bytes(4096)],
    "a web page": [b"\n <!DOCTYPE HTML><title>404</title>", b"<html>"],
    "an XML document": [b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>"],
    "a JSON document": [b'{"message": "Not Found"}'],
    "a PDF": [b"%PDF-1.7\n"],
    "a zip": [b"PK\x03\x04" + bytes(99)],
    "a gzip file": [b"\x1f\x8b\x08" + bytes(99)],
    "a video": [box(b"isom", b"avc1"), box(b"qt  "), b"RIFF\0\0\0\0AVI LIST", b"\x1aE\xdf\xa3"],
    "a NumPy array": [b"\x93NUMPY\x01\0"],
    "a Git LFS pointer: git lfs pull fetches the file itself": [
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
    ],
}


def reason(data: bytes) -> str:
    with pytest.raises(RejectedError) as error:
        decode(data)
    return str(error.value)


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_an_image_that_cannot_be_decoded_is_called_by_its_format(name):
    for data in UNSUPPORTED[name]:
        assert reason(data) == f"unsupported {name} (convert it to PNG or JPEG)"


@pytest.mark.parametrize("name", NO_IMAGES)
def test_what_is_no_image_is_called_what_it_is(name):
    for data in NO_IMAGES[name]:
        assert reason(data) == f"not an image ({name})"


def test_what_nobody_knows_is_not_an_image():
    assert reason(b"img_align_celeba\n" * 99) == "not an image"


def test_a_format_that_pillow_was_built_without_is_named(monkeypatch):
    monkeypatch.setattr("PIL.AvifImagePlugin.SUPPORTED", False)
    assert reason(AVIF) == "unsupported AVIF (convert it to PNG or JPEG)"


@pytest.mark.parametrize("whole", [AVIF, JP2, encode(PICTURE, "JPEG2000", no_jp2=True)])
def test_no_cut_anywhere_passes(whole):
    for length in range(0, len(whole), max(1, len(whole) // 300)):
        reason(whole[:length])


@pytest.mark.parametrize(("side", "count"), [(64, 1), (16, 9)])
def test_a_jpeg_2000_may_not_be_cut_before_or_between_its_tiles(side, count):
    whole = encode(PICTURE, "JPEG2000", tile_size=(side, side))
    assert np.array_equal(decode(whole).pixels, PICTURE)
    tiles = [place for place in range(len(whole)) if whole.startswith(b"\xff\x90\0\x0a", place)]
    assert len(tiles) == count
    for place in tiles:
        reason(whole[:place])
        reason(whole[: place + 2])


@pytest.mark.parametrize("kind", ["AVIF", "JPEG2000"])
def test_names_of_what_decodes_are_taken_for_images(kind):
    Image.init()
    names = {suffix for suffix, owner in Image.EXTENSION.items() if owner == kind}
    assert names - {".avifs"} <= IMAGE_SUFFIXES  # which are animated


def test_what_torchvisions_image_folder_takes_is_taken():
    assert set(IMG_EXTENSIONS) <= IMAGE_SUFFIXES


GREY, COLOURS = PICTURE[:, :, :1], PICTURE
DEEP = (PICTURE[:, :, 0].astype(">u2") << 8 | 77).astype(">u2")
STRIPES = np.arange(48)[None, :, None] % 8 < 4
NETPBM = {
    "binary-grey": (b"P5 48 40 255\n" + GREY.tobytes(), GREY),
    "binary-colours": (b"P6\n# by a camera\n48 40\n255\n" + COLOURS.tobytes(), COLOURS),
    "text-grey": (b"P2\n48 40\n255\n" + b" ".join(b"%d" % v for v in GREY.ravel()), GREY),
    "16-bit": (b"P5 48 40 65535\n" + DEEP.tobytes(), GREY),
    "white-is-100": (b"P5 48 40 100\n" + bytes(48 * 40 - 1) + b"d", None),
    "bitmap": (b"P4 48 40\n" + bytes([0b00001111]) * (6 * 40), np.full_like(GREY, 255) * STRIPES),
}


@pytest.mark.parametrize(("data", "pixels"), NETPBM.values(), ids=NETPBM)
def test_netpbm_is_decoded_and_its_cuts_are_not(data, pixels):
    assert is_image(data[:512])
    found = decode(data).pixels
    if pixels is None:
        assert [found.max(), found[-1, -1, 0], found.sum()] == [255] * 3
    else:
        assert np.array_equal(found, pixels)
    for length in range(0, len(data) - 4, len(data) // 40):
        reason(data[:length])


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"P5 9999999 9999999 255\n", "too large"),
        (b"P5 #" + b"x" * 9999, "damaged image (a Netpbm header that cannot be read)"),
        (b"P2 2000 2000 255\n", "unsupported pixels (text or odd depth, over 1,048"),
        (b"P5 0 5 255\n", "no pixels"),
        (b"P5 4 4 99999\n" + bytes(99), "damaged image"),
    ],
)
def test_a_netpbm_that_claims_much_costs_little(data, expected):
    assert reason(data).startswith(expected)
