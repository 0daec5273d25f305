"""The packing command as people run it: what it prints, how it ends, and never a traceback."""

import gzip
import re
from pathlib import Path

import pytest

from pipeline.shards.shard_set import ShardSet
from tests.archives import tar_of, zip_of
from tests.packing_runs import four_parts, in_process, run_here, run_tool, tree
from tests.pictures import contents, encode, names_in, rows_of, smooth, write_pictures
from tools.make_shards import main

__all__ = ["in_process"]  # a fixture

pytestmark = pytest.mark.usefixtures("in_process")

JPEG = encode(smooth(178, 218))
FACES = {f"img_align_celeba/{number:06d}.jpg": JPEG + bytes([number]) for number in range(1, 13)}


@pytest.fixture
def packed(tmp_path):
    """The command on files in a folder `in`: its exit status, lines of stdout, and stderr."""

    def run(files, *options):
        write_pictures(tmp_path / "in", files)
        status, out, err = run_here(main, "in", *options, cwd=tmp_path)
        return status, out.splitlines(), err

    return run


def test_celebas_zip_becomes_a_shard_set(tmp_path):
    write_pictures(tmp_path / "celeba", {"img_align_celeba.zip": zip_of(FACES)})
    printed = run_tool("make_shards.py", "celeba/", "--workers", 1, cwd=tmp_path)
    shards = ShardSet.open(tmp_path / "shards")
    size = sum(shard.bytes for shard in shards.manifest.shards) / 1e6
    numbers_hidden = re.sub(r"[\d.,]+ s, [\d,]+ img/s", "… s, … img/s", printed)
    assert numbers_hidden.splitlines() == [
        "source  celeba/img_align_celeba.zip: 12 images",
        "packed  12 images of 178×218 pixels: 12 untouched, 0 converted to JPEG",
        f"shards  1 in shards, {size:.1f} MB",
        "time    … s, … img/s",
        "next    dcgan-train --shards shards",
    ]
    assert len(shards) == 12


def test_no_next_command_at_a_size_that_no_net_has(tmp_path, packed):
    options = ("--store", "raw", "--size", "100x75", "--fit", "stretch")
    status, lines, _ = packed({"1.jpg": JPEG}, "--out", tmp_path / "out", *options)
    assert status == 0
    assert lines[-1].startswith("note    dcgan-train does not train at 100x75: ")
    assert "96x80" in lines[-1]


def test_its_options_choose_and_cut(tmp_path, packed):
    files = {f"{kind}/{k}.jpg": JPEG for kind in ("cats", "dogs", "owls") for k in range(4)}
    out = tmp_path / "out [red]" / ("long-" * 20)  # no markup, and no line breaks in a path
    options = ["--classes", "owls, dogs", "--limit", 7, "--per-shard", 3, "--seed", 9]
    png = {"dogs/3.png": encode(smooth(10, 300), "PNG")}
    status, lines, _ = packed(files | png, "--out", out, *options)
    assert status == 0
    manifest = ShardSet.open(out).manifest
    assert (manifest.seed, manifest.samples) == (9, 7)
    assert [shard.samples for shard in manifest.shards] == [3, 3, 1]
    assert lines[0] == "source  in: 7 images"
    assert "7 images of widths 10–178 and heights 218–300: 6 untouched, 1 converted" in lines[1]
    assert lines[-1] == f"next    dcgan-train --shards '{out}'"  # to paste
    chosen = ["dogs/0.jpg", "dogs/1.jpg", "dogs/2.jpg", "dogs/3.jpg", "dogs/3.png"]
    sources = sorted(row[2] for row in rows_of(out / "samples.csv")[1:])
    assert sources == [*chosen, "owls/0.jpg", "owls/1.jpg"]


def test_a_missing_source_is_told_plainly(tmp_path):
    status, out, err = run_here(main, "nope", cwd=tmp_path)
    assert (status, out) == (1, "")
    assert four_parts(err)[:2] == ["SOURCE nope", "no such file or folder"]
    assert names_in(tmp_path) == []


def test_a_second_run_does_not_touch_the_first_ones_set(tmp_path, packed):
    assert packed(FACES)[0] == 0
    before = tree(tmp_path / "shards")
    status, _, err = packed(FACES, "--seed", 1)
    assert status == 1
    assert four_parts(err)[:2] == ["--out shards", "a complete shard set"]
    assert tree(tmp_path / "shards") == before


BAD = {
    "img_align_celeba/000007.jpg": JPEG[:-50],
    "img_align_celeba/000008.jpg": b"<html>",
    "img_align_celeba/000009.jpg": JPEG[:-90],
}


def test_bad_images_are_listed_and_counted_by_kind(tmp_path, packed):
    status, lines, err = packed(FACES | BAD, "--max-rejects", 0.3, "--per-shard", 5)
    assert (status, err) == (0, "")
    assert lines[1:3] == [
        "packed  9 images of 178×218 pixels: 9 untouched, 0 converted to JPEG",
        "reject  2 damaged JPEG, 1 not an image: see shards/rejects.csv",
    ]
    header, *rows = rows_of(tmp_path / "shards" / "rejects.csv")
    assert header == ["source", "reason", "bytes"]
    reasons = ["damaged JPEG (Premature end of JPEG file)", "not an image (a web page)"]
    assert sorted(rows) == [
        [name, reasons[data == b"<html>"], str(len(data))] for name, data in sorted(BAD.items())
    ]
    manifest = ShardSet.open(tmp_path / "shards").manifest
    assert (manifest.samples, manifest.rejected) == (9, 3)


