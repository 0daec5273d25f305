"""What packing would take, before it takes it."""

import re
from pathlib import Path

import pytest

import pipeline.packing.estimate
from pipeline.errors import UserError
from pipeline.packing.estimate import estimate
from pipeline.packing.sources.open import open_source
from pipeline.shards.manifest import Recipe, make_recipe
from pipeline.shards.shard_set import ShardSet
from tests.packing_runs import pack_folder, run_here, tree, without_workers
from tests.pictures import CELEBA, encode, names_in, smooth, write_pictures
from tools.make_shards import main

FACES = {f"{number:03d}.jpg": encode(smooth(*CELEBA, number)) for number in range(60)}
BAD = {"bad.jpg": b"<html>", "cut.jpg": FACES["000.jpg"][:-200]}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return write_pictures(tmp_path_factory.mktemp("estimate") / "pictures", FACES)


def estimates(folder, recipe=None):
    source = open_source(folder)
    return estimate(source, source.members(), recipe or Recipe())


OPTIONS = {
    "original": (None, None, None),
    "jpeg": (48, "108", 80),
    "raw": (48, "108", None),
}


@pytest.mark.parametrize("store", ["original", "jpeg", "raw"])
def test_each_row_is_what_packing_really_takes(pictures, tmp_path, store):
    recipe = make_recipe(store, *OPTIONS[store], checked=True)
    rows = {row.options.split()[1]: row for row in estimates(pictures, recipe)}
    assert list(rows) == ["original", "jpeg", "raw"]
    with without_workers():
        pack_folder(pictures, tmp_path / "set", recipe=recipe)
    manifest = ShardSet.open(tmp_path / "set").manifest
    row = rows[store]
    assert row.options == recipe.describe()
    assert row.total_bytes == pytest.approx(sum(s.bytes for s in manifest.shards), rel=0.07)
    assert row.total_bytes == pytest.approx(60 * row.bytes_per_image)
    assert row.decode_rate > 1


def test_size_crop_and_quality_are_those_that_were_asked_for(pictures):
    recipe = make_recipe("jpeg", 48, "108", 80, checked=True)
    assert [row.options for row in estimates(pictures, recipe)] == [
        "--store original --crop none",
        "--store jpeg --crop 108 --size 48 --quality 80",
        "--store raw --crop 108 --size 48",
    ]
    by_default = [row.options for row in estimates(pictures)]
    assert by_default[1:] == [
        "--store jpeg --crop centre --size 64 --quality 95",
        "--store raw --crop centre --size 64",
    ]


def test_a_sample_stands_for_the_whole(pictures, monkeypatch):
    whole = estimates(pictures)
    monkeypatch.setattr(pipeline.packing.estimate, "SAMPLE", 20)
    for row, exact in zip(estimates(pictures), whole, strict=True):
        assert row.total_bytes == pytest.approx(exact.total_bytes, rel=0.15)


def test_bad_images_are_left_out(tmp_path, pictures):
    mixed = write_pictures(tmp_path / "mixed", FACES | BAD)
    for row, clean in zip(estimates(mixed), estimates(pictures), strict=True):
        assert row.bytes_per_image == pytest.approx(clean.bytes_per_image)
        assert row.total_bytes == pytest.approx(clean.total_bytes * 62 / 60)


def test_images_smaller_than_the_crop_are_left_out_where_the_crop_is_made(tmp_path):
    mixed = write_pictures(tmp_path / "mixed", {"a.jpg": FACES["000.jpg"], "b.jpg": SMALL})
    rows = estimates(mixed, make_recipe("raw", 64, "148", None, checked=True))
    assert rows[2].bytes_per_image == 3 * 64 * 64 + 1024
    nothing = estimates(
        write_pictures(tmp_path / "small", {"b.jpg": SMALL}),
        make_recipe("raw", 64, "148", None, checked=True),
    )
    assert nothing[2].total_bytes == 0


SMALL = encode(smooth(70, 70))


def test_a_source_without_one_image_that_decodes_is_refused(tmp_path):
    with pytest.raises(UserError) as caught:
        estimates(write_pictures(tmp_path / "bad", BAD))
    assert caught.value.found == "none of 2 sampled images decodes"


def test_the_command_prints_a_row_a_mode_and_writes_nothing(pictures, tmp_path):
    before = tree(pictures)
    status, printed, _ = run_here(main, pictures, "--estimate", cwd=tmp_path)
    assert status == 0
    lines = printed.splitlines()
    assert lines[0] == f"source  {pictures}: 60 images"
    assert lines[1].split("  ")[0] == "stored as"
    rows = [re.split(r"  +", line.strip()) for line in lines[2:]]
    assert [row[0].split()[1] for row in rows] == ["original", "jpeg", "raw"]
    assert all(
        re.fullmatch(r"[\d,.]+ kB [\d,]+ MB [\d,]+ img/s", " ".join(row[1:])) for row in rows
    )
    assert names_in(tmp_path) == []
    assert tree(pictures) == before


def test_an_unreadable_file_is_told_plainly(tmp_path, monkeypatch):
    source = open_source(write_pictures(tmp_path / "pictures", FACES))
    plain = Path.read_bytes

    def refuse(path):
        if path.name == "007.jpg":
            raise PermissionError(13, "Permission denied", str(path))
        return plain(path)

    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(UserError) as caught:
        estimate(source, source.members(), Recipe())
    assert caught.value.found == "Permission denied"
    assert caught.value.where.endswith("007.jpg")
