"""The packing command as people run it: what it prints, how it ends, and never a traceback."""

import gzip
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from pipeline.shards.manifest import ShardSet
from tests.archives import tar_of, zip_of
from tests.pictures import contents, encode, names_in, rows_of, smooth, write_pictures

SCRIPT = Path(__file__).parent.parent / "tools" / "make_shards.py"
JPEG = encode(smooth(178, 218))
FACES = {f"img_align_celeba/{number:06d}.jpg": JPEG + bytes([number]) for number in range(1, 13)}


def command(*arguments):
    workers = [] if "--workers" in arguments else ["--workers", "1"]
    return [sys.executable, str(SCRIPT), *map(str, arguments), *workers]


def make_shards(*arguments, cwd=None):
    done = subprocess.run(
        command(*arguments), cwd=cwd, capture_output=True, text=True, timeout=60, check=False
    )
    assert "Traceback" not in done.stderr
    assert "Traceback" not in done.stdout
    return done


def test_celebas_zip_becomes_a_shard_set(tmp_path):
    (tmp_path / "celeba").mkdir()
    with zipfile.ZipFile(tmp_path / "celeba" / "img_align_celeba.zip", "w") as archive:
        for name, data in FACES.items():
            archive.writestr(name, data)
    done = make_shards("celeba/", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    shards = ShardSet.open(tmp_path / "shards")
    size = sum(shard.bytes for shard in shards.manifest.shards) / 1e6
    numbers_hidden = re.sub(r"[\d.,]+ s, [\d,]+ img/s", "… s, … img/s", done.stdout)
    assert numbers_hidden.splitlines() == [
        "source  celeba/img_align_celeba.zip: 12 images",
        "packed  12 images of 178×218 pixels: 12 untouched, 0 converted to JPEG",
        f"shards  1 in shards, {size:.1f} MB",
        "time    … s, … img/s",
        "next    dcgan-train --shards shards",
    ]
    assert len(shards) == 12


def test_its_options_choose_and_cut(tmp_path):
    files = {f"{kind}/{k}.jpg": JPEG for kind in ("cats", "dogs", "owls") for k in range(4)}
    png = {"dogs/3.png": encode(smooth(10, 300), "PNG")}
    write_pictures(tmp_path / "in", files | png)
    out = tmp_path / "out [red]" / ("long-" * 20)  # no markup, and no line breaks in a path
    options = ["--classes", "owls, dogs", "--limit", 7, "--per-shard", 3, "--seed", 9]
    done = make_shards(tmp_path / "in", "--out", out, *options)
    assert done.returncode == 0
    manifest = ShardSet.open(out).manifest
    assert (manifest.seed, manifest.samples) == (9, 7)
    assert [shard.samples for shard in manifest.shards] == [3, 3, 1]
    lines = done.stdout.splitlines()
    assert lines[0] == f"source  {tmp_path / 'in'}: 7 images"
    assert "7 images of widths 10–178 and heights 218–300: 6 untouched, 1 converted" in lines[1]
    assert lines[-1] == f"next    dcgan-train --shards '{out}'"  # to paste
    rows = (out / "samples.csv").read_text().splitlines()[1:]
    chosen = ["dogs/0.jpg", "dogs/1.jpg", "dogs/2.jpg", "dogs/3.jpg", "dogs/3.png"]
    assert sorted(row.split(",")[2] for row in rows) == [*chosen, "owls/0.jpg", "owls/1.jpg"]


def four_parts(stderr):
    """The error's four parts, or a failure where they are not all there."""
    where, *parts = [line for line in stderr.splitlines() if not line.startswith(" " * 10)]
    assert where.startswith("error: ")
    assert [part[:10] for part in parts] == ["  found   ", "  wanted  ", "  do      "]
    assert all(part[10:] for part in parts)
    return [where.removeprefix("error: "), *(part[10:] for part in parts)]


def test_a_missing_source_is_told_plainly(tmp_path):
    done = make_shards("nope", cwd=tmp_path)
    assert done.returncode == 1
    assert done.stdout == ""
    where, found, _, _ = four_parts(done.stderr)
    assert (where, found) == ("SOURCE nope", "no such file or folder")
    assert names_in(tmp_path) == []


def test_an_unknown_class_is_told_plainly(tmp_path):
    write_pictures(tmp_path / "in", FACES)
    done = make_shards("in", "--classes", "cats", cwd=tmp_path)
    assert done.returncode == 1
    where, _, wanted, _ = four_parts(done.stderr)
    assert (where, wanted) == ("--classes cats", "some of: img_align_celeba")
    assert names_in(tmp_path) == ["in"]


def versions(folder):
    """What changes when a file of a folder is written or replaced."""
    status = {path.name: path.stat() for path in folder.iterdir()}
    return {name: (s.st_ino, s.st_size, s.st_mtime_ns, s.st_ctime_ns) for name, s in status.items()}


def test_a_second_run_does_not_touch_the_first_ones_set(tmp_path):
    write_pictures(tmp_path / "in", FACES)
    assert make_shards("in", cwd=tmp_path).returncode == 0
    before = versions(tmp_path / "shards")
    done = make_shards("in", "--seed", 1, cwd=tmp_path)
    assert done.returncode == 1
    assert four_parts(done.stderr)[:2] == ["--out shards", "a complete shard set"]
    assert versions(tmp_path / "shards") == before


BAD = {
    "img_align_celeba/000007.jpg": JPEG[:-50],
    "img_align_celeba/000008.jpg": b"<html>",
    "img_align_celeba/000009.jpg": JPEG[:-90],
}


def test_bad_images_are_listed_and_counted_by_kind(tmp_path):
    write_pictures(tmp_path / "in", FACES | BAD)
    done = make_shards("in", "--max-rejects", 0.3, "--per-shard", 5, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[1:3] == [
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


def test_too_many_bad_images_are_an_error_and_the_same_command_goes_on(tmp_path):
    write_pictures(tmp_path / "in", FACES | BAD)
    done = make_shards("in", "--per-shard", 4, cwd=tmp_path)
    assert done.returncode == 1
    where, found, wanted, remedy = four_parts(done.stderr)
    assert where == "--max-rejects 0.01"
    counts = re.fullmatch(r"([123]) of 12 images are rejected already: (.*)", found)
    assert counts is not None
    assert sum(map(int, re.findall(r"\d+", counts[2]))) == int(counts[1])
    assert re.search(
        r"^ {10}img_align_celeba/00000\d\.jpg: (damaged|not)", done.stderr, re.MULTILINE
    )
    assert wanted == "at most 0"
    assert "shards/.packing/*.rejects.csv" in remedy
    kept = list((tmp_path / "shards" / ".packing").glob("shard-*.json"))
    done = make_shards("in", "--per-shard", 4, "--max-rejects", 1, cwd=tmp_path)
    assert done.returncode == 0
    resumed = re.search(r"(\d+) of them from an earlier run", done.stdout)
    assert (int(resumed[1]) if resumed else 0) == len(kept)
    assert ShardSet.open(tmp_path / "shards").manifest.rejected == 3
    assert not (tmp_path / "shards" / ".packing").exists()


def test_strict_ends_at_a_bad_image(tmp_path):
    write_pictures(tmp_path / "in", FACES | dict([*BAD.items()][:1]))
    done = make_shards("in", "--strict", "--max-rejects", 1, cwd=tmp_path)
    assert done.returncode == 1
    where, found, _, remedy = four_parts(done.stderr)
    assert where == "in: img_align_celeba/000007.jpg"
    assert found == "damaged JPEG (Premature end of JPEG file)"
    assert "rejects.csv" in remedy
    assert not (tmp_path / "shards" / "manifest.json").exists()


def test_without_checking_damaged_jpegs_go_in_and_the_set_says_so(tmp_path):
    write_pictures(tmp_path / "in", FACES | BAD)
    done = make_shards("in", "--no-check", "--max-rejects", 0.1, cwd=tmp_path)
    assert done.returncode == 0
    assert "reject  1 not an image" in done.stdout  # no JPEG: it had to be converted
    manifest = ShardSet.open(tmp_path / "shards").manifest
    assert (manifest.samples, manifest.rejected, manifest.recipe.checked) == (11, 1, False)


def test_splits_and_attributes_choose_before_limit(tmp_path):
    write_pictures(tmp_path / "in", FACES)
    names = [Path(name).name for name in FACES]
    splits = "".join(f"{name} {number % 2}\n" for number, name in enumerate(names))
    smiles = "".join(f"{name} {1 if number > 3 else -1}\n" for number, name in enumerate(names))
    (tmp_path / "in" / "list_eval_partition.txt").write_text(splits)
    (tmp_path / "in" / "list_attr_celeba.txt").write_text(f"12\nSmiling\n{smiles}")
    options = ["--split", "train", "--where", "Smiling=1", "--limit", 3]
    done = make_shards("in", *options, cwd=tmp_path)
    assert done.returncode == 0
    assert done.stdout.splitlines()[0] == "source  in: 3 images"
    rows = rows_of(tmp_path / "shards" / "samples.csv")[1:]
    assert sorted(row[2][-10:] for row in rows) == ["000005.jpg", "000007.jpg", "000009.jpg"]
    assert sorted(row[0] for row in rows) == ["00000000", "00000001", "00000002"]
    done = make_shards("in", "--split", "dev", "--out", "other", cwd=tmp_path)
    assert done.returncode == 1
    assert four_parts(done.stderr)[:2] == ["--split dev", "an unknown split"]


def test_what_is_not_packed_or_not_new_is_told_in_a_line_each(tmp_path):
    others = {"@eaDir/1.jpg": JPEG, "list.txt": b"", "b.heic": b"", "c.heic": b"", "a.jpg": JPEG}
    write_pictures(tmp_path / "in", FACES | others | {"d/a.jpg": JPEG, "e.jfif": JPEG})
    (tmp_path / "in" / "linked.jpg").symlink_to("a.jpg")
    done = make_shards("in", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[:3] == [
        "source  in: 16 images",
        "others  left out: 2 .heic, 1 .txt, 1 @eaDir",
        "links   1 followed",
    ]
    assert lines[4] == "copies  3 images are copies of others: d/a.jpg of a.jpg"


STORES = {
    "jpeg": (["--store", "jpeg", "--crop", 108, "--size", 32, "--quality", 80], (32, 32)),
    "jpeg-whole": (["--store", "jpeg", "--crop", "none", "--size", 32], (32, 39)),
    "raw": (["--store", "raw"], (64, 64)),
}


@pytest.mark.parametrize(("options", "size"), STORES.values(), ids=STORES)
def test_stores_are_chosen_and_recorded(tmp_path, options, size):
    write_pictures(tmp_path / "in", FACES)
    done = make_shards("in", *options, "--per-shard", 5, cwd=tmp_path)
    assert done.returncode == 0
    packed = f"packed  12 images of {size[0]}×{size[1]} pixels"
    assert done.stdout.splitlines()[1] == packed
    manifest = ShardSet.open(tmp_path / "shards").manifest
    assert manifest.largest_image == manifest.smallest_image == size
    assert manifest.recipe.told().startswith(" ".join(map(str, options)))


def test_contradicting_options_are_told_before_the_source_is_read(tmp_path):
    done = make_shards("nope", "--size", 64, cwd=tmp_path)
    assert done.returncode == 1
    assert four_parts(done.stderr)[:2] == ["--size 64", "--store original"]
    assert names_in(tmp_path) == []


@pytest.mark.parametrize("kind", ["zip", "tar", "tar.gz"])
def test_archives_are_packed_with_any_number_of_workers(tmp_path, kind):
    files = FACES | {"odd.png": encode(smooth(30, 20), "PNG")} | dict([*BAD.items()][:1])
    data = zip_of(files) if kind == "zip" else tar_of(files)
    (tmp_path / "a").write_bytes(gzip.compress(data) if kind == "tar.gz" else data)
    for workers in (1, 2, 5):
        options = ["--per-shard", 3, "--max-rejects", 0.1, "--out", f"{workers}"]
        done = make_shards("a", *options, "--workers", workers, cwd=tmp_path)
        assert done.returncode == 0
        assert "11 untouched, 1 converted" in done.stdout
    first = contents(tmp_path / "1")
    assert len(first) == 5 * 2 + 3
    assert contents(tmp_path / "2") == contents(tmp_path / "5") == first


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["in", "--limit", "0"],
        ["in", "--per-shard", "x"],
        ["in", "--nonsense"],
        ["in", "--store", "webp"],
        ["in", "--max-rejects", "1.5"],
        ["in", "--workers", "0"],
    ],
    ids=["nothing", "limit-0", "per-shard-x", "unknown", "store", "share", "workers"],
)
def test_usage_errors_end_with_2(tmp_path, arguments):
    done = make_shards(*arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert "Error" in done.stderr
    assert names_in(tmp_path) == []
