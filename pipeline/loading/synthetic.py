"""Batches that cost nothing: how fast training would be if data were free."""

from __future__ import annotations

import torch

from pipeline.images.labels import LabelSpace
from pipeline.images.size import sides
from pipeline.loading.batches import Batches, LabelsOnDevice
from pipeline.loading.options import LoaderOptions

SAMPLES = 16_384
"""Images in an epoch: enough for a few hundred steps at the usual batch sizes."""

BATCHES = 4
"""Different ones, served in turn: more than one, so that nothing can depend on a constant batch."""


CLASSES = 10
"""Of labels, where they are asked for: drawn, and independent of the noise."""


class SyntheticLoader(Batches):
    """Uniform noise in the interface of `Batches`, made once and served again and again.

    Each rank has noise of its own.
    """

    def __init__(self, options: LoaderOptions) -> None:
        size, (width, height) = options.batch_size, sides(options.image_size)
        steps = max(1, SAMPLES // options.num_ranks // size)
        what = "synthetic noise: no images are read"
        random = torch.Generator().manual_seed((options.seed + options.rank) % 2**63)
        labels = _drawn(options) if options.labels else None
        super().__init__(size, steps, options.dtype, options.identity(), what, labels)
        shape = (BATCHES, size, height, width, options.channels)
        pixels = torch.randint(0, 256, shape, generator=random, dtype=torch.uint8)
        self._pixels = pixels.to(options.device)
        self._places = torch.arange(BATCHES * size, device=options.device).view(BATCHES, size)

    def _close(self) -> None:
        self._pixels = torch.empty(0)

    def take(self, out: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        number = (self.epoch * self.steps_per_epoch + self.batch) % BATCHES
        pixels = self._pixels[number]
        return pixels if out is None else out.copy_(pixels), self._places[number]


def _drawn(options: LoaderOptions) -> LabelsOnDevice:
    """Classes for all images of all ranks' noise."""
    own = BATCHES * options.batch_size
    random = torch.Generator().manual_seed(options.seed % 2**63)
    table = torch.randint(CLASSES, (own * options.num_ranks,), generator=random)
    space = LabelSpace("classes", tuple(map(str, range(CLASSES))))
    return LabelsOnDevice(space, table.to(options.device), own * options.rank)
