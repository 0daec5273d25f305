"""Batches that cost nothing: how fast training would be if data were free."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from pipeline.pixels import to_signed

SAMPLES = 16_384
"""Images in an epoch: enough for a few hundred steps at the usual batch sizes."""

BATCHES = 4
"""Different ones, served in turn: more than one, so that nothing can depend on a constant batch."""


class SyntheticLoader:
    """Uniform noise in the interface of `Batches`, made once and served again and again.

    Args:
        batch_size: images in a batch.
        image_size: side of the images, in pixels.
        channels: 3 or 1.
        device: where the batches lie.
        seed: of the noise.
        dtype: float32 for normalised batches, uint8 for pixels.
    """

    def __init__(
        self,
        batch_size: int,
        image_size: int,
        channels: int,
        device: torch.device,
        seed: int,
        dtype: torch.dtype,
    ) -> None:
        self.batch_size = batch_size
        self.steps_per_epoch = max(1, SAMPLES // batch_size)
        self.description = "synthetic noise: no images are read"
        random = torch.Generator().manual_seed(seed)
        shape = (BATCHES, batch_size, image_size, image_size, channels)
        pixels = torch.randint(0, 256, shape, generator=random, dtype=torch.uint8).to(device)
        batches = (to_signed(batch) if dtype.is_floating_point else batch for batch in pixels)
        self._batches = tuple(batches)
        self._next = 0

    def __iter__(self) -> Iterator[torch.Tensor]:
        return self

    def __next__(self) -> torch.Tensor:
        batch = self._batches[self._next % BATCHES]
        self._next += 1
        return batch

    def close(self) -> None:
        self._batches = ()
