"""Worker processes that are killed, stopped or orphaned, and sources that do not hold still."""

import os
import shutil
import signal
import subprocess
import sys
import tarfile
import zipfile
from functools import partial

import pytest

from pipeline.errors import UserError
from pipeline.packing.pack import Packing, _prepare
from pipeline.packing.shard import Work, shard_name, write_shard
from pipeline.packing.sources.open import open_source
from pipeline.processes import Workers
from pipeline.shards.manifest import make_recipe
from tests.packing_runs import (
    SHARED_MEMORY,
    TOOLS,
    evaluated,
    finished_shards,
    four_parts,
    in_process,
    needs_proc,
    pack_folder,
    packing,
    state,
    tree,
    waited,
    with_shared_memory,
    without_workers,
)
from tests.pictures import encode, names_in, numbered, numbered_pictures, smooth, write_pictures

__all__ = ["in_process"]  # a fixture


@pytest.fixture(scope="module")
def slow_to_pack(tmp_path_factory):
    """Eighty pictures that take about 10 ms each; in shards of eight."""
    data = encode(smooth(900, 900))
    files = {f"{number:03d}.jpg": data + bytes(number) for number in range(80)}
    return write_pictures(tmp_path_factory.mktemp("slow") / "pictures", files)


def command(pictures, out, *more):
    return [pictures, "--out", out, "--per-shard", 8, "--workers", 2, *more]


def assert_goes_on(pictures, out, resumed):
    """The same set, packed on by this process, is complete."""
    with without_workers():
        assert pack_folder(pictures, out, per_shard=8).resumed >= resumed
    files = [f"{shard_name(number)}.{suffix}" for number in range(10) for suffix in ("idx", "tar")]
    assert names_in(out) == sorted(["manifest.json", "samples.csv", *files])


def test_any_number_of_workers_gives_the_same_bytes(tmp_path):
    files = numbered_pictures(40) | {"bad.jpg": b"no image"}
    pictures = write_pictures(tmp_path / "pictures", files)
    for workers in (1, 3):
        pack_folder(pictures, tmp_path / f"{workers}", per_shard=7, workers=workers, max_rejects=1)
    first = tree(tmp_path / "1")
    assert len(first) == 2 * 6 + 3
    assert tree(tmp_path / "3") == first


@needs_proc
def test_a_killed_worker_is_told_plainly_and_the_same_command_goes_on(slow_to_pack, tmp_path):
    out = tmp_path / "set"
    with packing(*command(slow_to_pack, out)) as run:
        assert waited(lambda: finished_shards(out) >= 2)
        os.kill(run.workers()[0], signal.SIGKILL)  # as the kernel does when memory runs out
        status, printed = run.end()
        assert run.vanishes(3)
    assert status == 1, printed
    where, found, _, remedy = four_parts(printed)
    assert where == "--workers 2"
    assert found == "a worker process was killed, probably for lack of memory"
    assert "use fewer --workers; the same command goes on" in remedy
    assert state(out) == "unfinished"
    assert_goes_on(slow_to_pack, out, 2)


@pytest.mark.parametrize("kind", SHARED_MEMORY)
def test_shared_memory_is_not_needed(tmp_path, kind):
    pictures = write_pictures(tmp_path / "pictures", numbered_pictures(10))
    pack_folder(pictures, tmp_path / "whole", per_shard=5, workers=2)
    options = [pictures, "--out", tmp_path / "set", "--per-shard", 5, "--workers", 2]
    done = with_shared_memory(kind, [sys.executable, TOOLS / "make_shards.py", *options])
    assert done.returncode == 0, done.stderr
    assert tree(tmp_path / "set") == tree(tmp_path / "whole")


@needs_proc
@pytest.mark.parametrize("moment", [0.2, "packing"])
def test_ctrl_c_ends_at_once_and_the_same_command_goes_on(slow_to_pack, tmp_path, moment):
    out = tmp_path / "set"
    with packing(*command(slow_to_pack, out)) as run:
        if moment == "packing":
            assert waited(lambda: finished_shards(out) >= 2)
        else:  # after the imports, while workers start
            assert waited(lambda: (out / ".packing").exists())
            waited(lambda: False, moment)
        os.killpg(run.process.pid, signal.SIGINT)  # as a terminal does: to the workers too
        status, printed = run.end(10)
        assert run.vanishes(3)
    assert status == 130, printed
    assert "Traceback" not in printed
    assert "stopped; the same command goes on" in printed
    assert state(out) == "unfinished"
    assert not list(out.rglob("*.partial"))
    assert_goes_on(slow_to_pack, out, 2 if moment == "packing" else 0)


@needs_proc
def test_workers_end_with_a_parent_that_was_killed(slow_to_pack, tmp_path):
    with packing(*command(slow_to_pack, tmp_path / "set")) as run:
        assert waited(lambda: finished_shards(tmp_path / "set") >= 1)
        assert len(run.workers()) == 2
        assert run.kill()
        assert run.vanishes(2)


TORCH = "getattr(__import__('sys').modules.get('torch'), 'get_num_threads', lambda: None)()"
"""How many threads a process's torch uses; None where it has no torch."""


