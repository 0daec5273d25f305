"""Packing: the bytes, their keys and places, sameness, and folders that are not ours to fill."""

import csv
import gc
import json
import shutil
import subprocess
import tarfile
import zlib

import pytest
import webdataset

from pipeline import packing
from pipeline.errors import UserError
from pipeline.manifest import MANIFEST, SAMPLES, Manifest, ShardSet, digest, file_digest
from pipeline.order import permutation
from pipeline.packing import deal, pack
from pipeline.sources import open_source
from tests.needs import require
from tests.pictures import encode, names_in, smooth, write_pictures

COUNT, PER_SHARD = 17, 5
PICTURES = {
    f"{number:02d}.jpg": encode(smooth(20 + number, 24, seed=number)) for number in range(COUNT)
}
PNG = {"99.png": encode(smooth(9, 50), "PNG")}


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return open_source(write_pictures(tmp_path_factory.mktemp("in"), PICTURES | PNG))


@pytest.fixture(scope="module")
def folder(source, tmp_path_factory):
    """The set that most tests read; not to be altered."""
    out = tmp_path_factory.mktemp("packed") / "shards"
    pack(source, source.names(), out, per_shard=PER_SHARD)
    return out


def pack_few(source, out, count=3, **options):
    return pack(source, source.names()[:count], out, **options)


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def stored(folder):
    """Each shard's members, in their order: [(name, bytes), …]."""
    shards = []
    for tar in ShardSet.open(folder).tars:
        with tarfile.open(tar) as archive:
            members = archive.getmembers()
            shards.append([(m.name, archive.extractfile(m).read()) for m in members])  # type: ignore[union-attr]
    return shards


# What is in a shard


def test_jpegs_go_in_untouched_under_the_rank_of_their_name(source, folder):
    members = dict(member for shard in stored(folder) for member in shard)
    assert len(members) == COUNT + 1
    for rank, name in enumerate(source.names()[:COUNT]):
        assert members[f"{rank:08d}.jpg"] == PICTURES[name]
    assert members[f"{COUNT:08d}.jpg"].startswith(b"\xff\xd8")  # the PNG


def test_shard_k_owns_its_places_of_the_permutation(folder):
    order = permutation(COUNT + 1, 0).tolist()
    shards = stored(folder)
    assert [len(shard) for shard in shards] == [5, 5, 5, 3]
    for k, shard in enumerate(shards):
        places = order[k * PER_SHARD : (k + 1) * PER_SHARD]
        assert [name for name, _ in shard] == [f"{rank:08d}.jpg" for rank in places]


def test_dealing_is_the_permutation_of_the_seed():
    names = list("abcdefg")
    dealt = deal(names, seed=5, per_shard=3)
    assert [len(entries) for entries in dealt] == [3, 3, 1]
    order = permutation(7, 5).tolist()
    assert [entry for entries in dealt for entry in entries] == [
        (f"{rank:08d}", names[rank]) for rank in order
    ]


def test_manifest_tells_what_is_in_the_folder(folder):
    manifest = Manifest.model_validate_json((folder / MANIFEST).read_bytes())
    assert json.loads((folder / MANIFEST).read_text())["format"] == 1
    assert (manifest.seed, manifest.samples) == (0, COUNT + 1)
    assert manifest.largest_image == (36, 50)
    assert manifest.smallest_image == (9, 24)
    shards = stored(folder)
    assert manifest.image_bytes == sum(len(data) for shard in shards for _, data in shard)
    assert [shard.samples for shard in manifest.shards] == [len(shard) for shard in shards]
    for shard in manifest.shards:
        tar, index = folder / f"{shard.name}.tar", folder / f"{shard.name}.idx"
        assert shard.bytes == tar.stat().st_size
        assert shard.tar_sha256 == file_digest(tar)
        assert shard.index_sha256 == digest(index.read_bytes())


