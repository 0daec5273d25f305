"""A tick's statistics and times: kept on the device while it lasts, read when it is over."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from dcgan.distributed import Ranks
from dcgan.schema import Number
from dcgan.step import STATISTICS


class StepRows:
    """One row of five statistics a step, in a device buffer as long as a tick.

    The place of the next row is on the device too, so that a captured graph, which repeats the
    same writes to the same addresses, writes the next row each time.

    Args:
        capacity: steps in a tick.
        device: of the buffer.
    """

    def __init__(self, capacity: int, device: torch.device) -> None:
        self.rows = torch.zeros(capacity, len(STATISTICS), device=device)
        self.place = torch.zeros(1, dtype=torch.int64, device=device)
        # Copies to pinned memory do not wait. Two tables: one is read while the other is filled.
        self._pinned = [
            torch.zeros(capacity, len(STATISTICS), pin_memory=True)
            for _ in range(2 if device.type == "cuda" else 0)
        ]

    def write(self, row: torch.Tensor) -> None:
        """Keep a step's statistics, (5,); the host does not look at them."""
        self.rows.index_copy_(0, self.place, row.unsqueeze(0))
        self.place.add_(1)

    def take(self, count: int) -> TickRows:
        """Ask for the rows of the `count` steps since the last time, and start anew.

        On CUDA nothing waits; what was asked for must be read before the next but one is.
        """
        rows, arrived = self.rows[:count], None
        if self._pinned:
            self._pinned.reverse()
            host = self._pinned[0][:count]
            host.copy_(rows, non_blocking=True)
            arrived = _recorded_event()
        else:
            host = rows.to("cpu", copy=True)
        self.place.zero_()
        return TickRows(host, arrived)

    def untaken(self) -> torch.Tensor:
        """The rows since the last time, (steps, 5) on the CPU; waits for them, and leaves them."""
        return self.rows[: int(self.place)].to("cpu", copy=True)

    def restore(self, rows: torch.Tensor) -> None:
        """Begin with rows that `untaken` gave."""
        self.rows[: len(rows)].copy_(rows)
        self.place.fill_(len(rows))


@dataclass(frozen=True)
class TickRows:
    """A tick's statistics, perhaps still on their way to the host."""

    host: torch.Tensor
    arrived: torch.cuda.Event | None

    def read(self) -> npt.NDArray[np.float32]:
        """Wait for them: (steps, 5)."""
        if self.arrived is not None:
            self.arrived.synchronize()
        rows: npt.NDArray[np.float32] = self.host.numpy().copy()
        return rows


@dataclass(frozen=True)
class Pace:
    """How fast a tick was."""

    step_ms: float
    img_per_s: float
    data_wait_pct: float
    """Share of the tick's time that the step spent waiting for a batch."""


Instant: TypeAlias = Any
"""The host's time in seconds, a float, or a `torch.cuda.Event`; one clock has one kind of them."""


@dataclass(frozen=True)
class Spent:
    """Seconds that went into steps."""

    seconds: Number = 0.0
    waited: Number = 0.0
    """Of them, for a batch."""


NOTHING_SPENT = Spent()


@dataclass
class Lap:
    """The instants of one tick, whose distances are known once its last step is done."""

    began: Instant
    ended: Instant
    before: Spent = NOTHING_SPENT
    """On steps of the same tick in an earlier process."""
    waits: list[tuple[Instant, Instant]] = field(default_factory=list)
    pauses: list[tuple[Instant, Instant]] = field(default_factory=list)

    def spent(self) -> Spent:
        """Work out the times; on CUDA, only after the tick's rows were read."""
        seconds = _seconds((self.began, self.ended)) - sum(map(_seconds, self.pauses))
        waited = sum(map(_seconds, self.waits))
        return Spent(self.before.seconds + seconds, self.before.waited + waited)

    def pace(self, steps: int, batch_size: int) -> Pace:
        """Work out the pace of so many steps; on CUDA, only after the tick's rows were read."""
        spent = self.spent()
        return Pace(
            step_ms=1e3 * spent.seconds / steps,
            img_per_s=steps * batch_size / spent.seconds,
            data_wait_pct=100 * spent.waited / spent.seconds,
        )


class Clock:
    """Times the steps of a tick without making the device wait.

    On the CPU an instant is the host's time, and the data wait what passes inside `next()`. On
    CUDA, where the host runs ahead, an instant is an event on the stream, and the data wait is the
    stream's idle time from the end of a step to the arrival of the next batch.
    """

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self.restart()

    def restart(self, before: Spent = NOTHING_SPENT) -> None:
        """Begin the first tick, or go on with one that an earlier process began."""
        now = self._now()
        self._lap = Lap(now, now, before)

    def so_far(self) -> Spent:
        """What the tick in progress has cost; waits for the device."""
        self._lap.ended = self._now()
        if self._cuda:
            self._lap.ended.synchronize()
        return self._lap.spent()

    def lap(self) -> Lap:
        """End a tick and begin the next."""
        lap, lap.ended = self._lap, self._now()
        self._lap = Lap(lap.ended, lap.ended)
        return lap

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Surround the call that brings the next batch."""
        began = self._now()  # on CUDA: when the stream has done the last step
        yield
        self._lap.waits.append((began, self._now()))

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Surround what is not training: pictures, files."""
        began = self._now()
        yield
        self._lap.pauses.append((began, self._now()))

    def _now(self) -> Instant:
        return _recorded_event() if self._cuda else time.perf_counter()


class Ticks:
    """Counts and times the steps of a tick, and gives them away when all ranks have theirs.

    Args:
        rows: where the steps leave their statistics.
        batch_size: images in a step, of all ranks.
        device: of the steps.
        ranks: that do them.

    Attributes:
        clock: which times them.
        steps: in all ticks that were taken so far.
    """

    def __init__(self, rows: StepRows, batch_size: int, device: torch.device, ranks: Ranks) -> None:
        self.clock, self.steps = Clock(device), 0
        self._rows, self._batch_size, self._ranks = rows, batch_size, ranks
        self._delay = 1 if device.type == "cuda" else 0
        self._on_their_way: deque[tuple[TickRows, Lap]] = deque()

    def begin(self, steps: int, spent: Spent = NOTHING_SPENT) -> None:
        """Begin a tick after so many steps, or go on with one that an earlier process began."""
        self.steps = steps
        self.clock.restart(spent)

    def take(self, steps: int) -> None:
        """End the tick after so many steps in all; of none, there is no tick."""
        if steps > self.steps:
            self._on_their_way.append((self._rows.take(steps - self.steps), self.clock.lap()))
            self.steps = steps

    def arrived(self, all_of_them: bool) -> Iterator[tuple[npt.NDArray[np.float32], Pace]]:
        """Give the ticks that are there, averaged over the ranks: (steps, 5) and the pace of each.

        Args:
            all_of_them: wait for the last one too; else, on CUDA, it comes a tick later, so that
                nobody waits.
        """
        while len(self._on_their_way) > (0 if all_of_them else self._delay):
            rows, lap = self._on_their_way.popleft()
            numbers = self._ranks.mean(rows.read())
            yield numbers, lap.pace(len(numbers), self._batch_size)


def _seconds(span: tuple[Instant, Instant]) -> float:
    began, ended = span
    passed: float = ended - began if isinstance(began, float) else began.elapsed_time(ended) / 1e3
    return passed


def _recorded_event() -> torch.cuda.Event:
    event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    event.record()
    return event
