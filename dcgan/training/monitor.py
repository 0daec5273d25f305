"""The monitor of a run: alarms, and what they lead to.

It examines rows and grids that the host has anyway, so the device never waits.

- Non-finite: a loss or an output of D is NaN or infinite.
- Saturation: D distinguishes all real images from all generated ones, and G learns nothing more.
  The PyTorch DCGAN tutorial's own log shows this at iterations 100 to 200 of its first epoch.
- Collapse: the pictures of the fixed noise were varied, and have become alike.

An alarm is raised once when its condition begins, and again only after the condition has ended.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from dcgan.rundir.folder import RunFolder
from dcgan.step import STATISTICS
from dcgan.training.state import MonitorState, Streaks
from pipeline.errors import UserError

SURE_REAL, SURE_FAKE = 0.99, 0.01
"""D is saturated if D(x) is above the first and D(G(z)) below the second."""

SATURATED_STEPS = 100
"""Consecutive saturated steps until the alarm. Short runs on faces with small nets had at most 27;
the tutorial's had 150."""

SIDE = 16
"""Side in pixels to which images are reduced before they are compared. Pose, light and colour
remain; the noise and checkerboards of a net in training, which differ in every image, vanish."""

VARIED = 0.25
"""Share of the real images' spread from which on a generator counts as varied. Below it there is no
alarm: in its first hundreds of steps a healthy generator's share goes up and down below 0.05."""

VARIED_ALONE = 10.0
"""The same limit in levels, if the real images' spread is unknown; that of faces is about 55."""

FALLEN = 0.5
"""Pictures count as alike below this share of the best spread, or of the real images' if that is
less. Once varied, runs with balanced losses stayed above 0.78. Samples near one face, or near one
of sixteen faces, have 0.05; a run whose --lr-g was raised a hundredfold fell to 0.28."""

FALLEN_GRIDS = 2
"""Consecutive grids that are alike until the alarm: one may be chance."""

LEAST_REALS = 16
"""Real images needed to measure a spread. That of 16 is nearly that of 64; among fewer images, the
nearest other one is farther away."""

MAX_ROLLBACKS = 3
"""Rollbacks before a run stops, because its random numbers cannot be the cause."""


@dataclass(frozen=True)
class Alarm:
    """Something that is wrong with a run."""

    kind: str
    """non-finite, saturation or collapse."""
    step: int
    """The step of the row or grid that raised it; steps count from 1."""
    began: int
    """The first step of the streak that raised it."""
    message: str
    """What it means, and what usually helps."""


def spread(images: torch.Tensor) -> float:
    """Measure how different images are: the median of the distance to the nearest other image.

    The distance of two images is the root mean square difference of their values, after they are
    reduced to 16×16 by area. The mean over all pairs would hide modes: samples that are all near
    one of two faces have four fifths of the real faces' mean distance, but 0.05 of this one.

    Args:
        images: (N, S, S, C) uint8, N at least 2, S a multiple of 16.

    Returns:
        Levels, from 0 (at least half of the images have an identical one) to 255.
    """
    small = F.adaptive_avg_pool2d(images.permute(0, 3, 1, 2).float(), SIDE).flatten(1)
    # Not by a matrix product, in which small distances are lost in float32
    apart = torch.cdist(small, small, compute_mode="donot_use_mm_for_euclid_dist")
    nearest = apart.fill_diagonal_(torch.inf).amin(dim=1)
    return nearest.median().item() / math.sqrt(small.shape[1])


class RollBack(Exception):  # noqa: N818  # it is never shown as an error
    """The run must resume from a checkpoint before the alarm."""


class TroubleError(UserError):
    """The run must stop because of an alarm."""


@dataclass(frozen=True)
class Trouble:
    """An alarm after which the run may not simply continue."""

    alarm: Alarm
    action: str
    """rollback or stop."""

    def as_error(self, run: RunFolder) -> TroubleError:
        """Make the error of a run that stops."""
        return TroubleError(
            f"--run {run.path}",
            f"{self.alarm.kind}: {self.alarm.message}",
            "training without such an alarm",
            "the same command resumes from the last checkpoint; change options with --allow-change",
        )


