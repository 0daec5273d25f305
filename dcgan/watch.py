"""What is seen of a run while it lasts: status lines, pictures, events, alarms, measurements."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch

from dcgan.animation import save_progress
from dcgan.generate import FIXED_SEEDS, generate, latents
from dcgan.health import Alarm, Health, broken_nets, spread
from dcgan.log import Log
from dcgan.models import Generator
from dcgan.options import TrainConfig
from dcgan.pictures import save_grid, save_losses, save_reals_vs_fakes
from dcgan.records import Records
from dcgan.run import RunFolder, append_line, read_lines
from dcgan.stats import Pace
from dcgan.tracking import Tracking
from pipeline.errors import UserError

if TYPE_CHECKING:
    from dcgan.judging.metrics import Judge

MAX_ROLLBACKS = 3
"""Then a run stops: the trouble is not in the random numbers."""


LEAST_REALS = 16
"""Whose spread is nearly that of 64; of fewer, the nearest of each is farther."""


class RollBack(Exception):  # noqa: N818  # none that anybody sees
    """A run is to go on from an earlier checkpoint."""


class TroubleError(UserError):
    """A run is to stop at an alarm."""


@dataclass(frozen=True)
class Trouble:
    """An alarm that a run does not go on after."""

    alarm: Alarm
    action: str
    """rollback or stop."""

    def as_error(self, run: RunFolder) -> TroubleError:
        """For a run that stops."""
        return TroubleError(
            f"--run {run.path}",
            f"{self.alarm.kind}: {self.alarm.message}",
            "training that gets somewhere",
            "the same command goes on from the last checkpoint; change options with --allow-change",
        )


class Watch:
    """Looks at a run's rows and pictures as they come, writes them down, and thinks about them.

    Args:
        config: of the run, resolved.
        run: where it writes.
        records: of the run.
        log: takes every line.
        rollbacks: how often it went back already.

    Attributes:
        trouble: what the run must not go on after, once that has come.
    """

    def __init__(
        self, config: TrainConfig, run: RunFolder, records: Records, log: Log, rollbacks: int
    ) -> None:
        self._config, self._run, self._records, self._log = config, run, records, log
        self._rollbacks = rollbacks
        self._fixed_noise = latents(FIXED_SEEDS, config.nz)
        self._health = Health()
        self._reals_spread: float | None = None
        self._tracking: Tracking | None = None
        self._judge: Judge | None = None
        self.trouble: Trouble | None = None

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs, to raise the alarms that an uninterrupted one would."""
        return {"health": self._health.state_dict(), "reals_spread": self._reals_spread}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` gave."""
        self._health.load_state_dict(state["health"])
        self._reals_spread = state["reals_spread"]

    def begin(self, steps_told: int) -> None:
        """Open what is written to all along."""
        self._tracking = Tracking.open(self._run.tensorboard, steps_told, self._log)
        if self._tracking is not None:
            self._log(f"events   {self._tracking.told}")
            self._tracking.options(self._config.to_json())

    def show_evidence(self, pixels: torch.Tensor, net: Generator) -> None:
        """Save what D will see and what G begins with.

        Args:
            pixels: the first batch of all ranks, (B, S, S, C) uint8 on the CPU.
            net: before its first step.
        """
        reals = pixels[: len(FIXED_SEEDS)]
        save_grid(reals, self._run.reals)
        save_grid(generate(net, self._fixed_noise), self._run.fakes_init)
        self._reals_spread = spread(reals) if len(reals) >= LEAST_REALS else None
        if self._tracking is not None:
            self._tracking.grid("reals", self._run.reals, 0)

    def tick(self, rows: npt.NDArray[np.float32], pace: Pace) -> None:
        """Tell how a tick's steps went, (steps, 5), and look for trouble in them."""
        first = len(self._records.history) + 1
        self._log(self._records.add_tick(rows, pace))
        if self._tracking is not None:
            self._tracking.tick(self._records.last)
        self._heed(self._health.look_at_steps(first, rows))

    def nets_not_finite(self, steps: int) -> None:
        """Heed nets that no checkpoint can be made of: their losses may be finite all the same."""
        self._log("no checkpoint: the nets hold NaN or infinity; the last one stays")
        self._heed([broken_nets(steps)])

    def sample(self, net: Generator, steps: int) -> None:
        """Show what the fixed noise has become."""
        images = generate(net, self._fixed_noise)
        path = self._run.fakes(self._records.plan.nimg(steps))
        save_grid(images, path)
        if self._tracking is not None:
            self._tracking.grid("fakes", path, steps)
        if steps % self._config.sample_every == 0:  # not at a stop: resumed, it would be one more
            self._heed(self._health.look_at_grid(steps, images, self._reals_spread))
        self._plot()

    def judge(self, net: Generator, steps: int) -> float | None:
        """Measure how far the net's pictures are from the set's; None if that was done before."""
        run, nimg = self._run, self._records.plan.nimg(steps)
        name = (run.generator_average if self._config.ema_nimg else run.generator).name
        known = [line for line in read_lines(run.metrics) if line.get("nimg") == nimg]
        if any(line.get("metric") == "swd" for line in known):
            return None
        record = self._judged_by().judge(net).record(nimg, name)
        append_line(run.metrics, record)
        self._log(
            f"SWD      {record['value']:.2f} at {nimg:,} images (× 10³, {record['n']:,} of each;"
            f" real against real {record['floor']:.2f})"
        )
        if self._tracking is not None:
            self._tracking.metric(record, steps)
        return float(record["value"])

    def finish(self) -> None:
        """Draw what is drawn once, at the end."""
        self._plot()
        grids = self._run.grids()
        if grids:
            save_progress(grids, self._run.progress)
        if grids and self._run.reals.exists():
            save_reals_vs_fakes(self._run.reals, grids[-1][1], self._run.reals_vs_fakes)

    def conclude(self, end: str, steps: int, seconds: float) -> None:
        """Say how it ended, and where things are.

        Args:
            end: in a few words.
            steps: done.
            seconds: that the run took, in all its processes.
        """
        log, run, nimg = self._log, self._run, self._records.plan.nimg(steps)
        total = timedelta(seconds=round(seconds))
        log(f"{end}: {steps:,} steps, {nimg:,} images, total time {total}")
        if steps:
            log(f"samples  {run.fakes(nimg)}")
            log(f"curves   {run.losses_png}")
        nets = [run.generator, run.discriminator]
        nets += [run.generator_average] if self._config.ema_nimg else []
        log("nets     " + ", ".join(map(str, nets)))

    def close(self) -> None:
        """Let go of files."""
        if self._tracking is not None:
            self._tracking.close()

    def _judged_by(self) -> Judge:
        if self._judge is None:
            from dcgan.judging.metrics import Judge, Reals

            config, device = self._config, torch.device(self._config.device)
            sizes = config.image_size, config.channels
            self._judge = Judge(Reals(config.shards, *sizes, device, config.workers))
        return self._judge

    def _plot(self) -> None:
        if len(self._records.history):
            save_losses(self._records.history[:, :2], self._run.losses_png)

    def _heed(self, alarms: list[Alarm]) -> None:
        for alarm in alarms:
            if self.trouble is not None:  # one is enough
                return
            action = self._action(alarm)
            self._records.add_alarm(alarm.step, alarm.kind, alarm.message, action)
            self._log(f"ALARM    {alarm.kind}: {alarm.message}")
            if action != "warn":
                self.trouble = Trouble(alarm, action)

    def _action(self, alarm: Alarm) -> str:
        asked = self._config.on_trouble
        if asked == "rollback" and self._rollbacks >= MAX_ROLLBACKS:
            self._log(f"gave up after {MAX_ROLLBACKS} rollbacks")
            return "stop"
        # Nothing comes of NaN but NaN
        return "stop" if asked == "warn" and alarm.kind == "non-finite" else asked
