"""The ticks of a run on their way from the device to the status line."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import torch

from dcgan.distributed import Ranks
from dcgan.stats import NOTHING_SPENT, Clock, Lap, Pace, Spent, StepRows, TickRows


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
