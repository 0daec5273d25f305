"""The statistics of a tick's steps, kept on the device and read once at the end of the tick."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch

from dcgan.step import STATISTICS


class StepRows:
    """A buffer on the device with one row of five statistics per step, as long as a tick.

    The index of the next row is on the device too. So a captured graph, which repeats the same
    operations on the same addresses, writes the next row each time. The capacity is in steps.
    """

    def __init__(self, capacity: int, device: torch.device) -> None:
        self.rows = torch.zeros(capacity, len(STATISTICS), device=device)
        self.place = torch.zeros(1, dtype=torch.int64, device=device)
        # Copies to pinned memory do not block. One table is read while the other is filled.
        self._pinned = [
            torch.zeros(capacity, len(STATISTICS), pin_memory=True)
            for _ in range(2 if device.type == "cuda" else 0)
        ]

    def write(self, row: torch.Tensor) -> None:
        """Store a step's statistics, (5,), without reading them on the host."""
        self.rows.index_copy_(0, self.place, row.unsqueeze(0))
        self.place.add_(1)

    def take(self, count: int) -> Callable[[], npt.NDArray[np.float32]]:
        """Begin to fetch the rows of the `count` steps since the last call, and empty the buffer.

        Returns:
            A function that waits for the rows and returns them, (count, 5). On CUDA, call it
            before the second `take` after this one.
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
        """Return the rows since the last `take`, (steps, 5) on the CPU, and keep them; waits."""
        return self.rows[: int(self.place)].to("cpu", copy=True)

    def restore(self, rows: torch.Tensor) -> None:
        """Fill the buffer with rows that `untaken` returned."""
        self.rows[: len(rows)].copy_(rows)
        self.place.fill_(len(rows))
