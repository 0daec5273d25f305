"""Training, packing and evaluation ended by signals, at moments of all kinds."""

import random
import shutil
import signal
from functools import partial
from pathlib import Path

from dcgan.rundir.folder import RunFolder
from pipeline.errors import UserError
from pipeline.packing.outdir import LOCK
from pipeline.shards.shard_set import ShardSet
from tests.faults.cases import Case
from tests.faults.lab import (
    Blow,
    FailedError,
    Lab,
    Moment,
    after,
    appears,
    by,
    interrupted_twice,
    line,
)
from tests.faults.runs import (
    EXACT,
    LOG_EVERY,
    STATUS,
    STEPS,
    Training,
    evaluating,
    intact,
    packing,
    small_set,
    steps_told,
    whole,
)
from tests.packing_runs import tree

SECONDS = 4.0
"""Which a command takes, about: moments are drawn from as many."""

KILLS = 3
"""In succession, before a command may finish."""


def a_blow(draw: random.Random) -> Blow:
    """Any way to end a command from outside."""
    kinds = (
        *(by(signal.SIGKILL), by(signal.SIGKILL), by(signal.SIGTERM), by(signal.SIGINT)),
        interrupted_twice(draw.uniform(0, 0.1)),
    )
    return draw.choice(kinds)


# Training


def _by_time(lab: Lab, run: RunFolder) -> Moment:
    return after(lab.random.uniform(0.05, 1.5 * SECONDS))


def _by_line(lab: Lab, run: RunFolder) -> Moment:
    return line(STATUS, lab.random.randint(1, STEPS // LOG_EVERY // KILLS))


def _by_file(lab: Lab, run: RunFolder) -> Moment:
    """While a file is being written, or as soon as it is."""
    patterns = (
        *("samples", "log.txt", "config.json*", "losses.csv.partial", "tensorboard/*"),
        *("reals.png*", "losses.png.partial", "progress.gif*", "samples/*.partial"),
        *("checkpoints/*.pt", "checkpoints/*.pt.partial", "checkpoints/*.json.partial"),
        "netG*.partial",
    )
    return appears(run.path, lab.random.choice(patterns))


def _train(lab: Lab, moment) -> str:
    whole(lab)
    training = Training(lab, small_set(lab))
    for _ in range(KILLS):
        ended = training.go(moment(lab, training.run), a_blow(lab.random))
        if ended.hit:
            ended.plain()
        intact(training.run, least=steps_told(training.run))
    training.go_to_the_end()
    return EXACT


# Packing


def _packing(lab: Lab, out: Path) -> list[object]:
    return [*packing(lab), "--out", out]


def packed(lab: Lab) -> Path:
    """The set of one machine that nobody harms."""
    return lab.once("packed", lambda out: lab.run(*_packing(lab, out)).finished())


def _pack(lab: Lab) -> str:
    wanted, out = packed(lab), lab.folder / "set"
    draw = lab.random
    for _ in range(KILLS):
        there = len(list(out.glob(".packing/shard-*.json")))
        moments = (
            after(draw.uniform(0.05, SECONDS / 2)),
            appears(out, ".packing/shard-*.json", there + draw.randint(1, 5)),
            appears(out, ".packing/shard-*.json", there + draw.randint(1, 5)),
            appears(
                out, draw.choice(("*.tar.partial", "samples.csv*", "labels.npy*", "manifest.json*"))
            ),
        )
        ended = lab.run(*_packing(lab, out), at=draw.choice(moments), do=a_blow(draw))
        if ended.hit:
            ended.plain()
        there_too = (".packing/", LOCK)  # what is not swept away yet
        found = {name: data for name, data in tree(out).items() if not name.startswith(there_too)}
        if _is_complete(out) and found != tree(wanted):
            ended.fail("a set that readers take for complete, and is not")
    ended = lab.run(*_packing(lab, out)).plain()
    if ended.status:  # it was killed after the last shard
        ended.refused("a complete shard set")
    if tree(out) != tree(wanted):
        raise FailedError("another set than without a fault")
    return EXACT


def _is_complete(out: Path) -> bool:
    try:
        ShardSet.open(out)
    except UserError:
        return False
    return True


# Evaluation


def _evaluated(lab: Lab) -> Path:
    def make(folder: Path) -> None:
        shutil.copytree(whole(lab).path, folder, dirs_exist_ok=True)
        lab.run(*evaluating(folder)).finished()

    return lab.once("evaluated", make)


def _evaluate(lab: Lab) -> str:
    wanted, run = RunFolder(_evaluated(lab)), RunFolder(lab.folder / "run")
    shutil.copytree(whole(lab).path, run.path)
    draw = lab.random
    for _ in range(KILLS):
        moments = (
            after(draw.uniform(0.05, 1.5 * SECONDS)),
            line("net ", 1),
            appears(run.path, draw.choice(("metrics.jsonl", "neighbours.png*"))),
        )
        lab.run(*evaluating(run.path), at=draw.choice(moments), do=a_blow(draw)).plain()
    before = len(run.metrics.read_bytes().splitlines()) if run.metrics.exists() else 0
    lab.run(*evaluating(run.path)).finished()
    lines = run.metrics.read_text().splitlines()[before:]
    if lines != wanted.metrics.read_text().splitlines():
        raise FailedError(f"other numbers than without a fault: {lines}")
    for path in (run.neighbours, run.generator, run.stats, run.config):
        if path.read_bytes() != (wanted.path / path.name).read_bytes():
            raise FailedError(f"{path.name} is another one than without a fault")
    return EXACT


CASES = (
    Case("training ended by a signal, at a random time", partial(_train, moment=_by_time), 2),
    Case("training ended by a signal, at a random line", partial(_train, moment=_by_line), 2),
    Case("training ended by a signal, while it writes a file", partial(_train, moment=_by_file), 4),
    Case("packing ended by a signal", _pack, 6),
    Case("evaluation ended by a signal", _evaluate, 2),
)
