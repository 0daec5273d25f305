"""How long the steps of a run take."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Any, TypeAlias

import torch
from pydantic import Field

Number = Annotated[float, Field(strict=True, ge=0, le=10**12, allow_inf_nan=False)]
"""A finite number of seconds or of pixel levels, bounded so that it can be printed as a time."""


@dataclass(frozen=True)
class Spent:
    """Seconds that the steps of a tick took."""

    seconds: Number = 0.0
    waited: Number = 0.0
    """The part of `seconds` spent waiting for batches."""

    def step_ms(self, steps: int) -> float:
        """Return the milliseconds per step."""
        return 1e3 * self.seconds / steps

    @property
    def data_wait_pct(self) -> float:
        """The percentage of the time spent waiting for batches."""
        return 100 * self.waited / self.seconds


NOTHING_SPENT = Spent()

Instant: TypeAlias = Any
"""The host's time in seconds, a float, or a `torch.cuda.Event`; a clock uses one of the two."""


class Clock:
    """Times the steps of a tick without making the device wait.

    On the CPU an instant is the host's time, and the data wait is the time that passes inside
    `next()`. On CUDA, where the host runs ahead, an instant is an event on the stream, and the data
    wait is the stream's idle time from the end of a step to the arrival of the next batch.
    """

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self.restart()

    def restart(self, before: Spent = NOTHING_SPENT) -> None:
        """Begin the first tick, or continue one that an earlier process began."""
        self._begin(self._now(), before)

    def _begin(self, now: Instant, before: Spent) -> None:
        self._began, self._before = now, before
        self._waits: list[tuple[Instant, Instant]] = []
        self._pauses: list[tuple[Instant, Instant]] = []

    def so_far(self) -> Spent:
        """Return the time spent on the tick in progress; waits for the device."""
        now = self._now()
        if self._cuda:
            now.synchronize()
        return self._spent_until(now)()

    def lap(self) -> Callable[[], Spent]:
        """End a tick and begin the next.

        Returns:
            A function that computes the time spent on the tick. On CUDA, call it after the tick's
            rows have been read.
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
        """Count the time of this block as data wait; it surrounds the fetching of a batch."""
        began = self._now()  # on CUDA: when the stream has finished the last step
        yield
        self._waits.append((began, self._now()))

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leave out the time of this block, which is not training: pictures, files."""
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
