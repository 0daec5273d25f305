"""Packing that is cut off, at every step in turn and at random moments, and then goes on."""

import os
import random
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import UserError
from pipeline.images.decode import RejectedError
from pipeline.packing.outdir import LOCK, NEW
from pipeline.shards.manifest import MANIFEST, PROGRESS
from tests.packing_runs import (
    finished_shards,
    in_process,
    needs_proc,
    pack_folder,
    packing,
    run_tool,
    state,
    tree,
    waited,
)
from tests.pictures import encode, numbered_pictures, smooth, write_pictures

__all__ = ["in_process"]  # a fixture


class Killed(BaseException):
    """Stands for SIGKILL: no handler of ours catches it, and no clean-up succeeds after it."""


class Fuse:
    """Lets so many changes of the disk happen, and none after them."""

    def __init__(self, changes: int) -> None:
        self.left = changes
        self.blown = False

    def burn(self) -> None:
        self.blown = self.left == 0
        if self.blown:
            raise Killed
        self.left -= 1


@contextmanager
def cut_after(changes: int) -> Iterator[Fuse]:
    """Within the block, kill this process in mind after so many changes of the disk."""
    fuse = Fuse(changes)

    def fused(change: Callable[..., Any]) -> Callable[..., Any]:
        def attempt(*arguments: Any, **options: Any) -> Any:
            fuse.burn()
            return change(*arguments, **options)

        return attempt

    def fused_open(path: Path, mode: str = "r", *arguments: Any, **options: Any) -> Any:
        if "w" in mode and not fuse.blown and fuse.left == 0:
            with plain_open(path, "wb") as file:
                file.write(b"half of")
        if "w" in mode:
            fuse.burn()
        return plain_open(path, mode, *arguments, **options)

    plain_open = Path.open
    with pytest.MonkeyPatch.context() as patch:
        for name in ("replace", "unlink", "rmdir", "mkdir"):
            patch.setattr(os, name, fused(getattr(os, name)))
        patch.setattr(Path, "open", fused_open)
        yield fuse


EVERY_STEP = 250
"""More changes of the disk than any of these runs makes."""

OPTIONS = {"per_shard": 5, "max_rejects": 0.5}


@pytest.fixture
def pictures(tmp_path):
    """Twelve pictures in three shards, and two files that are none."""
    files = numbered_pictures(12) | {"bad.jpg": b"<html>", "cut.jpg": encode(smooth(32, 32))[:-40]}
    return write_pictures(tmp_path / "pictures", files)


@pytest.mark.usefixtures("in_process")
def test_cut_off_at_every_change_of_the_disk_it_goes_on_to_the_same_set(pictures, tmp_path):
    pack_folder(pictures, tmp_path / "whole", **OPTIONS)
    whole, seen, cuts = tree(tmp_path / "whole"), set(), 0
    for changes in range(EVERY_STEP):
        out = tmp_path / f"set-{changes}"
        with cut_after(changes) as fuse, suppress(Killed):
            pack_folder(pictures, out, **OPTIONS)
        cuts += fuse.blown
        found = state(out)
        seen.add(found)
        if found == "complete":  # the manifest is there: all else must be
            assert {name: data for name, data in tree(out).items() if PROGRESS not in name} == whole
        if fuse.blown:
            go_on(pictures, out, **OPTIONS)
        assert tree(out) == whole, changes
        assert not (out / PROGRESS).exists()
        if not fuse.blown:
            break
    assert cuts > 50
    assert seen == {"nothing", "unfinished", "complete"}


@pytest.mark.usefixtures("in_process")
def test_cut_off_while_replacing_a_set_that_stays_whole_until_the_next_one_is(pictures, tmp_path):
    pack_folder(pictures, tmp_path / "before", per_shard=3, max_rejects=0.5)  # more shards
    options = OPTIONS | {"seed": 1, "overwrite": True}
    pack_folder(pictures, tmp_path / "after", **options)
    before, after = tree(tmp_path / "before"), tree(tmp_path / "after")
    states = []
    for changes in range(EVERY_STEP):
        out = tmp_path / f"set-{changes}"
        shutil.copytree(tmp_path / "before", out)
        with cut_after(changes) as fuse, suppress(Killed):
            pack_folder(pictures, out, **options)
        left = {name: data for name, data in tree(out).items() if NEW not in name and name != LOCK}
        found = {"complete": "other"}.get(state(out), state(out))
        states.append("before" if left == before else "after" if left == after else found)
        if fuse.blown:
            go_on(pictures, out, **options)
        assert tree(out) == after, changes
        assert not (out / NEW).exists()
        if not fuse.blown:
            break
    in_order = [
        found for found, last in zip(states, [None, *states], strict=False) if found != last
    ]
    assert in_order == ["before", "unfinished", "after"]
    assert states.count("before") > 30


def go_on(pictures, out, **options):
    """Run the same again; only where all but the clean-up was done may it be refused."""
    try:
        return pack_folder(pictures, out, **options)
    except UserError as error:
        if error.found != "a complete shard set":
            raise


@pytest.mark.usefixtures("in_process")
def test_a_change_of_sets_that_was_cut_off_is_finished_without_packing_again(pictures, tmp_path):
    pack_folder(pictures, tmp_path / "set", **OPTIONS)
    options = OPTIONS | {"seed": 1, "overwrite": True}
    for changes in range(EVERY_STEP):
        with cut_after(changes), suppress(Killed):
            pack_folder(pictures, tmp_path / "set", **options)
        if state(tmp_path / "set") == "unfinished":
            break
    assert state(tmp_path / "set") == "unfinished"
    done = pack_folder(pictures, tmp_path / "set", **options)
    assert (done.written, done.resumed) == (0, 3)


