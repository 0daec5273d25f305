"""Decoding where DALI cannot run: libjpeg-turbo and torch, in threads."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import torch

from pipeline.images.decode import RejectedError
from pipeline.images.decode import decode as decode_strictly
from pipeline.images.pixels import luma
from pipeline.images.resize import as_tensor
from pipeline.loading.batches import LoaderOptions
from pipeline.loading.decoders import DecodeError, Squares
from pipeline.loading.reader import Encoded
from pipeline.shards.manifest import ShardSet

BATCHES_AHEAD = 3
"""Batches in the threads' hands, as many as DALI's graph prepares."""


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
