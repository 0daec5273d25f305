"""A shard set that has changed by a bit, a sample or a file: always noticed, and named."""

import csv
import hashlib
import io
import json
import shutil
import zlib
from pathlib import Path

import numpy as np
import pytest

from pipeline.packing import plan
from pipeline.shards.manifest import MANIFEST, REJECTS, SAMPLES
from pipeline.shards.shard_set import ShardSet
from pipeline.shards.tar import TarWriter, index_text
from pipeline.verify import samples, verify
from tests.packing_runs import pack_folder, without_workers
from tests.three_sets import faults, original, sets, store

__all__ = ["original", "sets", "store"]  # fixtures
from tests.pictures import (
    CELEBA,
    encode,
    names_in,
    numbered,
    numbered_pictures,
    smooth,
    write_pictures,
)


@pytest.mark.parametrize("decoding", [False, True])
def test_a_set_as_it_was_packed_has_no_faults(sets, store, decoding):
    shards, read = ShardSet.open(sets / store), []

    def track(each):
        for shard in each:
            yield shard
            read.append(shard)

    findings = verify(shards, decoding=decoding, track=track)
    assert findings.faults == []
    assert read == list(shards.manifest.shards)
    assert len(read) == 3
    side = {"original": 32, "jpeg": 24, "raw": 16}[store]
    assert findings.sizes == {(side, side): 12}
    assert findings.rejects["not an image"] == 1
    assert findings.rejects.total() == 2
    assert findings.image_bytes == shards.manifest.image_bytes


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("seed", 1),
        ("samples", 13),
        ("rejected", 1),
        ("rejected", 3),
        ("image_bytes", 12),
        ("largest_image", [32, 33]),
        ("smallest_image", [31, 32]),
    ],
)
def test_what_the_manifest_says_is_compared_with_what_is_there(original, field, value):
    manifest = json.loads((original / MANIFEST).read_bytes())
    (original / MANIFEST).write_text(json.dumps(manifest | {field: value}))
    found = faults(original)
    assert len(found) == 1
    assert SAMPLES in found[0] or MANIFEST in found[0]


@pytest.mark.parametrize("store", ["jpeg", "raw"])
def test_another_size_than_the_stored_one(sets, tmp_path, store):
    folder = Path(shutil.copytree(sets / store, tmp_path / "set"))
    manifest = json.loads((folder / MANIFEST).read_bytes())
    manifest["recipe"]["size"] += 1
    (folder / MANIFEST).write_text(json.dumps(manifest))
    size = manifest["recipe"]["size"]
    assert faults(folder) == [f"{MANIFEST}: the stored images are not of size {size}"]


def rewrite(folder, number, members):
    """Write a shard anew, its index and the manifest's row to match: only the tables disagree."""
    stream, name = io.BytesIO(), f"shard-{number:06d}"
    tar = TarWriter(stream)
    for key, data in members:
        tar.add(key, "jpg", data)
    tar.finish()
    (folder / f"{name}.tar").write_bytes(stream.getvalue())
    (folder / f"{name}.idx").write_bytes(tar.index().encode())
    manifest = json.loads((folder / MANIFEST).read_bytes())
    manifest["shards"][number] |= {
        "bytes": tar.size,
        "tar_sha256": tar.sha256.hexdigest(),
        "index_sha256": hashlib.sha256(tar.index().encode()).hexdigest(),
    }
    (folder / MANIFEST).write_text(json.dumps(manifest))


def members(folder, number):
    return list(samples(folder / f"shard-{number:06d}.tar"))


def test_a_key_twice_in_a_shard(original):
    first, second, *others = members(original, 0)
    rewrite(original, 0, [first, (first[0], second[1]), *others])
    assert f"shard-000000: sample {first[0]} occurs twice" in faults(original)


def test_a_key_in_two_shards(original):
    stray = members(original, 0)[0]
    rewrite(original, 1, [stray, *members(original, 1)[1:]])
    found = faults(original)
    assert f"shard-000001: sample {stray[0]} is in another shard, too" in found
    assert f"{SAMPLES}: sample {stray[0]} is in shard-000001, not in shard-000000" in found


def test_samples_swapped_between_shards(original):
    here, there = members(original, 0), members(original, 1)
    rewrite(original, 0, [there[0], *here[1:]])
    rewrite(original, 1, [here[0], *there[1:]])
    assert faults(original) == [
        f"{SAMPLES}: sample {there[0][0]} is in shard-000000, not in shard-000001",
        f"{SAMPLES}: sample {here[0][0]} is in shard-000001, not in shard-000000",
    ]


def test_the_bytes_of_two_samples_swapped(original):
    (one, data), (other, its), *others = members(original, 0)
    rewrite(original, 0, [(one, its), (other, data), *others])
    assert faults(original) == [
        f"{SAMPLES}: another CRC-32 for sample {key} than that in shard-000000"
        for key in (one, other)
    ]


def test_another_order_within_a_shard(original):
    rewrite(original, 0, members(original, 0)[::-1])
    assert faults(original) == [f"{MANIFEST}: the samples' order is not that of seed 0"]


