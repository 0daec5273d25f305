"""What a run writes down of its progress: a line a tick, a row a step."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import numpy.typing as npt

from dcgan.run import RunFolder, append_line, read_lines
from dcgan.stats import Pace
from dcgan.step import STATISTICS
from pipeline.files import write_whole


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
        self._run, self.plan = run, plan
        self.history = np.zeros((0, len(STATISTICS)), dtype=np.float32)
        self.last: dict[str, Any] = {}
        """The last tick's line of `stats.jsonl`."""

    @property
    def history(self) -> npt.NDArray[np.float32]:
        """(steps, 5), in the order of `STATISTICS`."""
        return self._room[: self._steps]

    @history.setter
    def history(self, rows: npt.NDArray[np.float32]) -> None:
        self._room, self._steps = rows, len(rows)

    def _remember(self, rows: npt.NDArray[np.float32]) -> None:
        """Add to the history; the room doubles, so that a tick of a long run costs no more."""
        steps = self._steps + len(rows)
        if steps > len(self._room):
            room = np.zeros((2 * steps, len(STATISTICS)), dtype=np.float32)
            room[: self._steps] = self.history
            self._room = room
        self._room[self._steps : steps] = rows
        self._steps = steps

    def begin(self, nimg: int) -> None:
        """Have the files say what is known by now, and nothing of steps that will be done again.

        Args:
            nimg: images seen so far. Rollbacks stay told even if they were later.
        """
        run, told = self._run, len(self.history)
        text = io.StringIO(newline="")
        csv.writer(text).writerow(("step", *STATISTICS))
        _write_rows(text, 1, self.history)
        write_whole(run.losses_csv, text.getvalue().encode())
        _keep_lines(run.stats, lambda tick: tick.get("step", 0) <= told)
        for path in (run.metrics, run.alarms):
            _keep_lines(
                path,
                lambda line: (line.get("nimg") or 0) <= nimg or line.get("action") == "rollback",
            )

    def add_alarm(self, steps: int, kind: str, message: str, action: str) -> None:
        """Record an alarm, unless a process before this one did, after the last checkpoint."""
        alarm = {"step": steps, "nimg": self.plan.nimg(steps), "kind": kind}
        alarm |= {"message": message, "action": action}
        if action == "rollback" or alarm not in read_lines(self._run.alarms):
            append_line(self._run.alarms, alarm)

    def add_tick(self, rows: npt.NDArray[np.float32], pace: Pace) -> str:
        """Record a tick's steps.

        Args:
            rows: (steps of the tick, 5).
            pace: of the tick.

        Returns:
            The status line, in the ancestors' form with the pace added.
        """
        first = len(self.history) + 1
        self._remember(rows)
        steps = len(self.history)
        means = dict(zip(STATISTICS, rows.mean(axis=0, dtype=np.float64).tolist(), strict=True))
        record = {
            "step": steps,
            "epoch": self.plan.epoch(steps),
            "nimg": self.plan.nimg(steps),
            **{name: mean if math.isfinite(mean) else None for name, mean in means.items()},
            **asdict(pace),
        }
        append_line(self._run.stats, record)
        with self._run.losses_csv.open("a", newline="") as file:
            _write_rows(file, first, rows)
        self.last = record
        return self._status_line(steps, means, pace)

    def _status_line(self, steps: int, means: dict[str, float], pace: Pace) -> str:
        plan = self.plan
        epochs = -(-plan.total_steps // plan.steps_per_epoch)
        left = timedelta(seconds=round((plan.total_steps - steps) * pace.step_ms / 1e3))
        return (
            f"[{plan.epoch(steps)}/{epochs}][{steps % plan.steps_per_epoch}/{plan.steps_per_epoch}]"
            f"  Loss_D: {means['loss_d']:.4f}  Loss_G: {means['loss_g']:.4f}"
            f"  D(x): {means['d_x']:.4f}  D(G(z)): {means['d_gz1']:.4f} / {means['d_gz2']:.4f}"
            f"  {pace.img_per_s:,.0f} img/s  {pace.step_ms:.1f} ms/step"
            f"  data wait {pace.data_wait_pct:.1f}%  {left} left"
        )


def _keep_lines(path: Path, wanted: Callable[[dict[str, Any]], bool]) -> None:
    if path.exists():
        kept = [json.dumps(record) + "\n" for record in read_lines(path) if wanted(record)]
        write_whole(path, "".join(kept).encode())


def _write_rows(file: TextIO, first: int, rows: npt.NDArray[np.float32]) -> None:
    rows_of_text = ([f"{value:.7g}" for value in row] for row in rows.tolist())
    csv.writer(file).writerows((first + i, *row) for i, row in enumerate(rows_of_text))
