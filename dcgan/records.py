"""What a run writes down of its progress: a line a tick, a row a step."""

from __future__ import annotations

import csv
import json
import math
from dataclasses import asdict, dataclass
from datetime import timedelta

import numpy as np
import numpy.typing as npt

from dcgan.run import RunFolder
from dcgan.stats import Pace
from dcgan.step import STATISTICS


@dataclass(frozen=True)
class Plan:
    """How long the run is: what turns a count of steps into an epoch and a time left."""

    total_steps: int
    steps_per_epoch: int
    batch_size: int

    def nimg(self, steps: int) -> int:
        """Real images seen after `steps`."""
        return steps * self.batch_size

    def epoch(self, steps: int) -> int:
        """Epochs completed after `steps`."""
        return steps // self.steps_per_epoch


class Records:
    """`stats.jsonl`, `losses.csv`, and the history that the curves are drawn from."""

    def __init__(self, run: RunFolder, plan: Plan) -> None:
        self._run, self._plan = run, plan
        self.history = np.zeros((0, len(STATISTICS)), dtype=np.float32)
        """(steps, 5), in the order of `STATISTICS`."""
        with run.losses_csv.open("w", newline="") as file:
            csv.writer(file).writerow(("step", *STATISTICS))

    def add_tick(self, rows: npt.NDArray[np.float32], pace: Pace) -> str:
        """Record a tick's steps.

        Args:
            rows: (steps of the tick, 5).
            pace: of the tick.

        Returns:
            The status line, in the ancestors' form with the pace added.
        """
        first = len(self.history) + 1
        self.history = np.concatenate([self.history, rows])
        steps = len(self.history)
        means = dict(zip(STATISTICS, rows.mean(axis=0, dtype=np.float64).tolist(), strict=True))
        record = {
            "step": steps,
            "epoch": self._plan.epoch(steps),
            "nimg": self._plan.nimg(steps),
            **{name: mean if math.isfinite(mean) else None for name, mean in means.items()},
            **asdict(pace),
        }
        with self._run.stats.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record, allow_nan=False) + "\n")
        with self._run.losses_csv.open("a", newline="") as file:
            rows_of_text = ([f"{value:.7g}" for value in row] for row in rows.tolist())
            csv.writer(file).writerows((first + i, *row) for i, row in enumerate(rows_of_text))
        return self._status_line(steps, means, pace)

    def _status_line(self, steps: int, means: dict[str, float], pace: Pace) -> str:
        plan = self._plan
        epochs = -(-plan.total_steps // plan.steps_per_epoch)
        left = timedelta(seconds=round((plan.total_steps - steps) * pace.step_ms / 1e3))
        return (
            f"[{plan.epoch(steps)}/{epochs}][{steps % plan.steps_per_epoch}/{plan.steps_per_epoch}]"
            f"  Loss_D: {means['loss_d']:.4f}  Loss_G: {means['loss_g']:.4f}"
            f"  D(x): {means['d_x']:.4f}  D(G(z)): {means['d_gz1']:.4f} / {means['d_gz2']:.4f}"
            f"  {pace.img_per_s:,.0f} img/s  {pace.step_ms:.1f} ms/step"
            f"  data wait {pace.data_wait_pct:.1f}%  {left} left"
        )