def test_too_many_bad_images_are_an_error_and_the_same_command_goes_on(tmp_path, packed):
    status, _, err = packed(FACES | BAD, "--per-shard", 4)
    assert status == 1
    where, found, wanted, remedy = four_parts(err)
    assert where == "--max-rejects 0.01"
    counts = re.fullmatch(r"([123]) of 12 images are rejected already: (.*)", found)
    assert counts is not None
    assert sum(map(int, re.findall(r"\d+", counts[2]))) == int(counts[1])
    assert re.search(r"^ {10}img_align_celeba/00000\d\.jpg: (damaged|not)", err, re.MULTILINE)
    assert wanted == "at most 0"
    assert "shards/.packing/*.rejects.csv" in remedy
    kept = list((tmp_path / "shards" / ".packing").glob("shard-*.json"))
    status, lines, _ = packed({}, "--per-shard", 4, "--max-rejects", 1)
    assert status == 0
    resumed = re.search(r"(\d+) of them from an earlier run", "\n".join(lines))
    assert (int(resumed[1]) if resumed else 0) == len(kept)
    assert ShardSet.open(tmp_path / "shards").manifest.rejected == 3
    assert not (tmp_path / "shards" / ".packing").exists()


def test_without_checking_damaged_jpegs_go_in_and_the_set_says_so(tmp_path, packed):
    status, lines, _ = packed(FACES | BAD, "--no-check", "--max-rejects", 0.1)
    assert status == 0
    assert "reject  1 not an image: see shards/rejects.csv" in lines  # it had to be converted
    manifest = ShardSet.open(tmp_path / "shards").manifest
    assert (manifest.samples, manifest.rejected, manifest.recipe.checked) == (11, 1, False)


def test_splits_and_attributes_choose_before_limit(tmp_path, packed):
    names = [Path(name).name for name in FACES]
    splits = "".join(f"{name} {number % 2}\n" for number, name in enumerate(names))
    smiles = "".join(f"{name} {1 if number > 3 else -1}\n" for number, name in enumerate(names))
    lists = {"list_eval_partition.txt": splits, "list_attr_celeba.txt": f"12\nSmiling\n{smiles}"}
    options = ["--split", "train", "--where", "Smiling=1", "--limit", 3]
    files = FACES | {name: text.encode() for name, text in lists.items()}
    status, lines, _ = packed(files, *options)
    assert (status, lines[0]) == (0, "source  in: 3 images")
    rows = sorted(rows_of(tmp_path / "shards" / "samples.csv")[1:])
    assert [row[2][-10:] for row in rows] == ["000005.jpg", "000007.jpg", "000009.jpg"]
    assert [row[0] for row in rows] == ["00000000", "00000001", "00000002"]


def test_what_is_not_packed_or_not_new_is_told_in_a_line_each(tmp_path, packed):
    others = {"@eaDir/1.jpg": JPEG, "list.txt": b"", "b.heic": b"", "c.heic": b"", "a.jpg": JPEG}
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "linked.jpg").symlink_to("a.jpg")
    status, lines, err = packed(FACES | others | {"d/a.jpg": JPEG, "e.jfif": JPEG})
    assert (status, err) == (0, "")
    assert lines[:3] == [
        "source  in: 16 images",
        "others  not packed: 2 .heic, 1 .txt, 1 @eaDir",
        "links   1 followed",
    ]
    assert lines[4] == "copies  3 images are copies of others: d/a.jpg of a.jpg"


STORES = {
    "jpeg": (["--store", "jpeg", "--crop", 108, "--size", 32, "--quality", 80], (32, 32)),
    "jpeg-whole": (["--store", "jpeg", "--crop", "none", "--size", 32], (32, 39)),
    "raw": (["--store", "raw"], (64, 64)),
}


@pytest.mark.parametrize(("options", "size"), STORES.values(), ids=STORES)
def test_stores_are_chosen_and_recorded(tmp_path, packed, options, size):
    status, lines, _ = packed(FACES, *options, "--per-shard", 5)
    assert status == 0
    assert lines[1] == f"packed  12 images of {size[0]}×{size[1]} pixels"
    manifest = ShardSet.open(tmp_path / "shards").manifest
    assert manifest.largest_image == manifest.smallest_image == size
    assert manifest.recipe.describe().startswith(" ".join(map(str, options)))


def test_contradicting_options_are_told_before_the_source_is_read(tmp_path):
    status, _, err = run_here(main, "nope", "--size", 64, cwd=tmp_path)
    assert status == 1
    assert four_parts(err)[:2] == ["--size 64", "--store original"]


@pytest.mark.parametrize("kind", ["zip", "tar", "tar.gz"])
def test_workers_read_an_archive_as_this_process_does(tmp_path, kind):
    files = FACES | {"odd.png": encode(smooth(30, 20), "PNG")} | dict([*BAD.items()][:1])
    data = zip_of(files) if kind == "zip" else tar_of(files)
    (tmp_path / "a").write_bytes(gzip.compress(data) if kind == "tar.gz" else data)
    options = ["a", "--per-shard", 3, "--max-rejects", 0.1]
    status, out, _ = run_here(main, *options, "--out", "here", cwd=tmp_path)
    assert status == 0
    assert "11 untouched, 1 converted" in out
    run_tool("make_shards.py", *options, "--out", "there", "--workers", 2, cwd=tmp_path)
    here = contents(tmp_path / "here")
    assert len(here) == 5 * 2 + 3
    assert contents(tmp_path / "there") == here


@pytest.mark.parametrize(
    "words", ["", "in --limit 0", "in --per-shard x", "in --nonsense", "in --store webp"]
)
def test_usage_errors_end_with_2(tmp_path, words):
    status, _, err = run_here(main, *words.split(), cwd=tmp_path)
    assert status == 2
    assert "Error" in err
    assert names_in(tmp_path) == []
