"""A tick's statistics: kept on the device while it lasts, read once at its end."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from dcgan.step import STATISTICS


class StepRows:
    """One row of five statistics a step, in a device buffer as long as a tick."""

    def __init__(self, capacity: int, device: torch.device) -> None:
        self._rows = torch.zeros(capacity, len(STATISTICS), device=device)
        self.count = 0

    def append(self, row: torch.Tensor) -> None:
        """Keep a step's statistics, (5,); the host does not look at them."""
        self._rows[self.count].copy_(row)
        self.count += 1

    def take(self) -> npt.NDArray[np.float32]:
        """Read all rows, (count, 5), and start anew. Waits for the device."""
        rows: npt.NDArray[np.float32] = self._rows[: self.count].cpu().numpy().copy()
        self.count = 0
        return rows


@dataclass(frozen=True)
class Pace:
    """How fast a tick was."""

    step_ms: float
    img_per_s: float
    data_wait_pct: float
    """Share of the tick's time that the step spent waiting for a batch."""


class Clock:
    """Times the steps of a tick without making the device wait.

    On the CPU the data wait is the host's time inside `next()`. On CUDA, where the host runs ahead,
    it is the stream's idle time from the end of a step to the arrival of the next batch, told by
    events that are read at the tick.
    """

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self.restart()

    def restart(self) -> None:
        """Begin a tick."""
        self._started = time.perf_counter()
        self._paused = self._waited = 0.0
        self._gaps: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []
        self.step_ended()

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Surround the call that brings the next batch."""
        began = time.perf_counter()
        yield
        self._waited += time.perf_counter() - began
        if self._cuda:
            self._gaps.append((self._step_ended, _recorded_event()))

    def step_ended(self) -> None:
        """Mark on the stream from when on it has nothing to do but to wait for a batch."""
        if self._cuda:
            self._step_ended = _recorded_event()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Surround what is not training: pictures, files."""
        began = time.perf_counter()
        yield
        self._paused += time.perf_counter() - began
        self.step_ended()

    def read(self, steps: int, batch_size: int) -> Pace:
        """The tick's pace so far; on CUDA, only after the tick's rows were read."""
        seconds = time.perf_counter() - self._started - self._paused
        waited = self._waited
        if self._cuda:
            waited = sum(ended.elapsed_time(arrived) for ended, arrived in self._gaps) / 1e3
        return Pace(
            step_ms=1e3 * seconds / steps,
            img_per_s=steps * batch_size / seconds,
            data_wait_pct=100 * waited / seconds,
        )


def _recorded_event() -> torch.cuda.Event:
    event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    event.record()
    return event
