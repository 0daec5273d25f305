"""TIFFs of every layout: their pixels come out right, or the reason says why not."""

import io
import os
from itertools import product

import numpy as np
import pytest
from PIL import Image
from PIL.TiffImagePlugin import TiffImageFile

from pipeline.images.decode import RejectedError, decode
from tests.odd_files import RAMP
from tests.pictures import encode, noisy
from tests.tiffs import COMPRESSIONS, HEIGHT, WIDTH, Layout, shown, tiff, tiff_of

ORDERS = ("II", "MM")


def assert_shows(data, expected):
    got = decode(data).pixels
    assert got.shape[:2] == expected.shape[:2]
    assert got.shape[2] >= expected.shape[2]
    assert np.abs(got - expected).max() < 4  # colours and alpha in eight bits, each rounded down


def reason(data):
    with pytest.raises(RejectedError) as error:
        decode(data)
    return str(error.value)


@pytest.mark.parametrize("compression", COMPRESSIONS)
@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("order", ORDERS)
def test_colours_come_out_right_in_every_layout(order, bits, compression):
    for extra, planar in product((None, 0, 1, 2), (1, 2)):
        layout = Layout(order, bits, compression, 2, extra, planar)
        assert_shows(tiff(layout), shown(layout))


@pytest.mark.parametrize("compression", COMPRESSIONS)
@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("order", ORDERS)
def test_grey_comes_out_right_whichever_level_is_white(order, bits, compression):
    for photometric in (0, 1):
        layout = Layout(order, bits, compression, photometric)
        assert_shows(tiff(layout), shown(layout))


@pytest.mark.parametrize("compression", COMPRESSIONS)
@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("order", ORDERS)
def test_grey_with_another_sample_comes_out_right_or_is_unsupported(order, bits, compression):
    for photometric, extra, planar in product((0, 1), (0, 1, 2), (1, 2)):
        layout = Layout(order, bits, compression, photometric, extra, planar)
        plane_to_ignore = planar == 2 and extra == 0
        if plane_to_ignore or (bits, photometric, planar) == (8, 1, 1):
            assert_shows(tiff(layout), shown(layout))
        else:
            colour = ("white-is-zero", "grey")[photometric]
            where = " in separate planes" if planar == 2 else ""
            said = f"{bits}-bit {colour} TIFF, 2 samples a pixel{where}"
            assert reason(tiff(layout)) == f"unsupported pixels ({said})"


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(
    ("layout", "said"),
    [
        (Layout(bits=8, number=2, photometric=1), "signed 8-bit grey TIFF"),
        (Layout(bits=16, number=2, photometric=1), "signed 16-bit grey TIFF"),
        (Layout(bits=32, number=2, photometric=1), "signed 32-bit grey TIFF"),
        (Layout(bits=32, photometric=1), "32-bit grey TIFF"),
        (Layout(bits=32, number=3, photometric=0), "floating-point 32-bit white-is-zero TIFF"),
        (Layout(bits=16, number=2), "signed 16-bit RGB TIFF, 3 samples a pixel"),
        (
            Layout(bits=16, number=3, planar=2),
            "floating-point 16-bit RGB TIFF, 3 samples a pixel in separate planes",
        ),
    ],
)
def test_pixels_whose_range_no_file_tells_are_called_what_they_are(order, layout, said):
    assert reason(tiff(layout._replace(order=order))) == f"unsupported pixels ({said})"


def test_a_compression_that_nobody_here_undoes_is_named():
    said = reason(tiff(Layout(), {259: 50002}))
    assert said == "unsupported pixels (8-bit RGB TIFF, 3 samples a pixel, compression 50002)"


def test_big_tiffs_are_named_where_pillow_does_not_read_them():
    assert reason(b"MM\0+\0\x08\0\0" + bytes(40)) == "unsupported pixels (big-endian BigTIFF)"


