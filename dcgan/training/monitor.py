"""The monitor of a run: alarms, and what they lead to.

It looks at the rows and grids that the host has anyway, so the device never waits.

- Non-finite: a loss or a D(·) is NaN or infinite.
- Saturation: D tells all real images from all generated ones, and G learns nothing more from it;
  the PyTorch DCGAN tutorial's own log shows it at iterations 100 to 200 of its first epoch.
- Collapse: the pictures of the fixed noise, once varied, have grown alike.

Each is told once when it sets in, and again only after it has ended.
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
from dcgan.step.adversarial import STATISTICS
from dcgan.training.state import MonitorState, Streaks
from pipeline.errors import UserError

SURE_REAL, SURE_FAKE = 0.99, 0.01
"""D saturates with D(x) above the one and D(G(z)) below the other."""

SATURATED_STEPS = 100
"""Consecutive steps of that until the alarm. Short runs on faces with small nets kept it up for at
most 27; the tutorial's, for 150."""

SIDE = 16
"""Pixels a side that images are reduced to before they are compared: what is left is pose, light
and colour; the noise and checkers of a net in training, which differ everywhere, go."""

VARIED = 0.25
"""Share of the real images' spread from which on a generator counts as varied. Below it nothing is
said: in its first hundreds of steps a healthy one wanders below 0.05, up and down."""

VARIED_ALONE = 10.0
"""The same in levels, where the real images' spread is unknown; that of faces is about 55."""

FALLEN = 0.5
"""Share of the best spread, or of the real images' if that is less, below which the pictures have
grown alike. Once varied, runs with even losses kept above 0.78; samples near one face, or near one
of sixteen, come to 0.05, and a run whose --lr-g rose a hundredfold fell to 0.28."""

FALLEN_GRIDS = 2
"""Consecutive grids of that until the alarm: one may be chance."""

LEAST_REALS = 16
"""Whose spread is nearly that of 64; of fewer, the nearest of each is farther."""

MAX_ROLLBACKS = 3
"""Then a run stops: the trouble is not in the random numbers."""


@dataclass(frozen=True)
class Alarm:
    """Something that is wrong with a run."""

    kind: str
    """non-finite, saturation or collapse."""
    step: int
    """Of the row or grid that it was told at; steps count from 1."""
    began: int
    """The first step of the streak that it was told of."""
    message: str
    """What it means and what usually helps."""


def spread(images: torch.Tensor) -> float:
    """Tell how unlike images are: the median, over them, of the distance to the nearest other one.

    The distance of two images is the root of the mean squared difference of their values, reduced
    to 16x16 by area. The nearest, since the mean over pairs hides modes: samples that are all near
    one of two faces keep four fifths of the real faces' mean distance, but 0.05 of this one.

    Args:
        images: (N, S, S, C) uint8, N at least 2, S a multiple of 16.

    Returns:
        Levels, from 0 (at least half have a twin) to 255.
    """
    small = F.adaptive_avg_pool2d(images.permute(0, 3, 1, 2).float(), SIDE).flatten(1)
    # Not by a matrix product, which loses the small distances in float32
    apart = torch.cdist(small, small, compute_mode="donot_use_mm_for_euclid_dist")
    nearest = apart.fill_diagonal_(torch.inf).amin(dim=1)
    return nearest.median().item() / math.sqrt(small.shape[1])


class RollBack(Exception):  # noqa: N818  # none that anybody sees
    """A run is to resume from a checkpoint before the alarm."""


class TroubleError(UserError):
    """A run is to stop at an alarm."""


@dataclass(frozen=True)
class Trouble:
    """An alarm after which a run does not just continue."""

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


