"""Batches that cost nothing: how fast training would be if data were free."""

from __future__ import annotations

import torch

from pipeline.batches import Batches

SAMPLES = 16_384
"""Images in an epoch: enough for a few hundred steps at the usual batch sizes."""

BATCHES = 4
"""Different ones, served in turn: more than one, so that nothing can depend on a constant batch."""


class SyntheticLoader(Batches):
    """Uniform noise in the interface of `Batches`, made once and served again and again.

    Args:
        batch_size: images in a batch.
        image_size: side of the images, in pixels.
        channels: 3 or 1.
        device: where the batches lie.
        seed: of the noise.
        dtype: float32 for normalised batches, uint8 for pixels.
        rank: of this process; each has noise of its own.
        num_ranks: number of processes.
    """

    def __init__(
        self,
        batch_size: int,
        image_size: int,
        channels: int,
        device: torch.device,
        seed: int,
        dtype: torch.dtype,
        rank: int = 0,
        num_ranks: int = 1,
    ) -> None:
        identity: dict[str, str | int] = {
            "shard set": "synthetic",
            "--batch-size": batch_size,
            "--image-size": image_size,
            "--channels": channels,
            "--seed": seed,
            "rank": rank,
            "ranks": num_ranks,
        }
        steps = max(1, SAMPLES // num_ranks // batch_size)
        super().__init__(batch_size, steps, dtype, identity, "synthetic noise: no images are read")
        random = torch.Generator().manual_seed((seed + rank) % 2**63)
        shape = (BATCHES, batch_size, image_size, image_size, channels)
        self._pixels = torch.randint(0, 256, shape, generator=random, dtype=torch.uint8).to(device)

    def _close(self) -> None:
        self._pixels = torch.empty(0)

    def _take(self, out: torch.Tensor | None) -> torch.Tensor:
        pixels = self._pixels[(self.epoch * self.steps_per_epoch + self.batch) % BATCHES]
        return pixels if out is None else out.copy_(pixels)
