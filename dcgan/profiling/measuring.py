"""How loaders are measured, so that none gains by working while no clock runs.

CPU time is that of this process and its living children, since some loaders work in processes.
A loader works ahead of its consumer, so a round begins when all is quiet (every queue is full),
and its CPU clock is read when all is quiet again: as many batches were made as were taken. The
wall clock starts only after as many batches as a loader may have ready have been taken: what it
then shows is the rate of making batches, not that of emptying a queue. Waiting for quiet also
covers the threads of torch, which spin for a moment after each operation.

Contenders take their rounds in turn, and ratios are taken within a round: a neighbour's load that
comes and goes meets all of them alike.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any, Self, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt
import psutil
import torch
from rich.console import Console

from dcgan.cli import progress

T = TypeVar("T")

Figures: TypeAlias = npt.NDArray[np.float64]
"""One figure of each round: arithmetic on two compares them within a round."""

AHEAD_FACTOR = 8
"""A round takes at least this many times the batches that a loader may have ready."""

LEAST_BATCHES = 8
"""In a round of a loader that reads nothing ahead."""

POLL_SECONDS = 0.04
"""Between two looks at the CPU clock; a child's has ticks of 10 ms."""

QUIET_POLLS = 3
"""Looks in a row at which the clock must have stood still."""

QUIET_SHARE = 0.1
"""Share of a core: while the clock moves no faster, it counts as standing still."""

QUIET_TIMEOUT = 60.0
"""Seconds for a loader to fill its queues, at most."""


@dataclass(frozen=True)
class Contender:
    """A loader that takes part, for instance a DataLoader of torch."""

    name: str
    batches: Iterator[Any]
    """Without end."""
    batch_size: int
    ahead: int
    """Batches that it has ready or in the making when nobody takes any, at most."""
    close: Callable[[], object]
    description: str = ""
    """A few words for people."""


@dataclass(frozen=True)
class Round:
    """One contender's turn."""

    batches: int
    """Batches that were timed."""
    img_per_s: float
    cpu_us_per_image: float
    """Microseconds, all threads and processes together."""


def figures(taken: Mapping[str, Sequence[object]], field: str) -> dict[str, Figures]:
    """One field of all rounds, by the name of the contender."""
    return {
        name: np.array([getattr(each, field) for each in rounds]) for name, rounds in taken.items()
    }


@dataclass(frozen=True)
class Spread:
    """One figure over some rounds."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Figures | Sequence[float]) -> Self:
        return cls(float(np.median(values)), float(np.min(values)), float(np.max(values)))


def spreads(values: Mapping[str, Figures]) -> dict[str, Spread]:
    """The spread of each."""
    return {name: Spread.of(each) for name, each in values.items()}


class CpuClock:
    """CPU seconds of this process and of the children that live when the clock is made.

    Those must live on: a process that ends takes its seconds with it.
    """

    def __init__(self) -> None:
        # Found once: a search through all processes takes longer than some rounds
        self._children = psutil.Process().children(recursive=True)

    def read(self) -> float:
        """Seconds of user and system time so far."""
        used = (child.cpu_times() for child in self._children)
        of_children: float = sum(times.user + times.system for times in used)
        return time.process_time() + of_children

    def wait_until_quiet(self, timeout: float = QUIET_TIMEOUT) -> None:
        """Wait until nothing is computed any more.

        Raises:
            TimeoutError: something does not come to rest.
        """
        end = time.monotonic() + timeout
        quiet, used, at = 0, self.read(), time.perf_counter()
        while quiet < QUIET_POLLS:
            if time.monotonic() > end:
                raise TimeoutError(f"processes that still compute after {timeout:g} s")
            time.sleep(POLL_SECONDS)
            used_before, used, before, at = used, self.read(), at, time.perf_counter()
            quiet = quiet + 1 if used - used_before < QUIET_SHARE * (at - before) else 0


def take_turns(turns: Mapping[str, Callable[[], T]], rounds: int) -> dict[str, list[T]]:
    """Let each take its turn in every round, with a bar on a terminal; what each showed, by key."""
    taken: dict[str, list[T]] = {key: [] for key in turns}
    console = Console(stderr=True)
    with progress(console, "measuring", rounds * len(turns), moving=False) as advance:
        for _ in range(rounds):
            for key, turn in turns.items():
                taken[key].append(turn())
                advance()
    return taken


def measure(
    contenders: Iterable[Contender], rounds: int, seconds: float, device: torch.device
) -> dict[str, list[Round]]:
    """Let loaders take their rounds in turn; each is closed at the end.

    Args:
        contenders: the loaders, of different names; may make one after another.
        rounds: for each.
        seconds: that a round lasts at least, about.
        device: where the batches go.

    Returns:
        Each contender's rounds, by its name.
    """
    with ExitStack() as stack:
        opened = []
        for contender in contenders:
            stack.callback(contender.close)
            opened.append(contender)
        lengths = [warm_up(each, seconds, device) for each in opened]
        clock = CpuClock()
        clock.wait_until_quiet()
        turns = {
            each.name: partial(take_round, each, length, clock, device)
            for each, length in zip(opened, lengths, strict=True)
        }
        assert len(turns) == len(opened), "contenders of the same name"
        return take_turns(turns, rounds)


def warm_up(contender: Contender, seconds: float, device: torch.device) -> int:
    """Take a few batches; returns how many make a round.

    That is `AHEAD_FACTOR` times what the contender may have ready, and at least as many as last
    `seconds`.
    """
    take = partial(next, contender.batches)
    repeat(take, contender.ahead + 1, device)
    least = max(LEAST_BATCHES, AHEAD_FACTOR * contender.ahead)
    probe = max(LEAST_BATCHES, 2 * contender.ahead)
    per_batch = repeat(take, probe, device) / probe
    return max(least, math.ceil(seconds / per_batch))


def take_round(contender: Contender, batches: int, clock: CpuClock, device: torch.device) -> Round:
    """Let a contender take its turn; all must be quiet before, and is again afterwards."""
    take = partial(next, contender.batches)
    used = clock.read()
    repeat(take, contender.ahead, device)
    seconds = repeat(take, batches, device)
    clock.wait_until_quiet()
    made = (contender.ahead + batches) * contender.batch_size
    return Round(
        batches=batches,
        img_per_s=batches * contender.batch_size / seconds,
        cpu_us_per_image=1e6 * (clock.read() - used) / made,
    )


def repeat(act: Callable[[], object], times: int, device: torch.device) -> float:
    """Do something so many times; returns the wall seconds until the device has done it too."""
    synchronise(device)
    began = time.perf_counter()
    for _ in range(times):
        act()
    synchronise(device)
    return time.perf_counter() - began


def synchronise(device: torch.device) -> None:
    """Wait for all that was launched on the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
