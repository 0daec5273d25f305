"""Hostile shard sets: manifests, indexes, tars and tables, sealed anew as their author would."""

import hashlib
import json
import shutil
import tarfile
from contextlib import suppress

import numpy as np
import pytest
import simplejpeg
from hypothesis import example, given
from hypothesis import strategies as st

from pipeline.errors import UserError
from pipeline.images.jpeg import read_header
from pipeline.loading.loader import Loader
from pipeline.loading.options import LoaderOptions
from pipeline.loading.reader import Reader
from pipeline.packing.outdir import claim
from pipeline.packing.shard import finished
from pipeline.shards.labels import LabelTable
from pipeline.shards.manifest import LABELS, MANIFEST, PROGRESS, SAMPLES, Recipe
from pipeline.shards.shard_set import ShardSet
from pipeline.shards.tar import index_text, read_index
from pipeline.verify import verify
from tests.fuzzing import changed_bytes, changed_json, some, survives
from tests.odd_files import JPEG
from tests.pictures import numbered, numbered_pictures, pack_pictures
from tools.check_shards import check_shards

NO_LABELS = None
CLASSES = LabelTable("classes", ("a", "b"), np.array([0, 1] * 3, np.int32))


@pytest.fixture(scope="module", params=[NO_LABELS, CLASSES], ids=["plain", "labelled"])
def whole(tmp_path_factory, request):
    """A set of 6 pictures in one shard: its folder, and its files by name."""
    folder = pack_pictures(
        tmp_path_factory.mktemp("fuzz"), numbered_pictures(6), labels=request.param
    ).folder
    return folder, {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def folder(whole):
    """The set, as it was; to be altered at will."""
    path, files = whole
    restore(path, files)
    return path


def restore(folder, files):
    """Undo what an example did: of all examples, a fixture is one."""
    for name, data in files.items():
        (folder / name).write_bytes(data)


def reseal(folder):
    """Have the manifest vouch for the files as they are."""
    path = folder / MANIFEST
    manifest = json.loads(path.read_text())
    for shard in manifest["shards"]:
        tar, index = ((folder / f"{shard['name']}.{end}").read_bytes() for end in ("tar", "idx"))
        shard["bytes"] = max(1, len(tar))
        shard["tar_sha256"] = hashlib.sha256(tar).hexdigest()
        shard["index_sha256"] = hashlib.sha256(index).hexdigest()
    if "labels" in manifest:
        labels = (folder / LABELS).read_bytes()
        manifest["labels"]["sha256"] = hashlib.sha256(labels).hexdigest()
    path.write_text(json.dumps(manifest))


def use(folder):
    """Do with a set all that the commands do."""
    shards = ShardSet.open(folder)
    verify(shards, decoding=True)
    Reader(shards).close()
    labels = shards.manifest.labels is not None
    Loader(shards, LoaderOptions(2, 32, labels=labels, workers=1)).close()


@given(data=st.data())
@some(0.2)
def test_any_manifest_is_refused_or_used(whole, folder, data):
    manifest = json.loads(whole[1][MANIFEST])
    text = data.draw(changed_json(manifest))
    (folder / MANIFEST).write_bytes(text.encode(errors="surrogatepass"))
    survives("manifest", lambda: use(folder), UserError)


@given(data=st.data())
@some(0.2)
def test_any_bytes_are_a_manifest_or_refused(whole, folder, data):
    (folder / MANIFEST).write_bytes(data.draw(changed_bytes(whole[1][MANIFEST])))
    survives("manifest", lambda: ShardSet.open(folder), UserError)


@given(data=st.data())
@some(0.2)
def test_any_shard_in_a_set_that_vouches_for_it_is_told_or_read(whole, folder, data):
    files = whole[1]
    restore(folder, files)
    names = {"shard-000000.tar", "shard-000000.idx", SAMPLES, LABELS} & files.keys()
    name = data.draw(st.sampled_from(sorted(names)))
    (folder / name).write_bytes(data.draw(changed_bytes(files[name])))
    reseal(folder)
    survives(f"sealed {name.split('.')[-1]}", lambda: use(folder), UserError)


@given(data=st.data())
@some(0.5)
def test_any_index_is_read_or_a_value_error(whole, data):
    text = data.draw(changed_bytes(whole[1]["shard-000000.idx"]))
    survives("index", lambda: read_index(text, "jpg"), ValueError)
    survives("index", lambda: read_index(text, "jpg", "cls"), ValueError)


@given(data=st.data())
@some(1)
def test_any_bytes_have_sides_as_libjpeg_reads_them_or_none(data):
    header = JPEG[: JPEG.index(b"\xff\xda") + 30]
    image = data.draw(changed_bytes(header))
    header = survives("header of an image", lambda: read_header(image))
    if header is not None:
        with suppress(ValueError, KeyError):  # it knows fewer kinds of JPEG than have sides
            height, width, *_ = simplejpeg.decode_jpeg_header(image, strict=False)
            assert (width, height) == header[:2]


@given(data=st.data())
@some(0.5)
def test_any_record_of_a_shard_is_taken_or_passed_over(tmp_path, data):
    record: dict[str, object] = {"shard": None, "image_bytes": 0, "largest": None, "smallest": None}
    record |= {"converted": 0, "rejected": {"not an image": 3}}
    (tmp_path / PROGRESS).mkdir(exist_ok=True)
    path = tmp_path / PROGRESS / "shard-000000.json"
    path.write_bytes(data.draw(changed_json(record)).encode(errors="surrogatepass"))
    survives("shard record", lambda: finished(tmp_path, tmp_path, 0))
    (tmp_path / PROGRESS / "plan.json").write_bytes(path.read_bytes())
    (tmp_path / MANIFEST).write_bytes(path.read_bytes())
    survives("plan", lambda: claim(tmp_path, {"seed": 0}, overwrite=False), UserError)


@pytest.mark.parametrize("deep", ["[" * 100_000, '{"a":' * 100_000])
def test_json_of_any_depth_is_no_manifest(folder, deep):
    (folder / MANIFEST).write_text(deep)
    for call in (
        lambda: ShardSet.open(folder),
        lambda: claim(folder, {}, overwrite=False),
    ):
        assert isinstance(survives("deep", call, UserError), UserError)


def test_an_error_for_each_of_a_million_shards_is_not_made(folder):
    manifest = json.loads((folder / MANIFEST).read_text())
    (folder / MANIFEST).write_text(json.dumps(manifest | {"shards": [0] * 1_000_000}))
    assert isinstance(survives("manifest", lambda: ShardSet.open(folder), UserError), UserError)


def test_a_shard_set_is_no_url(tmp_path, monkeypatch, folder):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(folder, "pipe:touch pwned;")
    with pytest.raises(UserError, match="a URL"):
        ShardSet.open(type(folder)("pipe:touch pwned;"))
    assert len(ShardSet.open(tmp_path / "pipe:touch pwned;")) == 6


def test_a_sample_that_is_not_there_takes_no_memory(folder):
    entry = tarfile.TarInfo("00000003.jpg")
    entry.size = 1 << 40
    (folder / "shard-000000.tar").write_bytes(entry.tobuf(tarfile.GNU_FORMAT))
    reseal(folder)
    assert survives("giant sample", lambda: use(folder), UserError)


def test_samples_over_each_other_are_refused(folder):
    size = (folder / "shard-000000.tar").stat().st_size
    line = f"jpg 0 {size} 00000003.jpg\n"
    if (folder / LABELS).exists():
        line = line.replace("\n", " cls 0 1 00000003.cls\n")
    (folder / "shard-000000.idx").write_text("v1.2 6\n" + 6 * line)
    reseal(folder)
    with pytest.raises(UserError, match="larger than the tar can hold"):
        Reader(ShardSet.open(folder))


def test_the_sheet_of_what_is_no_image_is_an_error(tmp_path):
    unchecked = Recipe(checked=False)
    shards = pack_pictures(tmp_path, {"a.jpg": numbered(3, 64)[:-50]}, recipe=unchecked)
    with pytest.raises(UserError, match="cannot be drawn"):
        check_shards(shards=str(shards.folder), sheet=tmp_path / "sheet.png")


@example(b"\0" * 1024)
@given(st.binary(max_size=3000))
@some(0.5)
def test_any_bytes_are_a_tar_or_a_tar_error(tmp_path, data):
    path = tmp_path / "any.tar"
    path.write_bytes(data)
    survives("index of a tar", lambda: index_text(path), tarfile.TarError)