def test_a_set_that_was_never_shuffled(tmp_path, monkeypatch):
    with monkeypatch.context() as patched, without_workers():
        patched.setattr(plan, "permutation", lambda count, seed: np.arange(count))
        pictures = write_pictures(tmp_path / "pictures", numbered_pictures(12))
        pack_folder(pictures, tmp_path / "set", per_shard=5)
    assert faults(tmp_path / "set") == [f"{MANIFEST}: the samples' order is not that of seed 0"]


def test_a_sample_missing_from_its_shard(original):
    gone, *others = members(original, 2)
    rewrite(original, 2, others)
    count = len(others)
    assert faults(original) == [f"shard-000002: {count} samples instead of {count + 1}"]
    assert gone not in others


def test_a_sample_that_nobody_knows(original):
    rewrite(original, 2, [*members(original, 2), ("00000099", numbered(5))])
    found = faults(original)
    assert found[0] == f"{SAMPLES}: no whole row for sample 00000099 of shard-000002"


@pytest.mark.parametrize("suffix", ["tar", "idx"])
def test_a_missing_or_shortened_file(original, suffix):
    path = original / f"shard-000001.{suffix}"
    path.write_bytes(path.read_bytes()[:-1])
    assert "shard-000001" in faults(original)[0]
    path.unlink()
    assert "no such file" in faults(original)[0]


@pytest.mark.parametrize(
    "damage", [b"", b"\x00\xff", b"key,shard\n", b'key,shard,source,crc32\n"' + b"x" * 200_000]
)
def test_a_table_of_samples_that_is_damaged(original, damage):
    (original / SAMPLES).write_bytes(damage)
    assert SAMPLES in faults(original)[0]


def test_a_missing_table(original):
    (original / SAMPLES).unlink()
    assert SAMPLES in faults(original)[0]


def test_a_missing_list_of_rejects(original):
    (original / REJECTS).unlink()
    assert faults(original) == [f"{REJECTS}: 0 images, but {MANIFEST} says 2 rejected"]


@pytest.mark.parametrize(
    ("table", "name"), [(SAMPLES, b",003.jpg,"), (REJECTS, b"bad.jpg,")], ids=[SAMPLES, REJECTS]
)
def test_another_source_name_in_a_table(original, table, name):
    data = (original / table).read_bytes()
    assert name in data
    (original / table).write_bytes(data.replace(name, name.replace(b"jpg", b"jpe")))
    assert faults(original) == [f"{table}: other contents than {MANIFEST} says (SHA-256)"]


def test_a_set_from_before_tables_had_digests_is_the_same_set(original):
    now = ShardSet.open(original).fingerprint
    manifest = json.loads((original / MANIFEST).read_bytes())
    assert {manifest.pop("samples_sha256"), manifest.pop("rejects_sha256")} == {
        hashlib.sha256((original / table).read_bytes()).hexdigest() for table in (SAMPLES, REJECTS)
    }
    (original / MANIFEST).write_text(json.dumps(manifest))
    assert faults(original) == []
    before = ShardSet.open(original)
    assert before.fingerprint == now
    assert not {SAMPLES, REJECTS} & before.manifest.digests.keys()


def test_an_index_of_another_tar(original):
    with (original / "shard-000000.idx").open("ab") as index:
        index.write(b"jpg 0 1 9.jpg\n")
    data = (original / "shard-000000.idx").read_bytes()
    manifest = json.loads((original / MANIFEST).read_bytes())
    manifest["shards"][0]["index_sha256"] = hashlib.sha256(data).hexdigest()
    (original / MANIFEST).write_text(json.dumps(manifest))
    assert faults(original) == ["shard-000000: the index does not fit the tar"]
    assert data.startswith(index_text(original / "shard-000000.tar").encode())


def test_decoding_finds_an_image_that_was_never_whole(original):
    (key, _), *others = members(original, 0)
    cut = numbered(1)[:-30]
    rewrite(original, 0, [(key, cut), *others])
    with (original / SAMPLES).open(newline="") as table:
        rows = [
            [*row[:3], f"{zlib.crc32(cut):08x}"] if row[0] == key else row
            for row in csv.reader(table)
        ]
    with (original / SAMPLES).open("w", newline="") as table:
        csv.writer(table).writerows(rows)
    found = faults(original, decoding=True)
    assert len(found) == 1
    assert found[0].startswith(f"shard-000000: sample {key} does not decode: damaged ")
    assert not any("decode" in fault for fault in faults(original))


def test_sizes_are_counted(tmp_path):
    shapes = [CELEBA, CELEBA, (40, 30), (30, 40), (1, 1)]
    files = {f"{number}.png": encode(smooth(*shape), "PNG") for number, shape in enumerate(shapes)}
    with without_workers():
        pack_folder(write_pictures(tmp_path / "pictures", files), tmp_path / "set")
    findings = verify(ShardSet.open(tmp_path / "set"), decoding=True)
    assert findings.sizes == {CELEBA: 2, (40, 30): 1, (30, 40): 1, (1, 1): 1}
    assert findings.faults == []
    assert REJECTS not in names_in(tmp_path / "set")