def test_samples_csv_lists_every_sample_in_its_place(source, folder):
    with (folder / SAMPLES).open(newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["key", "shard", "source", "crc32"]
    expected = [
        [name.removesuffix(".jpg"), f"shard-{k:06d}", f"{zlib.crc32(data):08x}"]
        for k, shard in enumerate(stored(folder))
        for name, data in shard
    ]
    assert [[key, shard, crc32] for key, shard, _, crc32 in rows[1:]] == expected
    assert [source.names()[int(key)] for key, *_ in rows[1:]] == [row[2] for row in rows[1:]]


def test_nothing_else_is_in_the_folder(folder):
    shards = [f"shard-{k:06d}.{kind}" for k in range(4) for kind in ("idx", "tar")]
    assert names_in(folder) == [MANIFEST, SAMPLES, *shards]


@pytest.mark.filterwarnings("ignore:Exception ignored in:pytest.PytestUnraisableExceptionWarning")
def test_plain_webdataset_reads_it(folder):
    tars = [str(tar) for tar in ShardSet.open(folder).tars]
    samples = list(webdataset.WebDataset(tars, shardshuffle=False))
    gc.collect()  # webdataset leaves closing its files to the collector, which warns of each
    expected = [member for shard in stored(folder) for member in shard]
    assert [(f"{sample['__key__']}.jpg", sample["jpg"]) for sample in samples] == expected


def test_tar_reads_it(folder, tmp_path):
    require("tar")
    for tar, members in zip(ShardSet.open(folder).tars, stored(folder), strict=True):
        subprocess.run(["tar", "-xf", tar, "-C", tmp_path], check=True)
        assert contents(tmp_path).items() >= dict(members).items()


# The same every time


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_bytes_do_not_depend_on_the_workers(source, folder, tmp_path, workers):
    pack(source, source.names(), tmp_path, per_shard=PER_SHARD, workers=workers)
    assert contents(tmp_path) == contents(folder)


def test_another_seed_gives_another_order_of_the_same_samples(source, folder, tmp_path):
    pack(source, source.names(), tmp_path, per_shard=PER_SHARD, seed=1)
    ours = [member for shard in stored(tmp_path) for member in shard]
    theirs = [member for shard in stored(folder) for member in shard]
    assert ours != theirs
    assert sorted(ours) == sorted(theirs)
    assert ShardSet.open(tmp_path).manifest.seed == 1


def test_progress_ends_at_the_number_of_images(source, tmp_path, monkeypatch):
    monkeypatch.setattr(packing, "COUNT_EVERY", 4)
    reports: list[int] = []
    packed = pack(source, source.names(), tmp_path, progress=reports.append)
    assert reports[-1] == COUNT + 1
    assert reports == sorted(reports)
    assert packed.converted == 1


# Other people's folders, and our own unfinished ones


def test_an_interrupted_run_is_started_again(source, tmp_path):
    leftovers = ["shard-000000.tar", "shard-000000.idx", "shard-000007.idx"]
    partials = ["shard-000001.tar.partial", "shard-000001.idx.partial", "manifest.json.partial"]
    for name in [*leftovers, *partials, SAMPLES, "samples.csv.partial"]:
        (tmp_path / name).write_bytes(b"left over")
    for name in ("README.md", ".gitignore"):
        (tmp_path / name).write_bytes(b"stays")
    pack_few(source, tmp_path)
    shard = ["shard-000000.idx", "shard-000000.tar"]
    assert names_in(tmp_path) == [".gitignore", "README.md", MANIFEST, SAMPLES, *shard]
    assert len(ShardSet.open(tmp_path)) == 3
    assert (tmp_path / "README.md").read_bytes() == b"stays"


def test_a_missing_folder_is_made(source, tmp_path):
    pack_few(source, tmp_path / "a" / "b")
    assert len(ShardSet.open(tmp_path / "a" / "b")) == 3


FOREIGN = [
    "notes.txt",
    "0001.jpg",
    "shard-notes.tar",
    "shard-notes.idx",
    "shard-0.tar.partial",
    "shard-00000.tar",
    "other-000000.tar",
    "manifest.json.bak",
    "shard-000000.tar",  # without our index: another program's
]


@pytest.mark.parametrize("name", FOREIGN)
def test_foreign_folders_are_refused_and_left_alone(source, tmp_path, name):
    for entry in (name, "shard-000001.tar.partial"):
        (tmp_path / entry).write_bytes(b"precious")
    before = contents(tmp_path)
    with pytest.raises(UserError) as error:
        pack_few(source, tmp_path)
    assert error.value.where == f"--out {tmp_path}"
    assert name in error.value.found
    assert contents(tmp_path) == before


def test_complete_sets_are_refused_and_left_alone(source, spare_set):
    before = contents(spare_set.folder)
    with pytest.raises(UserError, match="a complete shard set") as error:
        pack_few(source, spare_set.folder)
    assert f"rm -r {spare_set.folder}" in error.value.remedy
    assert contents(spare_set.folder) == before


def test_a_file_is_refused_and_left_alone(source, tmp_path):
    out = tmp_path / "out"
    out.write_bytes(b"precious")
    with pytest.raises(UserError, match="found   a file"):
        pack_few(source, out)
    assert out.read_bytes() == b"precious"


def test_a_folder_below_a_file_is_refused(source, tmp_path):
    (tmp_path / "file").write_bytes(b"precious")
    with pytest.raises(UserError) as error:
        pack_few(source, tmp_path / "file" / "out")
    assert error.value.where == f"--out {tmp_path / 'file' / 'out'}"


def test_too_little_space_is_refused_before_anything_is_written(source, tmp_path, monkeypatch):
    needed = sum(map(len, PICTURES.values()))
    usage = type(shutil.disk_usage(tmp_path))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**12, 10**12, needed))
    with pytest.raises(UserError, match="GB free"):
        pack(source, source.names()[:COUNT], tmp_path)
    assert names_in(tmp_path) == []
    monkeypatch.setattr(
        shutil, "disk_usage", lambda path: usage(10**12, 10**12, 2 * needed + 10**5)
    )
    pack(source, source.names()[:COUNT], tmp_path)


# Failures on the way


@pytest.mark.parametrize("workers", [1, 2])
def test_an_image_that_does_not_decode_stops_the_packing(tmp_path, workers):
    broken = {"05.jpg": PICTURES["05.jpg"][:-20]}
    source = open_source(write_pictures(tmp_path / "in", PICTURES | broken))
    out = tmp_path / "out"
    with pytest.raises(UserError) as error:
        pack(source, source.names(), out, per_shard=2, workers=workers)
    assert error.value.where == f"{tmp_path / 'in'}: 05.jpg"
    assert "cannot be decoded" in error.value.found
    assert MANIFEST not in names_in(out)
    assert not [name for name in names_in(out) if name.endswith(".partial")]
    with pytest.raises(UserError, match="an unfinished set"):
        ShardSet.open(out)
    write_pictures(tmp_path / "in", PICTURES)  # repaired: the same command goes on
    pack(source, source.names(), out, per_shard=2, workers=workers)
    assert len(ShardSet.open(out)) == COUNT


def test_a_failing_write_is_told_plainly_and_leaves_no_manifest(source, tmp_path, monkeypatch):
    def fail(path, data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(packing, "write_whole", fail)  # in this process: for the manifest
    with pytest.raises(UserError, match="No space left on device") as error:
        pack_few(source, tmp_path)
    assert error.value.where == f"--out {tmp_path}"
    assert MANIFEST not in names_in(tmp_path)
