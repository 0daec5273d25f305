"""A run's curves: what is drawn of long ones, and `losses.png`."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from pipeline.files import replacing

MOST_POINTS = 2_000
"""Points that one curve is drawn with: two for each of the thousand columns of a chart."""

Curve = npt.NDArray[np.float64]
Places = npt.NDArray[np.intp]
T = TypeVar("T")


def spread(items: Sequence[T], most: int) -> list[T]:
    """Choose at most `most` of them, 2 or more, evenly, with the first and the last."""
    places = np.linspace(0, len(items) - 1, min(len(items), most)).round().astype(int)
    return [items[place] for place in places]


def thin(values: npt.NDArray[np.floating[Any]]) -> Places:
    """Choose which points of a long curve to draw: the lowest and the highest of each stretch.

    Args:
        values: (N,); those that are not finite count only where a stretch has no others.

    Returns:
        (M,) indices, increasing, M ≤ `MOST_POINTS`; the first and the last point are among them.
    """
    if len(values) <= MOST_POINTS:
        return np.arange(len(values))
    length = -(-len(values) // (MOST_POINTS // 2 - 1))
    stretches = np.pad(values, (0, -len(values) % length), constant_values=np.nan)
    stretches = stretches.reshape(-1, length)
    finite = np.isfinite(stretches)
    lowest = np.where(finite, stretches, np.inf).argmin(axis=1)
    highest = np.where(finite, stretches, -np.inf).argmax(axis=1)
    starts = length * np.arange(len(stretches))
    ends = np.array([0, len(values) - 1])
    return np.unique(np.concatenate([ends, starts + lowest, starts + highest]))


def running_mean(values: npt.NDArray[np.floating[Any]]) -> tuple[Places, Curve]:
    """Average over a fiftieth of a curve, so that its trend shows.

    Args:
        values: (N,); those that are not finite are left out.

    Returns:
        (M,) indices, evenly spread, M ≤ `MOST_POINTS`, and the mean of the window around each; it
        is shorter at both ends of the curve, and nan where the window has no finite value.
    """
    half, whole = len(values) // 100, len(values)
    places = np.array(spread(range(whole), MOST_POINTS), dtype=np.intp)
    windows = np.stack([np.maximum(places - half, 0), np.minimum(places + half + 1, whole)], axis=1)
    finite = np.isfinite(values)
    # Of each window by itself: in differences of running sums, one huge value would drown the rest
    sums, counts = (
        np.add.reduceat(np.append(each, 0.0), windows.ravel())[::2]
        for each in (np.where(finite, values, 0).astype(np.float64), finite)
    )
    return places, np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)


def save_losses(losses: npt.NDArray[np.float32], path: Path) -> None:
    """Plot D's and G's losses, (steps, 2), at least one step, against the step, as a PNG."""
    _draw_losses(losses, path)
    # A figure refers to itself, and holds some 10 MB until Python looks for such circles; with
    # as many objects as torch has, that is dozens of figures later
    gc.collect()


def _draw_losses(losses: npt.NDArray[np.float32], path: Path) -> None:
    from matplotlib.figure import Figure  # not pyplot: no global state, no display

    figure = Figure(figsize=(10, 5), layout="constrained")
    axes = figure.subplots()
    for name, colour, values in zip("DG", ("tab:blue", "tab:orange"), losses.T, strict=True):
        drawn = thin(values)
        axes.plot(drawn + 1, values[drawn], color=colour, alpha=0.3, linewidth=0.8)
        places, means = running_mean(values)
        axes.plot(places + 1, means, color=colour, label=f"Loss_{name}")
    axes.set(title="Generator and discriminator loss", xlabel="step", ylabel="loss")
    finite = losses[np.isfinite(losses)]
    if finite.size:
        low, high = (float(np.quantile(finite, share)) for share in (0.005, 0.995))
        # From 0, below which binary cross-entropy never is; a loss of one's own may be
        axes.set_ylim(min(0.0, low) * 1.1, max(0.0, high) * 1.1 + 1e-3)
    axes.legend(loc="upper right")  # looking for the best place takes long where curves are
    axes.grid(alpha=0.3)
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=100)
