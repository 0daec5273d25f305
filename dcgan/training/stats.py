"""How long a run is, and how long its steps take."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Any, TypeAlias

import torch
from pydantic import Field

Number = Annotated[float, Field(strict=True, ge=0, le=10**12, allow_inf_nan=False)]
"""Seconds, or levels: as many as a time can be told of."""


@dataclass(frozen=True)
class Plan:
    """The length of a run: turns a count of steps into images seen and epochs."""

    total_steps: int
    steps_per_epoch: int
    batch_size: int

    def nimg(self, steps: int) -> int:
        """Real images seen after `steps`."""
        return steps * self.batch_size

    def epoch(self, steps: int) -> int:
        """Epochs completed after `steps`."""
        return steps // self.steps_per_epoch


@dataclass(frozen=True)
class Spent:
    """Seconds that the steps of a tick took."""

    seconds: Number = 0.0
    waited: Number = 0.0
    """Of them, for a batch."""

    def step_ms(self, steps: int) -> float:
        """Milliseconds a step."""
        return 1e3 * self.seconds / steps

    @property
    def data_wait_pct(self) -> float:
        """Share of the time that was spent waiting for a batch."""
        return 100 * self.waited / self.seconds


NOTHING_SPENT = Spent()

Instant: TypeAlias = Any
"""The host's time in seconds, a float, or a `torch.cuda.Event`; one clock has one kind of them."""


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
        self._begin(self._now(), before)

    def _begin(self, now: Instant, before: Spent) -> None:
        self._began, self._before = now, before
        self._waits: list[tuple[Instant, Instant]] = []
        self._pauses: list[tuple[Instant, Instant]] = []

    def so_far(self) -> Spent:
        """What the tick in progress has cost; waits for the device."""
        now = self._now()
        if self._cuda:
            now.synchronize()
        return self._spent_until(now)()

    def lap(self) -> Callable[[], Spent]:
        """End a tick and begin the next.

        Returns:
            A function that works out what the tick cost; on CUDA, call it after its rows are read.
        """
        now = self._now()
        spent = self._spent_until(now)
        self._begin(now, NOTHING_SPENT)
        return spent

    def _spent_until(self, ended: Instant) -> Callable[[], Spent]:
        began, before, waits, pauses = self._began, self._before, self._waits, self._pauses

        def spent() -> Spent:
            seconds = _seconds((began, ended)) - sum(map(_seconds, pauses))
            waited = sum(map(_seconds, waits))
            return Spent(before.seconds + seconds, before.waited + waited)

        return spent

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Surround the call that brings the next batch."""
        began = self._now()  # on CUDA: when the stream has done the last step
        yield
        self._waits.append((began, self._now()))

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Surround what is not training: pictures, files."""
        began = self._now()
        yield
        self._pauses.append((began, self._now()))

    def _now(self) -> Instant:
        return _recorded_event() if self._cuda else time.perf_counter()


def _seconds(span: tuple[Instant, Instant]) -> float:
    began, ended = span
    passed: float = ended - began if isinstance(began, float) else began.elapsed_time(ended) / 1e3
    return passed


def _recorded_event() -> torch.cuda.Event:
    event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    event.record()
    return event
