"""The statistics of a tick's steps: kept on the device while it lasts, read when it is over."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch

from dcgan.step.adversarial import STATISTICS


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

    def take(self, count: int) -> Callable[[], npt.NDArray[np.float32]]:
        """Ask for the rows of the `count` steps since the last time, and start anew.

        Returns:
            A function that waits for the rows and returns them, (count, 5). On CUDA, call it
            before the next but one `take`.
        """
        rows, arrived = self.rows[:count], None
        if self._pinned:
            self._pinned.reverse()
            host = self._pinned[0][:count]
            host.copy_(rows, non_blocking=True)
            arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
            arrived.record()
        else:
            host = rows.to("cpu", copy=True)
        self.place.zero_()

        def read() -> npt.NDArray[np.float32]:
            if arrived is not None:
                arrived.synchronize()
            return host.numpy().copy()

        return read

    def untaken(self) -> torch.Tensor:
        """The rows since the last time, (steps, 5) on the CPU; waits for them, and leaves them."""
        return self.rows[: int(self.place)].to("cpu", copy=True)

    def restore(self, rows: torch.Tensor) -> None:
        """Begin with rows that `untaken` gave."""
        self.rows[: len(rows)].copy_(rows)
        self.place.fill_(len(rows))
