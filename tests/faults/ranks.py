"""Two processes that train together, on one host or two, of which one is lost."""

import random
import signal
import sys
import time

from dcgan.rundir.folder import RunFolder
from tests import hosts
from tests.faults.cases import Case
from tests.faults.lab import (
    FOUR_PARTS,
    Blow,
    ImpossibleError,
    Lab,
    Moment,
    Running,
    by,
    line,
)
from tests.faults.runs import (
    EXACT,
    LOG_EVERY,
    STATUS,
    STEPS,
    UNHARMED,
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


class Two(Pair):
    """The same run on two hosts, over a link that may lose packets."""

    loss = 0.0

    def command(self) -> list[object]:
        if obstacle := hosts.why_not():
            raise ImpossibleError(obstacle)
        return [sys.executable, "-m", "tests.hosts", self.lab.folder / "hosts", self.loss]


class KillOne:
    """Kills one of the ranks, and remembers when."""

    def __init__(self, draw: random.Random) -> None:
        self.rank, self.at = str(draw.randrange(2)), 0.0

    def __call__(self, running: Running) -> None:
        hosts.signal_ranks(running.process.pid, signal.SIGKILL, self.rank)
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


def _host_vanishes(lab: Lab) -> str:
    wanted = _whole_pair(lab)
    two = Two(lab, small_set(lab))
    ended = two.go(_moment(lab), by(signal.SIGUSR1))
    if ended.hit and ("error: rank 1 of 2, on host b\n" not in ended.err or ended.status != 1):
        ended.fail("no error that names the host")
    two.end_as(wanted)
    return f"the other ended and named it, then {EXACT}"


def _signal(number: signal.Signals, rank: str) -> Blow:
    return lambda running: hosts.signal_ranks(running.process.pid, number, rank)


def _each_is_lost_in_turn(lab: Lab, number: signal.Signals) -> str:
    wanted = _whole_pair(lab)
    two = Two(lab, small_set(lab))
    for rank in "01":
        ended = two.go(_moment(lab), _signal(number, rank))
        if ended.hit and ended.status != 1:
            ended.fail(f"success without rank {rank}")
        if ended.hit and not all(part in ended.err for part in FOUR_PARTS):
            ended.fail("no error in four parts")
        intact(two.run, least=steps_told(two.run))
    two.end_as(wanted)
    return f"the other ended, then {EXACT}"


def _packets_are_lost(lab: Lab) -> str:
    wanted = _whole_pair(lab)
    two = Two(lab, small_set(lab))
    two.loss = 0.05
    two.go(line(STATUS, 1), lambda running: None)
    two.end_as(wanted)
    return UNHARMED


CASES = (
    Case("one of two ranks killed", _one_dies, 3),
    Case("one of two ranks killed, under --max-restarts", _one_dies_and_is_replaced, 2),
    Case(
        "ranks on two hosts killed, one after the other",
        lambda lab: _each_is_lost_in_turn(lab, signal.SIGKILL),
        1,
    ),
    Case(
        "ranks on two hosts stopped, one after the other",
        lambda lab: _each_is_lost_in_turn(lab, signal.SIGSTOP),
        1,
    ),
    Case("one of two hosts unreachable", _host_vanishes, 2),
    Case("a link between two hosts that loses packets", _packets_are_lost, 1),
)