@pytest.mark.usefixtures("in_process")
def test_an_error_keeps_finished_shards_and_leaves_nothing_half_written(
    pictures, tmp_path, monkeypatch
):
    pack_folder(pictures, tmp_path / "whole", **OPTIONS)
    full = OSError(28, "No space left on device")

    def open_until_full(path, *arguments, **options):
        if path.name == "shard-000001.idx.partial":
            raise full
        return plain_open(path, *arguments, **options)

    plain_open = Path.open
    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", open_until_full)
        with pytest.raises(UserError, match="No space left on device") as caught:
            pack_folder(pictures, tmp_path / "set", **OPTIONS)
    assert caught.value.where == str(tmp_path / "set")
    assert "the same command goes on" in caught.value.remedy
    assert not list((tmp_path / "set").rglob("*.partial"))
    assert finished_shards(tmp_path / "set") == 1
    done = pack_folder(pictures, tmp_path / "set", **OPTIONS)
    assert (done.resumed, done.written) == (1, 9)
    assert tree(tmp_path / "set") == tree(tmp_path / "whole")


@pytest.mark.usefixtures("in_process")
def test_strict_names_a_reject_of_a_shard_that_was_finished_without_it(
    pictures, tmp_path, monkeypatch
):
    with pytest.raises(UserError, match="are rejected already"):
        pack_folder(pictures, tmp_path / "set", per_shard=5)
    assert finished_shards(tmp_path / "set") >= 1
    with pytest.raises(UserError, match=r"(bad|cut)\.jpg") as caught:
        pack_folder(pictures, tmp_path / "set", per_shard=5, strict=True)
    assert "--strict is given" in caught.value.wanted
    assert isinstance(caught.value, ValueError)
    assert not isinstance(caught.value, RejectedError)


@pytest.fixture(scope="module")
def slow_to_pack(tmp_path_factory):
    """Two hundred pictures that take about 10 ms each; the set of them as it must come out."""
    folder = tmp_path_factory.mktemp("slow")
    drawn = [encode(smooth(900, 900, seed)) for seed in range(5)]
    files = {f"{number:03d}.jpg": drawn[number % 5] + bytes(number) for number in range(200)}
    write_pictures(folder / "pictures", files)
    started = time.monotonic()
    run_tool("make_shards.py", *command(folder / "pictures", folder / "whole"))
    return folder / "pictures", tree(folder / "whole"), time.monotonic() - started


def command(pictures, out, *more):
    return [pictures, "--out", out, "--per-shard", 8, "--workers", 2, *more]


def killed_at_random(run, out, draw, seconds):
    """Kill a run at a moment that is drawn: of time, or just after a shard was finished."""
    if draw.random() < 0.3:
        waited(lambda: run.process.poll() is not None, draw.uniform(0.1, seconds))
    else:
        build = out / NEW if (out / MANIFEST).exists() else out
        aim = min(finished_shards(build) + draw.randint(1, 5), 25)
        waited(lambda: finished_shards(build) >= aim or run.process.poll() is not None, seconds)
        time.sleep(draw.uniform(0, 0.03))
    return run.kill()


def kill_often(slow_to_pack, tmp_path, kills):
    """Kill the command so often, going on each time; returns the shards finished at each kill."""
    pictures, whole, seconds = slow_to_pack
    draw, sets = random.Random(kills), 0
    counts: list[int] = []
    while len(counts) < kills:
        out = tmp_path / f"set-{sets}"
        with packing(*command(pictures, out)) as run:
            killed = killed_at_random(run, out, draw, seconds)
            assert run.vanishes(3), "workers outlive their parent"
        if killed:
            counts.append(finished_shards(out))
            assert state(out) != "complete" or MANIFEST in tree(out)
        if not killed or state(out) == "complete" or len(counts) == kills:
            if state(out) != "complete" or (out / PROGRESS).exists():
                run_tool("make_shards.py", *command(pictures, out))
            assert tree(out) == whole
            sets += 1
    return counts


@needs_proc
def test_killed_three_times_it_ends_with_the_same_set(slow_to_pack, tmp_path):
    counts = kill_often(slow_to_pack, tmp_path, 3)
    assert any(counts), "no kill came late enough"


@needs_proc
@pytest.mark.slow
def test_killed_thirty_times_it_ends_with_the_same_set(slow_to_pack, tmp_path):
    counts = kill_often(slow_to_pack, tmp_path, 30)
    print(f"shards finished at each kill: {counts}")
    assert len(counts) == 30
    assert sum(0 < count < 25 for count in counts) >= 10, counts
    assert len(set(counts)) >= 6, counts


@needs_proc
@pytest.mark.slow
def test_killed_while_overwriting_the_set_before_stays_readable(slow_to_pack, tmp_path):
    pictures, whole, seconds = slow_to_pack
    run_tool("make_shards.py", *command(pictures, tmp_path / "before", "--seed", 5))
    before, out, draw = tree(tmp_path / "before"), tmp_path / "set", random.Random(1)
    shutil.copytree(tmp_path / "before", out)
    kills = 0
    while kills < 10:
        with packing(*command(pictures, out, "--overwrite")) as run:
            killed = killed_at_random(run, out, draw, seconds)
            assert run.vanishes(3)
        # A killed process leaves its lock file; the system has let go of the lock
        aside = (NEW, LOCK)
        left = {name: data for name, data in tree(out).items() if not name.startswith(aside)}
        assert left in (before, whole) or (killed and state(out) == "unfinished")
        kills += killed
        if left == whole:
            shutil.rmtree(out)
            shutil.copytree(tmp_path / "before", out)
    run_tool("make_shards.py", *command(pictures, out, "--overwrite"))
    assert tree(out) == whole
    assert not (out / NEW).exists()