@pytest.mark.parametrize(("store", "threads"), [("original", None), ("raw", 1)], ids=str)
def test_workers_load_torch_only_to_resize_and_keep_to_one_core(tmp_path, store, threads):
    source = open_source(write_pictures(tmp_path / "pictures", numbered_pictures(1)))
    recipe = make_recipe(store, None, None, None, checked=True)
    work = Work(source, tmp_path, Packing(recipe), 1)
    with Workers(1, evaluated, partial(_prepare, work)) as workers:
        assert list(workers.run([TORCH])) == [threads]


def zipped(pictures, path):
    with zipfile.ZipFile(path, "w") as archive:
        for picture in sorted(pictures.iterdir()):
            archive.write(picture, picture.name)


def tarred(pictures, path):
    with tarfile.open(path, "w") as archive:
        for picture in sorted(pictures.iterdir()):
            archive.add(picture, picture.name)


def cut_archive(path):
    os.truncate(path, path.stat().st_size // 2)


def rewrite_archive(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def cut_a_picture(folder):
    for picture in folder.iterdir():
        os.truncate(picture, picture.stat().st_size - 10)


def remove(path):
    shutil.rmtree(path) if path.is_dir() else path.unlink()


@pytest.mark.usefixtures("in_process")
@pytest.mark.parametrize(
    ("kind", "harm", "found"),
    [
        ("zip", cut_archive, "it changed while it was being read"),
        ("zip", rewrite_archive, "it changed while it was being read"),
        ("tar", cut_archive, "it changed while it was being read"),
        ("folder", cut_a_picture, "it changed while it was being read"),
        ("folder", remove, "No such file or directory"),
    ],
)
def test_a_source_that_changes_is_no_reject_and_put_back_it_is_gone_on_with(
    tmp_path, monkeypatch, kind, harm, found
):
    pictures = write_pictures(tmp_path / "pictures", numbered_pictures(30))
    source = pictures if kind == "folder" else tmp_path / f"source.{kind}"
    {"zip": zipped, "tar": tarred, "folder": lambda *paths: None}[kind](pictures, source)
    pack_folder(source, tmp_path / "whole", per_shard=4)
    spare = tmp_path / "spare"
    (shutil.copytree if kind == "folder" else shutil.copy2)(source, spare)

    def harm_before_the_third(work, shard):
        if shard[0] == 2:
            harm(source)
        return write_shard(work, shard)

    with monkeypatch.context() as patch:
        patch.setattr("tests.packing_runs.write_shard", harm_before_the_third)
        with pytest.raises(UserError) as caught:
            pack_folder(source, tmp_path / "set", per_shard=4, max_rejects=1)
    assert caught.value.found == found
    assert caught.value.where.startswith(str(source))
    assert "the same command goes on" in caught.value.remedy
    if source.exists():
        remove(source)
    spare.rename(source)
    assert pack_folder(source, tmp_path / "set", per_shard=4, max_rejects=1).resumed == 2
    assert tree(tmp_path / "set") == tree(tmp_path / "whole")


def test_an_error_of_a_worker_arrives_whole(tmp_path):
    files = numbered_pictures(9) | {"bad.jpg": b"no image"}
    pictures = write_pictures(tmp_path / "pictures", files)
    with pytest.raises(UserError, match=r"bad\.jpg") as caught:
        pack_folder(pictures, tmp_path / "set", per_shard=3, workers=2, strict=True)
    assert caught.value.found == "not an image"


MEASURE = """
import multiprocessing, sys
from pathlib import Path
from pipeline.packing.pack import Packing, pack
from pipeline.packing.sources.open import open_source

peaks = {}

def look(*progress):
    for pid in ["self", *(child.pid for child in multiprocessing.active_children())]:
        try:
            lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        except OSError:
            continue
        # not ru_maxrss: it begins with that of the process that started this one
        peaks.update({pid: int(line.split()[1]) for line in lines if line.startswith("VmHWM")})

def main():
    source = open_source(Path(sys.argv[1]))
    pack(source, source.members(), Path(sys.argv[2]), Packing(workers=2), look)
    look()
    print(peaks.pop("self"), max(peaks.values()))  # KiB

if __name__ == "__main__":
    main()
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_million_images_need_less_than_a_gibibyte(tmp_path):
    few, many = 2_000, 42_000
    data, script = numbered(7, size=8), tmp_path / "measure.py"
    script.write_text(MEASURE)
    peaks = []
    for count in (few, many):
        with zipfile.ZipFile(tmp_path / f"{count}.zip", "w") as archive:
            for number in range(count):
                archive.writestr(f"img_align_celeba/{number:07d}.jpg", data)
        arguments = [tmp_path / f"{count}.zip", tmp_path / f"set-{count}"]
        done = subprocess.run(
            [sys.executable, str(script), *map(str, arguments)],
            env=os.environ | {"PYTHONPATH": str(TOOLS.parent)},
            capture_output=True,
            text=True,
            timeout=200,
            check=True,
        )
        parent, worker = (int(kib) * 1024 for kib in done.stdout.split())
        peaks.append((parent, worker))
    (parent, worker), (parent_of_many, worker_of_many) = peaks
    each = (parent_of_many - parent) / (many - few)
    million = parent_of_many + 2 * worker_of_many + each * (1_000_000 - many)
    print(
        f"parent {parent >> 20} to {parent_of_many >> 20} MiB, {each:.0f} bytes an image;"
        f" worker {worker >> 20} to {worker_of_many >> 20} MiB;"
        f" {million / 2**20:.0f} MiB for a million images and two workers"
    )
    assert million < 2**30
    assert worker_of_many < worker + (32 << 20), "what a worker needs must not grow with the set"
