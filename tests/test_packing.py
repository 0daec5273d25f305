"""Packing: the bytes, their keys and places, sameness, rejects, and what no set is made of."""

import gc
import json
import subprocess
import zlib

import pytest
import webdataset

import pipeline.packing.merge
from pipeline import files
from pipeline.errors import UserError
from pipeline.files import digest, file_digest
from pipeline.packing.pack import Packing, pack
from pipeline.packing.sources.open import open_source
from pipeline.shards.manifest import MANIFEST, SAMPLES, Manifest, Recipe
from pipeline.shards.shard_set import ShardSet
from tests.needs import require
from tests.packing_runs import in_process
from tests.pictures import contents, encode, names_in, rows_of, smooth, stored, write_pictures

__all__ = ["in_process"]  # a fixture

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
    pack(source, source.members(), out, Packing(per_shard=PER_SHARD))
    return out


def names_of(source):
    return [member.name for member in source.members()]


def samples_of(folder):
    """Every stored sample: name → bytes."""
    return dict(sample for shard in stored(ShardSet.open(folder)) for sample in shard)


# What is in a shard


def test_jpegs_go_in_untouched_under_the_rank_of_their_name(source, folder):
    samples = samples_of(folder)
    assert len(samples) == COUNT + 1
    for rank, name in enumerate(names_of(source)[:COUNT]):
        assert samples[f"{rank:08d}.jpg"] == PICTURES[name]
    assert samples[f"{COUNT:08d}.jpg"].startswith(b"\xff\xd8")  # the PNG


def test_manifest_tells_what_is_in_the_folder(folder):
    manifest = Manifest.model_validate_json((folder / MANIFEST).read_bytes())
    assert json.loads((folder / MANIFEST).read_text())["format"] == 1
    assert (manifest.seed, manifest.samples, manifest.rejected) == (0, COUNT + 1, 0)
    assert manifest.recipe == Recipe()
    assert manifest.largest_image == (36, 50)
    assert manifest.smallest_image == (9, 24)
    shards = stored(ShardSet.open(folder))
    assert manifest.image_bytes == sum(len(data) for shard in shards for _, data in shard)
    assert [shard.samples for shard in manifest.shards] == [len(shard) for shard in shards]
    for shard in manifest.shards:
        tar, index = folder / f"{shard.name}.tar", folder / f"{shard.name}.idx"
        assert shard.bytes == tar.stat().st_size
        assert shard.tar_sha256 == file_digest(tar)
        assert shard.index_sha256 == digest(index.read_bytes())


def test_samples_csv_lists_every_sample_in_its_place(source, folder):
    header, *rows = rows_of(folder / SAMPLES)
    assert header == ["key", "shard", "source", "crc32"]
    expected = [
        [name.removesuffix(".jpg"), f"shard-{k:06d}", f"{zlib.crc32(data):08x}"]
        for k, shard in enumerate(stored(ShardSet.open(folder)))
        for name, data in shard
    ]
    assert [[key, shard, crc32] for key, shard, _, crc32 in rows] == expected
    assert [names_of(source)[int(key)] for key, *_ in rows] == [row[2] for row in rows]


def test_nothing_else_is_in_the_folder(folder):
    shards = [f"shard-{k:06d}.{kind}" for k in range(4) for kind in ("idx", "tar")]
    assert names_in(folder) == [MANIFEST, SAMPLES, *shards]


@pytest.mark.filterwarnings("ignore:Exception ignored in:pytest.PytestUnraisableExceptionWarning")
def test_plain_webdataset_reads_it(folder):
    tars = [str(tar) for tar in ShardSet.open(folder).tars]
    samples = list(webdataset.WebDataset(tars, shardshuffle=False))
    gc.collect()  # webdataset leaves closing its files to the collector, which warns of each
    assert {f"{sample['__key__']}.jpg": sample["jpg"] for sample in samples} == samples_of(folder)


def test_tar_reads_it(folder, tmp_path):
    require("tar")
    for tar in ShardSet.open(folder).tars:
        subprocess.run(["tar", "-xf", tar, "-C", tmp_path], check=True)
    assert contents(tmp_path) == samples_of(folder)


# The same every time


@pytest.mark.usefixtures("in_process")
def test_another_seed_gives_another_order_of_the_same_samples(source, folder, tmp_path):
    pack(source, source.members(), tmp_path, Packing(per_shard=PER_SHARD, seed=1))
    ours, theirs = samples_of(tmp_path), samples_of(folder)
    assert list(ours) != list(theirs)
    assert ours == theirs
    assert ShardSet.open(tmp_path).manifest.seed == 1


def test_progress_ends_at_the_number_of_images(source, tmp_path):
    reports: list[tuple[int, int]] = []
    packed = pack(
        source, source.members(), tmp_path, Packing(), lambda *counts: reports.append(counts)
    )
    assert reports[-1] == (COUNT + 1, COUNT + 1)
    assert reports == sorted(reports)
    assert (packed.converted, packed.rejected, packed.resumed) == (1, {}, 0)
    assert packed.written == COUNT + 1


@pytest.mark.usefixtures("in_process")
def test_a_failing_write_is_told_plainly_and_leaves_no_manifest(source, tmp_path, monkeypatch):
    whole = files.write_whole

    def fail(path, data):
        if path.name == MANIFEST:
            raise OSError(28, "No space left on device")
        whole(path, data)

    monkeypatch.setattr(pipeline.packing.merge, "write_whole", fail)
    with pytest.raises(UserError, match="No space left on device") as error:
        pack(source, source.members()[:3], tmp_path, Packing())
    assert error.value.where == str(tmp_path)
    assert MANIFEST not in names_in(tmp_path)
