"""What a run records: a line a tick, a row a step, pictures, events, metrics, alarms."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import numpy as np
import numpy.typing as npt
import torch

from dcgan.nets.models import Generator
from dcgan.options import TrainConfig
from dcgan.rundir.curves import save_losses
from dcgan.rundir.folder import RunFolder, append_line, read_lines
from dcgan.rundir.tensorboard import Events
from dcgan.sampling.animation import save_progress
from dcgan.sampling.generate import generate
from dcgan.sampling.labels import fixed_grid
from dcgan.sampling.pictures import save_grid, save_reals_vs_fakes
from dcgan.step import STATISTICS
from dcgan.training.clock import Spent
from dcgan.training.monitor import Alarm
from dcgan.training.run import Plan
from pipeline.files import write_whole
from pipeline.loading.options import LoaderOptions

if TYPE_CHECKING:
    from dcgan.metrics.swd import SwdMetric


class Records:
    """Writes into a run's folder what is worth keeping of its training."""

    def __init__(
        self, config: TrainConfig, folder: RunFolder, plan: Plan, log: Callable[[str], object]
    ) -> None:
        self._config, self._folder, self._plan, self._log = config, folder, plan, log
        self.history = np.zeros((0, len(STATISTICS)), dtype=np.float32)
        self._grid = fixed_grid(config.nz, config.labels)
        self._events = Events(log)
        self._swd: SwdMetric | None = None

    @property
    def history(self) -> npt.NDArray[np.float32]:
        """(steps, 5), in the order of `STATISTICS`."""
        return self._buffer[: self._steps]

    @history.setter
    def history(self, rows: npt.NDArray[np.float32]) -> None:
        self._buffer, self._steps = rows, len(rows)

    def _remember(self, rows: npt.NDArray[np.float32]) -> None:
        """Add to the history. Its buffer doubles, so that a tick of a long run costs no more."""
        steps = self._steps + len(rows)
        if steps > len(self._buffer):
            buffer = np.zeros((2 * steps, len(STATISTICS)), dtype=np.float32)
            buffer[: self._steps] = self.history
            self._buffer = buffer
        self._buffer[self._steps : steps] = rows
        self._steps = steps

    def begin(self, nimg: int) -> None:
        """Cut the files to the history, where an earlier process wrote of steps to be done again.

        Records of rollbacks stay even if they are of later images than the `nimg` seen so far.
        """
        folder, steps = self._folder, len(self.history)
        text = io.StringIO(newline="")
        csv.writer(text).writerow(("step", *STATISTICS))
        _write_rows(text, 1, self.history)
        write_whole(folder.losses_csv, text.getvalue().encode())
        _keep_lines(folder.stats, lambda tick: tick.get("step", 0) <= steps)
        for path in (folder.metrics, folder.alarms):
            _keep_lines(
                path,
                lambda line: (line.get("nimg") or 0) <= nimg or line.get("action") == "rollback",
            )

    def open_events(self) -> None:
        """Begin to write TensorBoard's events, where it is installed."""
        self._events.open(self._folder.tensorboard, len(self.history), self._config.to_json())

    def add_tick(self, rows: npt.NDArray[np.float32], spent: Spent) -> None:
        """Record the steps of a tick, (steps, 5), and log the status line."""
        first = len(self.history) + 1
        self._remember(rows)
        steps = len(self.history)
        means = dict(zip(STATISTICS, rows.mean(axis=0, dtype=np.float64).tolist(), strict=True))
        record = {
            "step": steps,
            "epoch": self._plan.place(steps)[0],
            "nimg": self._plan.nimg(steps),
            **{name: mean if math.isfinite(mean) else None for name, mean in means.items()},
            "step_ms": spent.step_ms(len(rows)),
            "img_per_s": self._plan.nimg(len(rows)) / spent.seconds,
            "data_wait_pct": spent.data_wait_pct,
        }
        append_line(self._folder.stats, record)
        with self._folder.losses_csv.open("a", newline="") as file:
            _write_rows(file, first, rows)
        self._log(self._status_line(means, record))
        self._events.tick(record)

    def add_alarm(self, alarm: Alarm, action: str) -> None:
        """Record an alarm, unless an earlier process did so after the last checkpoint."""
        line = {"step": alarm.step, "nimg": self._plan.nimg(alarm.step), "kind": alarm.kind}
        line |= {"message": alarm.message, "action": action}
        if action == "rollback" or line not in read_lines(self._folder.alarms):
            append_line(self._folder.alarms, line)
        self._log(f"ALARM    {alarm.kind}: {alarm.message}")

    def show_evidence(self, reals: torch.Tensor, net: Generator) -> None:
        """Save real images and the untrained generator's, so that wrong colours are seen at once.

        The real ones are the first of the run, (N, H, W, C) uint8 on the CPU.
        """
        save_grid(reals, self._folder.reals)
        self._draw(net, self._folder.fakes_init)
        self._events.grid("reals", self._folder.reals, 0)

    def sample(self, net: Generator, steps: int) -> torch.Tensor:
        """Draw and save the sample grid; return its images, (N, H, W, C) uint8 on the CPU."""
        path = self._folder.fakes(self._plan.nimg(steps))
        images = self._draw(net, path)
        self._events.grid("fakes", path, steps)
        self._plot()
        return images

    def _draw(self, net: Generator, path: Path) -> torch.Tensor:
        images = generate(net, self._grid.noise, self._grid.labels)
        save_grid(images, path, names=self._grid.names)
        return images

    def evaluate(self, net: Generator, steps: int) -> float | None:
        """Measure how far the net's pictures are from the set's; None if that was done before."""
        folder, nimg = self._folder, self._plan.nimg(steps)
        name = (folder.generator_average if self._config.ema_nimg else folder.generator).name
        known = [line for line in read_lines(folder.metrics) if line.get("nimg") == nimg]
        if any(line.get("metric") == "swd" and "label" not in line for line in known):
            return None
        record = self._swd_metric().measure(net).record(nimg, name)
        append_line(folder.metrics, record)
        self._log(
            f"SWD      {record['value']:.2f} at {nimg:,} images (× 10³, {record['n']:,} of each;"
            f" real against real {record['floor']:.2f})"
        )
        self._events.metric(record, steps)
        return float(record["value"])

    def finish(self) -> None:
        """Draw the pictures that show the whole run."""
        self._plot()
        grids = self._folder.grids()
        if grids:
            save_progress(grids, self._folder.progress)
        if grids and self._folder.reals.exists():
            save_reals_vs_fakes(self._folder.reals, grids[-1][1], self._folder.reals_vs_fakes)

    def conclude(self, end: str, steps: int, seconds: float) -> None:
        """Log how the run ended, and where its files are.

        The seconds are those of this and all earlier processes.
        """
        log, folder, nimg = self._log, self._folder, self._plan.nimg(steps)
        total = timedelta(seconds=round(seconds))
        log(f"{end}: {steps:,} step{'s'[: steps != 1]}, {nimg:,} images, total time {total}")
        if steps:
            log(f"samples  {folder.fakes(nimg)}")
            log(f"curves   {folder.losses_png}")
        nets = [folder.generator, folder.discriminator]
        nets += [folder.generator_average] if self._config.ema_nimg else []
        log("nets     " + ", ".join(map(str, nets)))

    def close(self) -> None:
        """Close the file of events."""
        self._events.close()

    def _swd_metric(self) -> SwdMetric:
        if self._swd is None:
            from dcgan.metrics.reals import BATCH, Reals
            from dcgan.metrics.swd import SwdMetric

            config, device = self._config, torch.device(self._config.device)
            options = LoaderOptions(
                BATCH,
                config.image_size,
                config.channels,
                device=device,
                workers=config.workers,
                access=config.access,
                fit=config.fit,
            )
            self._swd = SwdMetric(Reals(config.shards, options))
        return self._swd

    def _plot(self) -> None:
        if len(self.history):
            save_losses(self.history[:, :2], self._folder.losses_png)

    def _status_line(self, means: dict[str, float], tick: dict[str, Any]) -> str:
        """Format the tutorial's line, with rates and data wait added."""
        plan, steps = self._plan, tick["step"]
        epoch, place = plan.place(steps)
        steps_left = max(0, plan.total_steps - steps)  # a resumed run may be asked for fewer
        left = timedelta(seconds=round(steps_left * tick["step_ms"] / 1e3))
        return (
            f"[{epoch}/{plan.epochs}][{place}/{plan.steps_per_epoch}]"
            f"  Loss_D: {means['loss_d']:.4f}  Loss_G: {means['loss_g']:.4f}"
            f"  D(x): {means['d_x']:.4f}  D(G(z)): {means['d_gz1']:.4f} / {means['d_gz2']:.4f}"
            f"  {tick['img_per_s']:,.0f} img/s  {tick['step_ms']:.1f} ms/step"
            f"  data wait {tick['data_wait_pct']:.1f}%  {left} left"
        )


def _keep_lines(path: Path, wanted: Callable[[dict[str, Any]], bool]) -> None:
    if path.exists():
        kept = [json.dumps(record) + "\n" for record in read_lines(path) if wanted(record)]
        write_whole(path, "".join(kept).encode())


def _write_rows(file: TextIO, first: int, rows: npt.NDArray[np.float32]) -> None:
    rows_of_text = ([f"{value:.7g}" for value in row] for row in rows.tolist())
    csv.writer(file).writerows((first + i, *row) for i, row in enumerate(rows_of_text))
