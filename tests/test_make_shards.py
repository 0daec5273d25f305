"""The packing command as people run it: what it prints, how it ends, and never a traceback."""

import itertools
import os
import re
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest

from pipeline.manifest import MANIFEST, ShardSet
from tests.pictures import encode, names_in, smooth, write_pictures

SCRIPT = Path(__file__).parent.parent / "tools" / "make_shards.py"
JPEG = encode(smooth(178, 218))
FACES = {f"img_align_celeba/{number:06d}.jpg": JPEG for number in range(1, 13)}


def command(*arguments):
    return [sys.executable, str(SCRIPT), *map(str, arguments), "--workers", "1"]


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
    assert "7 images of 10×218 to 178×300 pixels: 6 untouched, 1 converted" in lines[1]
    assert lines[-1] == f"next    dcgan-train --shards {out}"
    rows = (out / "samples.csv").read_text().splitlines()[1:]
    chosen = ["dogs/0.jpg", "dogs/1.jpg", "dogs/2.jpg", "dogs/3.jpg", "dogs/3.png"]
    assert sorted(row.split(",")[2] for row in rows) == [*chosen, "owls/0.jpg", "owls/1.jpg"]


def four_parts(stderr):
    """The error's four parts, or a failure where they are not all there."""
    where, *parts = stderr.splitlines()
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


def test_a_second_run_does_not_touch_the_first_ones_set(tmp_path):
    write_pictures(tmp_path / "in", FACES)
    assert make_shards("in", cwd=tmp_path).returncode == 0
    before = {path: path.stat() for path in (tmp_path / "shards").iterdir()}
    done = make_shards("in", "--seed", 1, cwd=tmp_path)
    assert done.returncode == 1
    assert four_parts(done.stderr)[:2] == ["--out shards", "a complete shard set"]
    assert {path: path.stat() for path in (tmp_path / "shards").iterdir()} == before


def test_a_damaged_image_is_named_and_no_set_is_made(tmp_path):
    write_pictures(tmp_path / "in", FACES | {"img_align_celeba/000007.jpg": JPEG[:-50]})
    done = make_shards("in", cwd=tmp_path)
    assert done.returncode == 1
    where, found, _, _ = four_parts(done.stderr)
    assert where == "in: img_align_celeba/000007.jpg"
    assert found.startswith("cannot be decoded (")
    assert names_in(tmp_path / "shards") == []


@pytest.mark.parametrize(
    "arguments",
    [[], ["in", "--limit", "0"], ["in", "--per-shard", "x"], ["in", "--nonsense"]],
    ids=["nothing", "limit-0", "per-shard-x", "unknown"],
)
def test_usage_errors_end_with_2(tmp_path, arguments):
    done = make_shards(*arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert "Error: " in done.stderr
    assert names_in(tmp_path) == []


def test_ctrl_c_leaves_no_set_and_the_same_command_starts_again(tmp_path):
    big = encode(smooth(800, 800))
    write_pictures(tmp_path / "in", {f"{number:04d}.jpg": big for number in range(400)})
    out = tmp_path / "shards"
    arguments = ["in", "--per-shard", 40]
    with subprocess.Popen(
        command(*arguments),
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        for _ in itertools.takewhile(lambda _: process.poll() is None, range(600)):
            if (out / "shard-000001.tar").exists():
                break
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the workers too
        _, stderr = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "Traceback" not in stderr
    assert "shard-000000.tar" in names_in(out)
    assert MANIFEST not in names_in(out)
    assert not [name for name in names_in(out) if name.endswith(".partial")]
    assert make_shards(*arguments, "--limit", 50, cwd=tmp_path).returncode == 0
    assert len(ShardSet.open(out)) == 50
