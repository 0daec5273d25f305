"""What turns encoded samples into batches of pixels, and what all such decoders share.

A decoder takes an iterator of encoded batches and gives one of decoded batches, reading some
batches ahead; `deliver` then brings one to the device, on the thread and stream of its consumer.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch

from pipeline.images.pixels import luma
from pipeline.images.resize import fit_square
from pipeline.loading.batches import LoaderOptions
from pipeline.loading.reader import Encoded
from pipeline.shards.manifest import ShardSet


class DecodeError(Exception):
    """An image of a batch does not decode; few decoders tell which."""


class Decoder(Protocol):
    """One way to decode the samples of a set."""

    name: str
    """Decoders of the same name give the same pixels, bit for bit."""
    description: str
    """For people."""

    def decode(self, encoded: Iterator[list[Encoded]]) -> Generator[Any, None, None]:
        """Decode batches in order; what comes out is for `deliver`.

        Raises:
            DecodeError: an image is damaged, in the batch that would come next.
        """

    def deliver(self, decoded: Any, out: torch.Tensor | None) -> torch.Tensor:
        """Bring a decoded batch to the device, without a wait on the host.

        Args:
            decoded: what `decode` gave.
            out: where to put it, contiguous; None for a tensor of its own.

        Returns:
            (B, S, S, C) uint8, or float in [-1, 1] where the decoder was asked to normalise.
        """

    def close(self) -> None:
        """End its threads; not while `decode` runs."""


@dataclass(frozen=True)
class Squares:
    """Makes batches of squares from decoded images on the host."""

    options: LoaderOptions
    crop: int | None
    """Of the image's own pixels, to take before the resize."""

    @classmethod
    def of(cls, shards: ShardSet, options: LoaderOptions) -> Squares:
        """What a set's recipe leaves to be done by whoever reads it."""
        recipe = shards.manifest.recipe
        crop = recipe.crop if recipe.store == "original" else None
        return cls(options, crop if isinstance(crop, int) else None)

    def fit(self, images: torch.Tensor) -> torch.Tensor:
        """Crop and resize images of one size: (..., H, W, C) → (..., S, S, C) uint8."""
        return fit_square(images, self.options.image_size, self.crop)

    def collect(self, squares: Iterable[torch.Tensor], count: int) -> torch.Tensor:
        """Copy squares, (S, S, C) uint8, into a batch that a device can copy from."""
        side = self.options.image_size
        batch = torch.empty(
            (count, side, side, self.options.channels),
            dtype=torch.uint8,
            pin_memory=self.options.device.type == "cuda",
        )
        for place, square in zip(batch.numpy(), squares, strict=True):
            np.copyto(place, square.numpy())
        return batch

    def deliver(self, batch: torch.Tensor, out: torch.Tensor | None) -> torch.Tensor:
        """Copy a batch to the device, or to `out`; a batch that is there already stays.

        Torch keeps pinned memory from reuse until the copies from it are over
        (docs.pytorch.org/tutorials/intermediate/pinmem_nonblock.html).
        """
        if out is None:
            return batch.to(self.options.device, non_blocking=True)
        return out.copy_(batch, non_blocking=True)


class RawDecoder:
    """Takes the bytes of a `raw` set for the pixels that they are.

    Args:
        shards: a `raw` set.
        options: of the loader.
    """

    name = "raw"

    def __init__(self, shards: ShardSet, options: LoaderOptions) -> None:
        self._stored = shards.manifest.recipe.size or 0
        self._squares = Squares.of(shards, options)
        self.description = "stored pixels, nothing to decode"

    def decode(self, encoded: Iterator[list[Encoded]]) -> Generator[torch.Tensor, None, None]:
        shape, squares = (-1, self._stored, self._stored, 3), self._squares
        options = squares.options
        as_wanted = self._stored == options.image_size and options.device.type != "cuda"
        for batch in encoded:
            pixels = torch.from_numpy(np.concatenate(batch)).view(shape)
            if options.channels == 1:
                pixels = luma(pixels)
            yield pixels if as_wanted else squares.collect(squares.fit(pixels), len(pixels))

    def deliver(self, decoded: torch.Tensor, out: torch.Tensor | None) -> torch.Tensor:
        return self._squares.deliver(decoded, out)

    def close(self) -> None:
        """There is nothing to end."""