class Monitor:
    """Watches one run.

    Args:
        on_trouble: warn, rollback or stop.
        rollbacks: how often the run went back to a checkpoint already.

    Attributes:
        reals_spread: `spread` of about as many real images as a grid has; None if unknown.
        trouble: the first alarm that the run must not just continue after.
    """

    def __init__(self, on_trouble: str = "warn", rollbacks: int = 0) -> None:
        self._on_trouble, self._rollbacks = on_trouble, rollbacks
        self._streaks = Streaks()
        self.reals_spread: float | None = None
        self.trouble: Trouble | None = None

    def state(self) -> MonitorState:
        """For a checkpoint."""
        return MonitorState(health=self._streaks.model_copy(), reals_spread=self.reals_spread)

    def restore(self, state: MonitorState) -> None:
        """Continue from what `state` gave."""
        self._streaks, self.reals_spread = state.health.model_copy(), state.reals_spread

    def handle(self, alarms: Sequence[Alarm]) -> Iterator[tuple[Alarm, str]]:
        """Decide what each alarm leads to; those after the first trouble are dropped."""
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
        # Nothing comes of NaN but NaN
        non_finite = alarm.kind == "non-finite"
        return "stop" if self._on_trouble == "warn" and non_finite else self._on_trouble

    @property
    def gave_up(self) -> bool:
        """Whether the run was rolled back so often that the random numbers are not to blame."""
        return self._on_trouble == "rollback" and self._rollbacks >= MAX_ROLLBACKS

    def look_at_reals(self, images: torch.Tensor) -> None:
        """Learn how varied real images are, (N, S, S, C) uint8 on the CPU."""
        self.reals_spread = spread(images) if len(images) >= LEAST_REALS else None

    def look_at_steps(self, first_step: int, rows: npt.NDArray[np.float32]) -> list[Alarm]:
        """Look at a tick's steps; how steps are divided into ticks makes no difference.

        Args:
            first_step: number of the first row's step, counted from 1.
            rows: (steps, 5) in the order of `STATISTICS`.

        Returns:
            What set in at one of these steps, in their order.
        """
        memory = self._streaks
        d_x, d_gz = (rows[:, STATISTICS.index(name)] for name in ("d_x", "d_gz1"))
        # d_gz1, not d_gz2: it comes from the same D as d_x, on images new to it; d_gz2 from a D
        # that has just been taught to refuse these very ones
        saturated = (d_x > SURE_REAL) & (d_gz < SURE_FAKE)
        broken: npt.NDArray[np.bool_] = ~np.all(np.isfinite(rows), axis=1)
        lost, memory.non_finite = _onsets(broken.tolist(), memory.non_finite, 1)
        sure, memory.saturated = _onsets(saturated.tolist(), memory.saturated, SATURATED_STEPS)
        alarms = [_non_finite(first_step + place) for place in lost]
        alarms += [_saturation(first_step + place) for place in sure]
        return sorted(alarms, key=lambda alarm: alarm.step)

    def look_at_grid(self, step: int, fakes: torch.Tensor) -> list[Alarm]:
        """Look at a grid; once at each.

        Args:
            step: steps done when it was drawn.
            fakes: images of the fixed noise, (64, S, S, C) uint8 on the CPU.

        Returns:
            A collapse that set in here, or nothing.
        """
        memory, reals_spread = self._streaks, self.reals_spread
        found = spread(fakes)
        memory.best = max(memory.best, found)
        varied = VARIED_ALONE if reals_spread is None else VARIED * reals_spread
        # A generator may begin more varied than faces are: a jumble of colours
        wanted = memory.best if reals_spread is None else min(memory.best, reals_spread)
        alike = memory.best >= varied and found < FALLEN * wanted
        fell, memory.alike = _onsets([alike], memory.alike, FALLEN_GRIDS)
        if memory.alike == 1:
            memory.alike_from = step
        return [_collapse(step, memory, found, reals_spread) for _ in fell]


def _onsets(signs: Sequence[bool], streak: int, after: int) -> tuple[list[int], int]:
    """Find where a streak becomes `after` long.

    Args:
        signs: whether each row in turn shows it.
        streak: length of the streak that they may go on with.
        after: length at which it counts.

    Returns:
        Places in `signs`, and the length of the streak at their end.
    """
    places = []
    for place, sign in enumerate(signs):
        streak = streak + 1 if sign else 0
        if streak == after:
            places.append(place)
    return places, streak


def broken_nets(step: int) -> Alarm:
    """Of nets that hold NaN or infinity, found while saving: their losses may be finite still."""
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