def test_twelve_bits_are_not_taken_for_sixteen():
    ramp = np.tile(np.linspace(0, 4095, WIDTH).astype(int), (HEIGHT, 1))
    pairs = ramp.reshape(HEIGHT, WIDTH // 2, 2)
    three = [
        pairs[..., 0] >> 4,
        (pairs[..., 0] & 15) << 4 | pairs[..., 1] >> 8,
        pairs[..., 1] & 255,
    ]
    packed = np.dstack(three).reshape(HEIGHT, -1, 1).astype(np.uint8)
    data = tiff_of(packed, Layout(bits=12, photometric=1))
    assert_shows(data, (ramp / 4095 * 255)[..., None])


@pytest.mark.parametrize("orientation", range(1, 9))
def test_planes_are_turned_upright(orientation):
    layout = Layout(bits=16, planar=2)
    upright = shown(layout)
    turns = [
        upright,
        upright[:, ::-1],
        upright[::-1, ::-1],
        upright[::-1],
        upright.transpose(1, 0, 2),
        np.rot90(upright, -1),
        np.rot90(upright, 2).transpose(1, 0, 2),
        np.rot90(upright),
    ]
    assert_shows(tiff(layout, {274: orientation}), turns[orientation - 1])


# Damage


WHOLE = {
    "bytes": tiff(Layout()),
    "planes": tiff(Layout(bits=16, planar=2)),
    "compressed": tiff(Layout("MM", 16, 8, 1)),
    "one strip": encode(RAMP, "TIFF", compression="tiff_adobe_deflate"),  # its tags come last
}


@pytest.mark.parametrize("whole", WHOLE.values(), ids=WHOLE)
def test_no_cut_anywhere_passes(whole):
    for length in (*range(0, len(whole), len(whole) // 100), *range(len(whole) - 30, len(whole))):
        reason(whole[:length])


@pytest.mark.parametrize("tag", [258, 273, 279, 339])
def test_a_tag_that_says_how_pixels_lie_is_not_done_without(tag):
    """Pillow only warns of it, and takes another value instead: unsigned, for the last."""
    data = bytearray(tiff(Layout(number=2 if tag == 339 else 1)))
    entry = data.index(tag.to_bytes(2, "little") + b"\x03\0\x03\0\0\0")
    data[entry + 8 : entry + 12] = b"\xff\xff\xff\x7f"
    assert reason(bytes(data)).startswith("damaged image")


TEXT = bytes(range(256))
ALSO_DAMAGED = {270: TEXT, 306: TEXT, 700: TEXT, 34665: 1 << 30, 34675: TEXT, 34853: 1 << 30}
"""Words, XMP, Exif, a colour profile, a place: what says nothing of the pixels."""


@pytest.mark.parametrize("tag", ALSO_DAMAGED)
@pytest.mark.parametrize("order", ORDERS)
def test_a_tag_that_says_nothing_of_pixels_costs_none(order, tag):
    layout = Layout(order, bits=16)
    data = bytearray(tiff(layout, ALSO_DAMAGED))
    (entry,) = [
        place
        for place in range(8, len(data) - 12)
        if data[place : place + 2] == tag.to_bytes(2, "little" if order == "II" else "big")
        and bytes(data[place + 2 : place + 4]) in (b"\x07\0", b"\0\x07", b"\x04\0", b"\0\x04")
    ]
    data[entry + 8 : entry + 12] = b"\x7f\xff\xff\x7f"
    assert_shows(bytes(data), shown(layout))


# What libtiff warns of


def strips(data):
    tags = TiffImageFile(io.BytesIO(data)).tag_v2
    return list(zip(np.ravel(tags[273]), np.ravel(tags[279]), strict=True))


NOISE = Image.fromarray(noisy(6, 6)).resize((160, 160), Image.Resampling.BICUBIC)


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK", "YCbCr"])
def test_no_strip_compressed_as_jpeg_may_be_damaged(mode):
    whole = encode(NOISE.convert(mode), "TIFF", compression="jpeg")
    assert decode(whole).pixels.shape[:2] == (160, 160)
    for start, length in strips(whole):
        for body in (bytes(60), b"\xff\xd9"):
            middle = start + length // 2
            assert "damaged JPEG" in reason(whole[:middle] + body + whole[middle + len(body) :])


def test_libtiffs_own_lines_stay_off_the_terminal_and_ours_do_not(capfd):
    whole = encode(NOISE, "TIFF", compression="tiff_lzw")
    start, length = strips(whole)[-1]
    assert "damaged image" in reason(whole[:start] + b"\xff" * length + whole[start + length :])
    os.write(2, b"ours")
    assert capfd.readouterr() == ("", "ours")
