"""Images of a set that claim what they are not: refused before a decoder sets memory aside."""

import json
import struct
import zlib
from contextlib import closing

import numpy as np
import pytest

from pipeline.errors import UserError
from pipeline.images.decode import MAX_PIXELS
from pipeline.images.jpeg import MAX_SEGMENTS, read_header
from pipeline.loading.reader import Reader
from pipeline.shards.manifest import MANIFEST
from pipeline.shards.shard_set import ShardSet
from tests.loaders import of_jpegs
from tests.needs import require, take
from tests.odd_files import JPEG, ODD, Untouched, frame, in_header
from tests.pictures import encode, smooth
from tests.running import assert_four_parts
from tests.test_graph_placement import operators
from tests.test_loader_damage import overwrite_sample

__all__ = ["operators"]  # a fixture

FRAME = b"\xff\xc0"
HUGE_FRAME = FRAME + struct.pack(">HBHHB", 17, 8, 60000, 60000, 3) + bytes(9)


def claiming(width, height):
    """What makes a JPEG's header claim other sides, in as many bytes."""

    def fill(data):
        place = data.index(FRAME) + 5
        return data[:place] + struct.pack(">HH", height, width) + data[place + 4 :]

    return fill


def huge_png(data):
    head = b"IHDR" + struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)
    png = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + head + struct.pack(">I", zlib.crc32(head))
    return png.ljust(len(data), b"\0")


def claim_in_manifest(shards, width, height):
    """Have the manifest vouch for images of such sides."""
    path = shards.folder / MANIFEST
    manifest = json.loads(path.read_text())
    path.write_text(json.dumps(manifest | {"largest_image": [width, height]}))


CLAIMS = {
    "huge": (claiming(60000, 60000), "too large (60000×60000, over 67,108,864 pixels)"),
    "large": (claiming(8000, 8000), "too large (8000×8000, over the set's largest, 32×32)"),
    "wider": (claiming(33, 32), "too large (33×32, over the set's largest, 32×32)"),
    "higher": (claiming(32, 33), "too large (32×33, over the set's largest, 32×32)"),
    "empty": (claiming(0, 32), "no pixels"),
    "png": (huge_png, "not a JPEG with one frame"),
}


@of_jpegs
@pytest.mark.parametrize("claim", CLAIMS)
def test_a_sample_that_claims_too_much_is_named_before_it_is_decoded(
    open_batches, spare_set, claim
):
    fill, said = CLAIMS[claim]
    tar, key = overwrite_sample(spare_set, fill)
    with pytest.raises(UserError) as error:
        take(open_batches(ShardSet.open(spare_set.folder), 3), 4)  # an epoch
    assert error.value.where == tar
    assert error.value.found == f"sample {key} does not decode: {said}"
    assert error.value.wanted == "shards as tools/make_shards.py writes them"
    assert "pack it again: python tools/make_shards.py" in error.value.remedy


def test_no_manifest_makes_an_enormous_image_good(spare_set):
    overwrite_sample(spare_set, claiming(60000, 60000))
    claim_in_manifest(spare_set, 1 << 26, 1 << 26)
    with (
        closing(Reader(ShardSet.open(spare_set.folder))) as reader,
        pytest.raises(UserError, match=f"over {MAX_PIXELS:,} pixels"),
    ):
        reader.read(np.arange(12))


def test_images_as_large_as_the_manifest_says_are_read(spare_set):
    overwrite_sample(spare_set, claiming(400, 300))
    claim_in_manifest(spare_set, 400, 300)
    with closing(Reader(ShardSet.open(spare_set.folder))) as reader:
        assert len(reader.read(np.arange(12))) == 12


@pytest.mark.parametrize(("free", "refused"), [(1.9e9, True), (2.0e9, False)])
def test_a_batch_that_does_not_fit_into_memory_is_refused(spare_set, monkeypatch, free, refused):
    """Ten images of 64 megapixels each, the others small."""
    claim_in_manifest(spare_set, 8000, 8000)
    monkeypatch.setattr("pipeline.loading.reader.free_memory", lambda device: int(free))
    for shard in range(2):
        for place in range(5):
            overwrite_sample(spare_set, claiming(8000, 8000), shard, place)
    with closing(Reader(ShardSet.open(spare_set.folder))) as reader:
        if refused:
            with pytest.raises(UserError) as error:
                reader.read(np.arange(12))
            assert_four_parts(error.value, "12 images that take 1.9 GB", "1.9 GB that are free")
        else:
            assert len(reader.read(np.arange(12))) == 12
        monkeypatch.setattr("pipeline.loading.reader.free_memory", lambda device: 0)
        assert len(reader.read(np.arange(5))) == 5  # a gigabyte is always there


