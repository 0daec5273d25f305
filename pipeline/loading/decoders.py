"""Decoders: they turn encoded samples into batches of pixels. `dali` has the one that runs DALI.

A decoder takes an iterator of encoded batches and gives one of decoded batches, reading some
batches ahead; `deliver` then brings one to the device, on the thread and stream of its consumer.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

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


class Decoder(ABC):
    """One way to decode the samples of a set, and to make squares of the images.

    Args:
        shards: the set; its recipe says what is left to be done by whoever reads it.
        options: of the loader.
    """

    name: str
    """Decoders of the same name give the same pixels, bit for bit."""
    description: str
    """A few words for people."""

    def __init__(self, shards: ShardSet, options: LoaderOptions) -> None:
        recipe = shards.manifest.recipe
        crop = recipe.crop if recipe.store == "original" else None
        self.crop = crop if isinstance(crop, int) else None
        """Side of the square to cut out before the resize, in the image's own pixels."""
        self.options = options

    @abstractmethod
    def decode(self, encoded: Iterator[list[Encoded]]) -> Generator[Any, None, None]:
        """Decode batches in order; what comes out is for `deliver`.

        Raises:
            DecodeError: an image is damaged, in the batch that would come next.
        """

    def deliver(self, decoded: Any, out: torch.Tensor | None) -> torch.Tensor:
        """Bring a decoded batch to the device, without a wait on the host.

        Torch keeps pinned memory from reuse until the copies from it are over
        (docs.pytorch.org/tutorials/intermediate/pinmem_nonblock.html).

        Args:
            decoded: what `decode` gave.
            out: where to put it, contiguous; None for a tensor of its own, which a batch that is
                there already is.

        Returns:
            (B, S, S, C) uint8, or float in [-1, 1] where the decoder was asked to normalise.
        """
        batch: torch.Tensor = decoded
        if out is None:
            return batch.to(self.options.device, non_blocking=True)
        return out.copy_(batch, non_blocking=True)

    def close(self) -> None:  # noqa: B027  # most have nothing to end
        """End its threads; not while `decode` runs."""

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


class RawDecoder(Decoder):
    """Takes the bytes of a `raw` set for the pixels that they are."""

    name = "raw"
    description = "stored pixels, nothing to decode"

    def __init__(self, shards: ShardSet, options: LoaderOptions) -> None:
        super().__init__(shards, options)
        self._stored = shards.manifest.recipe.size or 0

    def decode(self, encoded: Iterator[list[Encoded]]) -> Generator[torch.Tensor, None, None]:
        shape, options = (-1, self._stored, self._stored, 3), self.options
        as_wanted = self._stored == options.image_size and options.device.type != "cuda"
        for batch in encoded:
            pixels = torch.from_numpy(np.concatenate(batch)).view(shape)
            if options.channels == 1:
                pixels = luma(pixels)
            yield pixels if as_wanted else self.collect(self.fit(pixels), len(pixels))


class ThreadDecoder(Decoder):
    """Decodes as packing checks images, and fits them as DALI's loader on the CPU does.

    It serves where DALI cannot run. libjpeg-turbo releases the interpreter's lock while it works,
    so there is no fork, no shared memory, and nothing to hang on.

    Args:
        shards: a set of JPEGs.
        options: of the loader.
        reason: why DALI is not in use, for the description.
    """

    name = "threads"

    def __init__(self, shards: ShardSet, options: LoaderOptions, reason: str = "asked for") -> None:
        super().__init__(shards, options)
        self.description = f"libjpeg-turbo and torch, {options.threads} threads, because {reason}"

    def decode(self, encoded: Iterator[list[Encoded]]) -> Generator[torch.Tensor, None, None]:
        ahead: deque[list[Future[torch.Tensor]]] = deque()
        threads = ThreadPoolExecutor(self.options.threads, thread_name_prefix="decode")
        try:
            for batch in encoded:
                ahead.append([threads.submit(self._decode_one, sample) for sample in batch])
                if len(ahead) == BATCHES_AHEAD:
                    yield self._collect_results(ahead.popleft())
            while ahead:
                yield self._collect_results(ahead.popleft())
        finally:
            threads.shutdown(wait=True, cancel_futures=True)

    def _decode_one(self, sample: Encoded) -> torch.Tensor:
        pixels = as_tensor(decode_strictly(sample.tobytes()).pixels)
        if pixels.shape[2] != self.options.channels:
            pixels = luma(pixels) if self.options.channels == 1 else pixels.expand(-1, -1, 3)
        return self.fit(pixels)

    def _collect_results(self, images: list[Future[torch.Tensor]]) -> torch.Tensor:
        try:
            return self.collect((image.result() for image in images), len(images))
        except RejectedError as error:
            raise DecodeError(str(error)) from error
