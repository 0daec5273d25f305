"""Two processes that train together, of which one is killed."""

import random
import sys
import time

import psutil

from dcgan.rundir.folder import RunFolder
from tests.faults.cases import Case
from tests.faults.lab import (
    FOUR_PARTS,
    Lab,
    Moment,
    Running,
    line,
)
from tests.faults.runs import (
    EXACT,
    LOG_EVERY,
    STATUS,
    STEPS,
    Training,
    differences,
    intact,
    small_set,
    steps_told,
)

WITHIN = 60
"""Seconds after a rank's death within which the others must have ended; torchrun itself gives them
30 before it kills them."""


class Pair(Training):
    """A run of two ranks, started by torchrun."""

    restarts = 0

    def command(self) -> list[object]:
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", 2]
        logs = ["--log-dir", self.lab.folder / "torchrun"]  # else in TMPDIR, where it stays
        # Without the dashes torchrun takes --run for one of its own options
        return [*torchrun, *logs, "--max-restarts", self.restarts, "-m", "--", "dcgan.train"]

    def end_as(self, other: RunFolder) -> None:
        """Demand what a pair that was never harmed comes to."""
        ended = self.go().finished()
        differing = differences(other, self.run, stats=True)
        if differing:
            ended.fail(f"other bytes than without a fault: {', '.join(differing)}")
        intact(self.run, least=STEPS)


def _whole_pair(lab: Lab) -> RunFolder:
    shards = small_set(lab)
    return RunFolder(lab.once("pair", lambda out: Pair(lab, shards, out).go().finished()))


class KillOne:
    """Kills one of the ranks, and remembers when."""

    def __init__(self, draw: random.Random) -> None:
        self.rank, self.at = str(draw.randrange(2)), 0.0

    def __call__(self, running: Running) -> None:
        for child in psutil.Process(running.process.pid).children(recursive=True):
            if child.environ().get("RANK") == self.rank:
                child.kill()
        self.at = time.monotonic()


def _moment(lab: Lab) -> Moment:
    return line(STATUS, lab.random.randint(1, STEPS // LOG_EVERY - 2))


def _one_dies(lab: Lab) -> str:
    wanted = _whole_pair(lab)
    pair, kill = Pair(lab, small_set(lab)), KillOne(lab.random)
    ended = pair.go(_moment(lab), kill)
    seconds = time.monotonic() - kill.at
    if ended.hit and ended.status == 0:
        ended.fail("success without one of the ranks")
    if ended.hit and seconds > WITHIN:
        ended.fail(f"the other rank ended {seconds:.0f} s later")
    # The first one speaks for all, if it lives; torchrun shows a traceback of its own
    if ended.hit and kill.rank == "1" and not all(part in ended.err for part in FOUR_PARTS):
        ended.fail("no error in four parts")
    intact(pair.run, least=steps_told(pair.run))
    pair.end_as(wanted)
    return f"the other ended, then {EXACT}"


def _one_dies_and_is_replaced(lab: Lab) -> str:
    wanted = _whole_pair(lab)
    pair = Pair(lab, small_set(lab))
    pair.restarts = 1
    pair.go(_moment(lab), KillOne(lab.random)).finished()
    pair.end_as(wanted)
    return f"torchrun began again, and they {EXACT}"


CASES = (
    Case("one of two ranks killed", _one_dies, 3),
    Case("one of two ranks killed, under --max-restarts", _one_dies_and_is_replaced, 2),
)
