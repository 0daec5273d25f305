"""Grids of images and curves of losses, as PNG files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from pipeline.files import replacing

COLUMNS = 8
PADDING = 2
"""Black pixels between the images of a grid, as torchvision's `make_grid` has them."""


def save_grid(images: torch.Tensor, path: Path) -> None:
    """Lay images out in rows of eight.

    Args:
        images: (N, S, S, C) uint8 on the CPU, C 1 or 3.
        path: of the PNG.
    """
    from torchvision.utils import make_grid

    grid = make_grid(images.permute(0, 3, 1, 2), nrow=COLUMNS, padding=PADDING)
    with replacing(path) as temporary:
        Image.fromarray(grid.permute(1, 2, 0).numpy()).save(temporary, "PNG")


def save_losses(losses: npt.NDArray[np.float32], path: Path) -> None:
    """Plot both losses against the step.

    Args:
        losses: (steps, 2), D's and G's.
        path: of the PNG.
    """
    from matplotlib.figure import Figure  # not pyplot: no global state, no display

    figure = Figure(figsize=(10, 5), layout="constrained")
    axes = figure.subplots()
    steps = np.arange(1, len(losses) + 1)
    for column, (name, colour) in enumerate((("D", "tab:blue"), ("G", "tab:orange"))):
        axes.plot(steps, losses[:, column], color=colour, alpha=0.3, linewidth=0.8)
        axes.plot(*_running_mean(losses[:, column]), color=colour, label=f"Loss_{name}")
    axes.set(title="Generator and discriminator loss", xlabel="step", ylabel="loss")
    finite = losses[np.isfinite(losses)]
    if finite.size:
        axes.set_ylim(0, float(np.quantile(finite, 0.995)) * 1.1 + 1e-3)
    axes.legend()
    axes.grid(alpha=0.3)
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=100)


def _running_mean(
    values: npt.NDArray[np.float32],
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Steps and means over windows of a fiftieth of the run, so that the trend shows."""
    window = max(1, len(values) // 50)
    means = np.convolve(values, np.full(window, 1 / window), mode="valid")
    centres = np.arange(len(means), dtype=np.float64) + (window + 1) / 2
    return centres, means.astype(np.float64)
