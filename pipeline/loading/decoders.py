"""What turns encoded samples into batches of pixels: where DALI runs, `dali`; else what is here.

A decoder takes an iterator of encoded batches and gives one of decoded batches, reading some
batches ahead; `deliver` then brings one to the device, on the thread and stream of its consumer.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch

from pipeline.images.decode import RejectedError
from pipeline.images.decode import decode as decode_strictly
from pipeline.images.pixels import luma
from pipeline.images.resize import as_tensor, fit_square
from pipeline.loading.options import LoaderOptions
from pipeline.loading.reader import Encoded
from pipeline.shards.manifest import ShardSet

BATCHES_AHEAD = 3
"""Batches in the threads' hands, as many as DALI's graph prepares."""


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


class ThreadDecoder:
    """Decodes as packing checks images, and fits them as DALI's loader on the CPU does.

    libjpeg-turbo releases the interpreter's lock while it works, so there is no fork, no shared
    memory, and nothing to hang on.

    Args:
        shards: a set of JPEGs.
        options: of the loader.
        reason: why DALI is not in use, for the description.
    """

    name = "threads"

    def __init__(self, shards: ShardSet, options: LoaderOptions, reason: str = "asked for") -> None:
        self._squares, self._options = Squares.of(shards, options), options
        self.description = f"libjpeg-turbo and torch, {options.threads} threads, because {reason}"

    def decode(self, encoded: Iterator[list[Encoded]]) -> Generator[torch.Tensor, None, None]:
        ahead: deque[list[Future[torch.Tensor]]] = deque()
        threads = ThreadPoolExecutor(self._options.threads, thread_name_prefix="decode")
        try:
            for batch in encoded:
                ahead.append([threads.submit(self._decode_one, sample) for sample in batch])
                if len(ahead) == BATCHES_AHEAD:
                    yield self._collect(ahead.popleft())
            while ahead:
                yield self._collect(ahead.popleft())
        finally:
            threads.shutdown(wait=True, cancel_futures=True)

    def deliver(self, decoded: torch.Tensor, out: torch.Tensor | None) -> torch.Tensor:
        return self._squares.deliver(decoded, out)

    def close(self) -> None:
        """The threads end with `decode`."""

    def _decode_one(self, sample: Encoded) -> torch.Tensor:
        pixels = as_tensor(decode_strictly(sample.tobytes()).pixels)
        if pixels.shape[2] != self._options.channels:
            pixels = luma(pixels) if self._options.channels == 1 else pixels.expand(-1, -1, 3)
        return self._squares.fit(pixels)

    def _collect(self, images: list[Future[torch.Tensor]]) -> torch.Tensor:
        try:
            return self._squares.collect((image.result() for image in images), len(images))
        except RejectedError as error:
            raise DecodeError(str(error)) from error