def test_the_gpus_decoder_gets_no_gigabytes_of_a_manifest(operators, spare_set):
    claim_in_manifest(spare_set, 1 << 26, 100)
    told = operators("cuda", shards=ShardSet.open(spare_set.folder))["decode"]._init_args
    width, height = told["preallocate_width_hint"], told["preallocate_height_hint"]
    assert height == 100
    assert 3 * 8 * width**2 <= 1 << 30 < 3 * 8 * (width + 1) ** 2  # batches of 8


# What the header's reader takes


def sides(data):
    header = read_header(data)
    return header and header[:2]


@pytest.mark.parametrize("name", [name for name, (_, fate) in ODD.items() if fate == Untouched()])
def test_every_jpeg_that_goes_into_a_set_has_sides(name):
    others = {"one-pixel.jpg": (1, 1), "wide.jpg": (4000, 3), "tall.jpg": (3, 4000)}
    assert sides(ODD[name][0]) == others.get(name, (48, 40))


_PLACE = JPEG.index(FRAME)
SHORT_FRAME = JPEG[: _PLACE + 2] + b"\x00\x07" + JPEG[_PLACE + 4 : _PLACE + 9] + JPEG[_PLACE + 19 :]

AMBIGUOUS = {
    "two frames": in_header(HUGE_FRAME),
    "frame of another kind": in_header(b"\xff\xc3" + HUGE_FRAME[2:]),
    "fill bytes": in_header(b"\xff" + b"\xff\xfe\x00\x04ab"),
    "a marker without length": in_header(b"\xff\x01"),
    "a restart": in_header(b"\xff\xd0"),
    "stray bytes": in_header(b"\0\0"),
    # Whoever reads a length behind the first marker does not see the huge frame
    "a frame in hiding": in_header(
        b"\xff\x01" + HUGE_FRAME + bytes(0xFFC0 - 2 - len(HUGE_FRAME) + 2)
    ),
    "a short frame": SHORT_FRAME,
    "no frame": JPEG.replace(FRAME, b"\xff\xfe"),
    "no scan": JPEG[: JPEG.index(b"\xff\xda")],
    "a PNG": encode(smooth(48, 40), "PNG"),
    "endless segments": in_header(b"\xff\xfe\x00\x02" * MAX_SEGMENTS),
}


@pytest.mark.parametrize("name", AMBIGUOUS)
def test_what_parsers_could_read_in_two_ways_has_no_sides(name):
    assert sides(AMBIGUOUS[name]) is None


@pytest.mark.parametrize("marker", [0xC0, 0xC1, 0xC2])
def test_the_frame_tells_the_sides(marker):
    assert sides(frame(65500, 7, marker=marker)) == (65500, 7)


def test_a_header_that_ends_anywhere_has_no_sides():
    scan = JPEG.index(b"\xff\xda")
    assert all(sides(JPEG[:end]) is None for end in range(scan + 4))
    assert sides(JPEG[: scan + 4]) == (48, 40)


def test_dali_sees_the_same_sides():
    """Of what it may be handed: else the check would be of another image than is decoded."""
    require("dali")
    from nvidia.dali import fn, pipeline_def

    jpegs = [data for data, fate in ODD.values() if fate == Untouched()]

    @pipeline_def(batch_size=len(jpegs), num_threads=1, device_id=None)
    def peeked():
        encoded = fn.external_source(lambda: [np.frombuffer(data, np.uint8) for data in jpegs])
        return fn.peek_image_shape(encoded)

    (shapes,) = peeked().run()
    found = [tuple(shape[1::-1].tolist()) for shape in shapes.as_array()]
    assert found == [sides(data) for data in jpegs]