class Monitor:
    """Watches one run, and decides what an alarm leads to: warn, rollback or stop.

    Attributes:
        reals_spread: `spread` of about as many real images as a grid has; None if unknown.
        trouble: the first alarm after which the run may not simply continue.
    """

    def __init__(self, on_trouble: str = "warn", rollbacks: int = 0) -> None:
        self._on_trouble, self._rollbacks = on_trouble, rollbacks
        self._streaks = Streaks()
        self.reals_spread: float | None = None
        self.trouble: Trouble | None = None

    def state(self) -> MonitorState:
        """Return the state to save in a checkpoint."""
        return MonitorState(health=self._streaks.model_copy(), reals_spread=self.reals_spread)

    def restore(self, state: MonitorState) -> None:
        """Continue from a state that `state` returned."""
        self._streaks, self.reals_spread = state.health.model_copy(), state.reals_spread

    def handle(self, alarms: Sequence[Alarm]) -> Iterator[tuple[Alarm, str]]:
        """Decide the action for each alarm; alarms after the first trouble are dropped."""
        for alarm in alarms:
            if self.trouble is not None:
                return
            action = self._action(alarm)
            if action != "warn":
                self.trouble = Trouble(alarm, action)
            yield alarm, action

    def _action(self, alarm: Alarm) -> str:
        if self.gave_up:
            return "stop"
        # Training cannot recover from NaN
        non_finite = alarm.kind == "non-finite"
        return "stop" if self._on_trouble == "warn" and non_finite else self._on_trouble

    @property
    def gave_up(self) -> bool:
        """Whether the run may not be rolled back again."""
        return self._on_trouble == "rollback" and self._rollbacks >= MAX_ROLLBACKS

    def look_at_reals(self, images: torch.Tensor) -> None:
        """Measure the spread of real images, (N, S, S, C) uint8 on the CPU."""
        self.reals_spread = spread(images) if len(images) >= LEAST_REALS else None

    def look_at_steps(self, first_step: int, rows: npt.NDArray[np.float32]) -> list[Alarm]:
        """Examine the steps of a tick. The division of steps into ticks makes no difference.

        Args:
            first_step: number of the first row's step, counted from 1.
            rows: (steps, 5) in the order of `STATISTICS`.

        Returns:
            The alarms that these steps raise, in the order of steps.
        """
        memory = self._streaks
        d_x, d_gz = (rows[:, STATISTICS.index(name)] for name in ("d_x", "d_gz1"))
        # d_gz1, not d_gz2: like d_x, it comes from D before its update, on images new to it; d_gz2
        # comes from a D that has just been trained to refuse these same images
        saturated = (d_x > SURE_REAL) & (d_gz < SURE_FAKE)
        broken: npt.NDArray[np.bool_] = ~np.all(np.isfinite(rows), axis=1)
        lost, memory.non_finite = _onsets(broken.tolist(), memory.non_finite, 1)
        sure, memory.saturated = _onsets(saturated.tolist(), memory.saturated, SATURATED_STEPS)
        alarms = [_non_finite(first_step + place) for place in lost]
        alarms += [_saturation(first_step + place) for place in sure]
        return sorted(alarms, key=lambda alarm: alarm.step)

    def look_at_grid(self, step: int, fakes: torch.Tensor) -> list[Alarm]:
        """Examine a grid, drawn after `step` steps; return the collapse that it shows, if any.

        Call this once for each grid, (64, S, S, C) uint8 on the CPU.
        """
        memory, reals_spread = self._streaks, self.reals_spread
        found = spread(fakes)
        memory.best = max(memory.best, found)
        varied = VARIED_ALONE if reals_spread is None else VARIED * reals_spread
        # An untrained generator may be more varied than faces are: its colours are random
        wanted = memory.best if reals_spread is None else min(memory.best, reals_spread)
        alike = memory.best >= varied and found < FALLEN * wanted
        fell, memory.alike = _onsets([alike], memory.alike, FALLEN_GRIDS)
        if memory.alike == 1:
            memory.alike_from = step
        return [_collapse(step, memory, found, reals_spread) for _ in fell]


def _onsets(signs: Sequence[bool], streak: int, after: int) -> tuple[list[int], int]:
    """Find where a streak of true signs reaches the length `after`.

    Returns:
        The positions in `signs` where that happens, and the length of the streak at the end.
    """
    places = []
    for place, sign in enumerate(signs):
        streak = streak + 1 if sign else 0
        if streak == after:
            places.append(place)
    return places, streak


def broken_nets(step: int) -> Alarm:
    """Make the alarm for nets that contain NaN or infinity although their losses are finite."""
    return Alarm("non-finite", step, step, f"After step {step:,} a weight is {_BROKEN}")


def _non_finite(step: int) -> Alarm:
    return Alarm(
        "non-finite", step, step, f"At step {step:,} a loss or an output of D is {_BROKEN}"
    )


_BROKEN = (
    "NaN or infinite. Nets with such weights do not recover: go back to an earlier checkpoint, as "
    "--on-trouble rollback does by itself. What usually helps is --precision fp32, or a lower "
    "--lr-d and --lr-g."
)


def _saturation(step: int) -> Alarm:
    return Alarm(
        "saturation",
        step,
        step - SATURATED_STEPS + 1,
        f"For {SATURATED_STEPS} steps up to step {step:,}, D(x) was above {SURE_REAL} and D(G(z)) "
        f"below {SURE_FAKE}: the discriminator is sure of every image, and the generator learns "
        "next to nothing from it. Early in a run this often passes by itself. If it lasts, a "
        "lower --lr-d or --label-smoothing 0.1 usually helps.",
    )


def _collapse(step: int, memory: Streaks, found: float, reals_spread: float | None) -> Alarm:
    real = "" if reals_spread is None else f", and of real images {reals_spread:.1f}"
    return Alarm(
        "collapse",
        step,
        memory.alike_from,
        f"The pictures of the fixed noise have grown alike: at step {step:,} their spread is "
        f"{found:.1f} levels, where the best so far was {memory.best:.1f}{real}. A generator does "
        "not always come back from this: --on-trouble rollback takes an earlier one. What usually "
        "helps is a lower --lr-g, a larger --batch-size or --label-smoothing 0.1.",
    )
