"""Decoders: they turn encoded samples into batches of pixels. `dali` has the one that runs DALI."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import torch

from pipeline.images.decode import RejectedError, decode
from pipeline.images.pixels import luma
from pipeline.images.resize import as_tensor, batch_of, fit
from pipeline.images.size import sides
from pipeline.loading.options import LoaderOptions
from pipeline.loading.reader import Encoded
from pipeline.shards.shard_set import ShardSet

BATCHES_AHEAD = 3
"""Batches in the threads' hands, as many as DALI's graph prepares."""


class DecodeError(Exception):
    """An image of a batch does not decode; few decoders tell which."""


class Decoder(ABC):
    """One way to turn the encoded samples of a set into images of one size."""

    name: str
    """Decoders of the same name give the same pixels, bit for bit."""
    description: str
    """A few words for people."""

    def __init__(self, shards: ShardSet, options: LoaderOptions) -> None:
        self._options, self._fit = options, shards.fit_of(options.fit)
        self._crop = shards.manifest.recipe.reader_crop

    @abstractmethod
    def decode(self, encoded: Iterator[list[Encoded]]) -> Generator[Any, None, None]:
        """Decode batches in order, reading some ahead.

        Yields:
            (B, H, W, C) uint8 on the CPU, or DALI's own batch on the GPU: the loader's `deliver`
            takes both.

        Raises:
            DecodeError: an image is damaged, in the batch that would come next.
        """

    def close(self) -> None:  # noqa: B027  # most have nothing to end
        """End its threads; not while `decode` runs."""


class RawDecoder(Decoder):
    """Takes the bytes of a `raw` set for the pixels that they are."""

    name = "raw"
    description = "stored pixels, nothing to decode"

    def __init__(self, shards: ShardSet, options: LoaderOptions) -> None:
        super().__init__(shards, options)
        self._stored = shards.manifest.recipe.size or 0

    def decode(self, encoded: Iterator[list[Encoded]]) -> Generator[torch.Tensor, None, None]:
        size, on_cuda = self._options.image_size, self._options.device.type == "cuda"
        width, height = sides(self._stored)
        for batch in encoded:
            pixels = torch.from_numpy(np.concatenate(batch)).view(-1, height, width, 3)
            if self._options.channels == 1:
                pixels = luma(pixels)
            if on_cuda or self._stored != size:
                pixels = batch_of(fit(pixels, size, self._fit), pinned=on_cuda)
            yield pixels


class ThreadDecoder(Decoder):
    """Decodes as packing checks images, and resizes them as DALI's loader on the CPU does.

    It serves where DALI cannot run. libjpeg-turbo releases the interpreter's lock while it works,
    so there is no fork, no shared memory, and nothing to hang on.

    Args:
        reason: why DALI is not in use, for the description.
    """

    name = "threads"

    def __init__(self, shards: ShardSet, options: LoaderOptions, reason: str = "asked for") -> None:
        super().__init__(shards, options)
        self.description = f"libjpeg-turbo and torch, {options.threads} threads, because {reason}"

    def decode(self, encoded: Iterator[list[Encoded]]) -> Generator[torch.Tensor, None, None]:
        ahead: deque[list[Future[torch.Tensor]]] = deque()
        threads = ThreadPoolExecutor(self._options.threads, thread_name_prefix="decode")
        try:
            for batch in encoded:
                ahead.append([threads.submit(self._image, sample) for sample in batch])
                if len(ahead) == BATCHES_AHEAD:
                    yield self._batch(ahead.popleft())
            while ahead:
                yield self._batch(ahead.popleft())
        finally:
            threads.shutdown(wait=True, cancel_futures=True)

    def _image(self, sample: Encoded) -> torch.Tensor:
        pixels = as_tensor(decode(sample.tobytes()).pixels)
        if pixels.shape[2] != self._options.channels:
            pixels = luma(pixels) if self._options.channels == 1 else pixels.expand(-1, -1, 3)
        return fit(pixels, self._options.image_size, self._fit, self._crop)

    def _batch(self, images: list[Future[torch.Tensor]]) -> torch.Tensor:
        pinned = self._options.device.type == "cuda"
        try:
            return batch_of((image.result() for image in images), pinned=pinned)
        except RejectedError as error:
            raise DecodeError(str(error)) from error
