"""A shard set as a source: its images as if the pictures themselves were packed again."""

import pytest

from pipeline.shards.manifest import PROGRESS
from pipeline.shards.shard_set import ShardSet
from tests.archives import changed
from tests.packing_runs import four_parts, in_process, run_here, tree
from tests.pictures import encode, smooth, write_pictures
from tools.make_shards import main

__all__ = ["in_process"]  # a fixture

pytestmark = pytest.mark.usefixtures("in_process")

PICTURES = {
    f"{kind}/{number}.jpg": encode(smooth(40, 48, number + 9 * (kind == "b")))
    for kind in "ab"
    for number in range(6)
}
BAD = {"a/3.jpg": PICTURES["a/3.jpg"][:-30], "b/9.jpg": b"<html>"}
OPTIONS = ["--max-rejects", 0.5, "--per-shard", 5]


def run(folder, *words):
    status, out, err = run_here(main, *words, *OPTIONS, cwd=folder)
    return out if status == 0 else four_parts(err)


@pytest.fixture
def sets(tmp_path):
    """A folder of pictures, two of them bad, its `original` set, and its `raw` set."""
    write_pictures(tmp_path / "pictures", PICTURES | BAD)
    run(tmp_path, "pictures", "--labels", "folders", "--out", "original")
    run(tmp_path, "pictures", "--labels", "folders", "--out", "raw", "--store", "raw", "--size", 32)
    assert ShardSet.open(tmp_path / "raw").manifest.rejected == 2
    return tmp_path


def test_an_original_set_becomes_raw_as_its_pictures_would(sets):
    out = run(sets, "original", "--out", "again", "--store", "raw", "--size", 32)
    assert "source  original: 13 images" in out
    assert "reject  1 damaged JPEG, 1 not an image" in out
    assert tree(sets / "again") == tree(sets / "raw")


def test_raw_stays_as_it_is_and_is_the_default(sets):
    run(sets, "raw", "--out", "again")
    assert tree(sets / "again") == tree(sets / "raw")


@pytest.mark.parametrize("cut", [["--crop", 36], ["--fit", "pad"]], ids=str)
def test_a_sets_own_cut_is_kept_until_another_is_asked_for(sets, cut):
    run(sets, "pictures", *cut, "--out", "cut")
    run(sets, "cut", "--store", "raw", "--size", 32, "--out", "again")
    run(sets, "pictures", *cut, "--store", "raw", "--size", 32, "--out", "directly")
    assert len(tree(sets / "directly")) > 4
    assert tree(sets / "again") == tree(sets / "directly")


REFUSED = {
    "enlarged": (["raw", "--size", 64], "--size 64", "raw holds images of 32×32 pixels"),
    "no-original": (["raw", "--store", "original"], "--store original", "raw holds no originals"),
    "two-recipes": (["raw", "original"], "SOURCE raw original", "shard sets of different recipes"),
}


@pytest.mark.parametrize(("words", "where", "found"), REFUSED.values(), ids=REFUSED)
def test_what_was_cut_is_not_enlarged_nor_called_original(sets, words, where, found):
    parts = run(sets, *words, "--out", "new")
    assert (parts[0], parts[1][: len(found)]) == (where, found)
    assert not (sets / "new").exists()


def test_a_sample_that_changed_is_a_reject(sets):
    tar = sets / "original" / "shard-000000.tar"
    data = tar.read_bytes()
    tar.write_bytes(changed(data, 700, data[700] ^ 1))
    assert "1 unreadable" in run(sets, "original", "--out", "again")


def test_a_reject_brings_no_class_of_its_own(sets):
    run(sets, "original", "--classes", "b", "--out", "again")  # one of which is a reject
    labels = ShardSet.open(sets / "again").manifest.labels
    assert labels is not None
    assert (labels.names, labels.counts) == (("b",), (6,))


TABLES = {
    # table, what becomes of its lines, what is found
    "row-lost": ("samples.csv", lambda lines: lines[:-1], "does not fit the shards"),
    "row-added": (
        "samples.csv",
        lambda lines: [*lines, b"99999999,shard-000000,x.jpg,0\r\n"],
        "12 samples instead of 11",
    ),
    "moved": (
        "samples.csv",
        lambda lines: [line.replace(b"shard-000001", b"shard-000000") for line in lines],
        "is in shard-000001, not in shard-000000",
    ),
    "half-a-reject": (
        "rejects.csv",
        lambda lines: [*lines[:-1], b"a/3.jpg,damaged\r\n"],
        "not enough values",
    ),
    "no-rejects": ("rejects.csv", lambda lines: lines[:1], "0 rejects instead of 2"),
}


@pytest.mark.parametrize(("name", "change", "found"), TABLES.values(), ids=TABLES)
def test_a_table_that_does_not_fit_is_refused(sets, name, change, found):
    table = sets / "original" / name
    table.write_bytes(b"".join(change(table.read_bytes().splitlines(keepends=True))))
    parts = run(sets, "original", "--out", "again")
    assert (parts[0], found in parts[1]) == ("SOURCE original", True), parts


def test_an_unfinished_set_is_no_source(sets):
    (sets / "original" / "manifest.json").unlink()
    (sets / "original" / PROGRESS).mkdir()
    assert "an unfinished set" in run(sets, "original", "--out", "again")[1]
