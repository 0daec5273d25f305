"""Nearest real neighbours of samples: has the generator learned the set by heart?"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch.nn.functional import adaptive_avg_pool2d

from dcgan.metrics.reals import Measured, Reals, fake_blocks
from dcgan.nets.models import Generator
from pipeline.files import replacing

GRID = 16
"""Images are compared as the means of 16×16 fields: a shift by a pixel or a speck of noise is not
to hide a copy, as it would between single pixels."""

SAMPLES = 256
"""Samples that the ratio is taken from: seeds 0 to 255, which begin with the fixed noise."""

SHOWN, NEAREST = 8, 7
"""Rows of the picture, which are the first row of a run's grids, and neighbours in each."""

GAP = 6
"""White pixels between the samples and their neighbours."""

RECIPE = f"Euclidean distance of {GRID}×{GRID} field means, median of samples over median of reals"


@dataclass
class Neighbours:
    """The ratio of distances, and the real images nearest to some samples."""

    measured: Measured | None
    """The median distance from a sample to its nearest real image, over that from a real image to
    its nearest other one: about 1 for new images like the set's, near 0 for copies. None where at
    least half of the real images occur twice, which leaves no measure."""
    samples: torch.Tensor
    """(SHOWN, S, S, C) uint8."""
    nearest: torch.Tensor
    """(SHOWN, at most NEAREST, S, S, C) uint8, nearest first."""

    def save(self, path: Path) -> None:
        """Draw a row for each sample: the sample, a gap, and its neighbours.

        Args:
            path: of the PNG.
        """
        from torchvision.utils import make_grid

        columns = self.nearest.shape[1]
        parts = [(self.samples, 1), (self.nearest.flatten(0, 1), columns)]
        left, right = (
            make_grid(images.permute(0, 3, 1, 2), nrow=across, padding=2)
            for images, across in parts
        )
        gap = torch.full((3, left.shape[1], GAP), 255, dtype=torch.uint8)
        picture = torch.cat([left, gap, right], dim=2).permute(1, 2, 0)
        with replacing(path) as temporary:
            Image.fromarray(picture.numpy()).save(temporary, "PNG")


def find(net: Generator, reals: Reals) -> Neighbours:
    """Compare samples, and as many real images, with every real image.

    Reads the set once, in blocks: memory does not grow with it.

    Args:
        net: on any device; stays as it is.
        reals: of the same size and channels.
    """
    n = min(SAMPLES, reals.total)
    samples = torch.cat([*fake_blocks(net, n, first=0)])
    probes = torch.cat([*reals.blocks(0, n)])
    queries = torch.cat([summary(samples), summary(probes)])
    best = torch.full((len(queries), 1), torch.inf)
    shown = Shortlist(samples[:SHOWN])
    place = 0
    for block in reals.blocks():
        # Not by matrix products: they leave a copy at some distance from its original
        gaps = torch.cdist(queries, summary(block), compute_mode="donot_use_mm_for_euclid_dist")
        shown.offer(gaps[: min(SHOWN, n)], block)
        itself = torch.arange(max(0, min(n - place, len(block))))  # probes are the first n images
        gaps[n + place + itself, itself] = torch.inf
        best = torch.minimum(best, gaps.min(dim=1, keepdim=True).values)
        place += len(block)
    ratio = _ratio(best[:n], best[n:])
    source = reals.provenance(RECIPE)
    measured = None if ratio is None else Measured("neighbours", ratio, 1.0, n, source)
    return Neighbours(measured, samples[:SHOWN], shown.images)


def summary(images: torch.Tensor) -> torch.Tensor:
    """Reduce (N, H, W, C) uint8 images to means of fields, (N, C · GRID²) float32 or fewer."""
    height, width = images.shape[1:3]
    fields = min(GRID, height), min(GRID, width)
    return adaptive_avg_pool2d(images.permute(0, 3, 1, 2).float(), fields).flatten(1)


class Shortlist:
    """The nearest real images of each sample so far."""

    def __init__(self, samples: torch.Tensor) -> None:
        self._gaps = torch.empty(len(samples), 0)
        self.images = samples.new_empty(len(samples), 0, *samples.shape[1:])

    def offer(self, gaps: torch.Tensor, block: torch.Tensor) -> None:
        """Take of a block what is nearer than what is held.

        Args:
            gaps: (samples, B).
            block: (B, S, S, C).
        """
        near, which = gaps.topk(min(NEAREST, len(block)), largest=False)
        gaps = torch.cat([self._gaps, near], dim=1)
        images = torch.cat([self.images, block[which]], dim=1)
        order = gaps.argsort(dim=1, stable=True)[:, :NEAREST]
        self._gaps = gaps.gather(1, order)
        self.images = images[torch.arange(len(images))[:, None], order]


def _ratio(fake: torch.Tensor, real: torch.Tensor) -> float | None:
    scale = float(real.median())
    return float(fake.median()) / scale if scale > 0 else None
