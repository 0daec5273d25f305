"""Disks that fill up, and folders that turn out to be read-only."""

import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

from dcgan.rundir.folder import RunFolder
from tests.faults.cases import Case
from tests.faults.harm import fill, make_room
from tests.faults.lab import FailedError, Lab, appears, line
from tests.faults.runs import (
    CLEAR,
    LOG_EVERY,
    STATUS,
    STEPS,
    UNHARMED,
    Training,
    command,
    evaluating,
    half_done,
    intact,
    packing,
    small_set,
    whole,
)
from tests.packing_runs import tree

ROOM = 80
"""Megabytes: what a run demands before it begins, and some."""


def _fill_under_training(lab: Lab) -> str:
    """At a random line, down to what a checkpoint, a picture or nothing at all fits into."""
    whole(lab)
    disk, shards = lab.small_disk(ROOM), small_set(lab)
    training = Training(lab, shards, disk / "run")
    told = lab.random.randint(1, STEPS // LOG_EVERY - 2)
    left = int(lab.random.choice((0, 4e3, 2e4, 1e5, 4e5)))
    ended = training.go(line(STATUS, told), lambda running: fill(disk, left))
    if ended.status == 0:
        ended.fail("a disk that was full and is not mentioned")
    ended.refused()
    intact(training.run, least=told * LOG_EVERY)
    make_room(disk)
    training.go_to_the_end()
    return CLEAR


def _obstructed(lab: Lab, full: bool) -> str:
    """A disk without room, or a folder that nobody may write, when training is to go on."""
    training = half_done(lab, lab.small_disk(ROOM) / "run" if full else None)
    path = training.run.path
    before = tree(path)
    if full:
        fill(path.parent, int(lab.random.choice((0, 1e5, 2e7))))
    else:
        lab.read_only(path)
    lab.faults += 1
    training.go().refused(*(("--run", "MB free") if full else (str(path),)))
    if full:
        make_room(path.parent)
    else:
        lab.writable(path)
    _require(tree(path) == before, "a refused command changed the run")
    training.go_to_the_end()
    return CLEAR


def _fill_under_packing(lab: Lab) -> str:
    words = packing(lab)
    wanted = lab.once("packed", lambda out: lab.run(*words, "--out", out).finished())
    disk = lab.small_disk(2.5 * sum(map(len, tree(wanted).values())) / 1e6)
    out = disk / "set"
    shards = lab.random.randint(1, 12)
    left = int(lab.random.choice((0, 5e3, 5e4)))
    done = lab.run(
        *words,
        *("--out", out),
        at=appears(out, ".packing/shard-*.json", shards),
        do=lambda running: fill(disk, left),
    )
    done.refused()
    _require(not (out / "manifest.json").exists(), "an unfinished set has a manifest")
    _require(len(list(out.glob("*.tar"))) >= shards, "finished shards are gone")
    make_room(disk)
    lab.run(*words, "--out", out).finished()
    _require(tree(out) == tree(wanted), "another set than without a fault")
    return CLEAR


def _reporting(run: Path) -> list[object]:
    return command("report", run)


def _full_under(lab: Lab, words: Callable[[Path], list[object]]) -> str:
    """No room at all from the start, or for a part of what is written."""
    disk = lab.small_disk(ROOM)
    run = RunFolder(disk / "run")
    shutil.copytree(whole(lab).path, run.path)
    run.report.write_text("an older report")
    run.metrics.write_text('{"nimg": 8, "metric": "swd", "value": 1.0}\n')
    before = tree(run.path)
    fill(disk, int(lab.random.choice((0, 0, 5e3))))
    lab.faults += 1
    lab.run(*words(run.path)).refused(str(disk))
    kept = tree(run.path)
    metrics = kept.pop("metrics.jsonl")
    _require(metrics.startswith(before.pop("metrics.jsonl")), "earlier measurements are gone")
    _require(kept == before, "a command that failed changed the run")
    make_room(disk)
    lab.run(*words(run.path)).finished()
    return "clear error, then success"


def _read_only(lab: Lab, words: Callable[[Path], list[object]]) -> str:
    run = lab.folder / "run"
    shutil.copytree(whole(lab).path, run)
    before = tree(run)
    lab.read_only(run)
    lab.faults += 1
    lab.run(*words(run)).refused(str(run))
    lab.writable(run)
    _require(tree(run) == before, "a command that failed changed the run")
    lab.run(*words(run)).finished()
    return "clear error, then success"


def _read_only_set(lab: Lab) -> str:
    """Nothing needs to be written beside the images."""
    whole(lab)
    shards = lab.folder / "set"
    shutil.copytree(small_set(lab), shards)
    lab.read_only(shards)
    lab.faults += 1
    Training(lab, shards).go_to_the_end()
    return UNHARMED


def _require(holds: bool, what: str) -> None:
    if not holds:
        raise FailedError(what)


CASES = (
    Case("disk full under training", _fill_under_training, 3),
    Case("disk full before training goes on", partial(_obstructed, full=True), 1),
    Case("disk full under packing", _fill_under_packing, 3),
    Case("disk full under evaluation", partial(_full_under, words=evaluating), 1),
    Case("disk full under the report", partial(_full_under, words=_reporting), 1),
    Case("run folder read-only when training goes on", partial(_obstructed, full=False), 1),
    Case("run folder read-only under evaluation", partial(_read_only, words=evaluating), 1),
    Case("run folder read-only under the report", partial(_read_only, words=_reporting), 1),
    Case("shard set read-only under training", _read_only_set, 1),
)
