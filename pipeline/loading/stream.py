"""Rows in, batches out: reader, decoder and the thread that runs them ahead of their consumer."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterator
from contextlib import closing
from typing import Any

import torch

from pipeline.errors import UserError
from pipeline.images.decode import RejectedError
from pipeline.images.decode import decode as decode_strictly
from pipeline.loading.decoders import DecodeError, Decoder
from pipeline.loading.prefetcher import Feeder
from pipeline.loading.reader import Encoded, Reader
from pipeline.shards.manifest import ShardSet
from pipeline.shards.order import Rows

READY = 2
"""Decoded batches that wait for the consumer, besides those that the decoder has in hand."""

CLOSING_PATIENCE = 5.0
"""Seconds for the thread to end by itself; one that is stuck in a read is left behind."""


class Stream:
    """Decodes the batches of a plan, in order.

    Args:
        shards: an opened set.
        decoder: for its samples.
        plan: the rows of each batch; may be endless.
        timeout: seconds to wait for a batch.
    """

    def __init__(
        self, shards: ShardSet, decoder: Decoder, plan: Iterator[Rows], timeout: float
    ) -> None:
        self._shards, self._decoder, self._plan = shards, decoder, plan
        self._timeout = timeout
        self._reader = Reader(shards)
        self._stage = "decoding"
        self._unreadable: UserError | None = None
        self._feeder: Feeder[tuple[Rows, Any]] = Feeder(self._decoded(), READY, "loader")

    def take(self, out: torch.Tensor | None = None) -> tuple[Rows, torch.Tensor]:
        """The next batch: its rows, and its images as the decoder delivers them.

        Args:
            out: where to put the images; None for a tensor of their own.

        Raises:
            StopIteration: the plan has ended.
            UserError: a shard or an image is damaged, or nothing came in time.
        """
        try:
            rows, decoded = self._feeder.take(self._timeout)
        except TimeoutError:
            raise self._stuck() from None
        return rows, self._decoder.deliver(decoded, out)

    def close(self) -> None:
        """End the thread and what it uses; whatever is stuck is left behind with its process."""
        if self._feeder.close(CLOSING_PATIENCE):
            self._reader.close()
            self._decoder.close()

    def _decoded(self) -> Generator[tuple[Rows, Any], None, None]:
        ahead: deque[Rows] = deque()
        try:
            with closing(self._decoder.decode(self._encoded(ahead))) as batches:
                for decoded in batches:
                    yield ahead.popleft(), decoded
        except DecodeError as error:
            raise self._undecodable(ahead[0], error) from error
        if self._unreadable is not None:
            raise self._unreadable

    def _encoded(self, ahead: deque[Rows]) -> Iterator[list[Encoded]]:
        for rows in self._plan:
            self._stage = "reading"
            try:
                samples = self._reader.read(rows)
            except UserError as error:
                self._unreadable = error  # told after the batches that were read before
                return
            self._stage = "decoding"
            ahead.append(rows)
            yield samples

    def _undecodable(self, rows: Rows, error: DecodeError) -> UserError:
        for row, sample in zip(rows.tolist(), self._reader.read(rows), strict=True):
            try:
                decode_strictly(sample.tobytes())
            except RejectedError as fault:
                return self._reader.undecodable(row, fault)
        return UserError(
            self._shards.folder,
            f"a batch that does not decode: {error}",
            "images that decode, and the memory to do it in",
            f"look for the image: python tools/check_shards.py {self._shards.folder} --decode",
        )

    def _stuck(self) -> UserError:
        return UserError(
            self._reader.tar,
            f"no batch for {self._timeout:g} s, stuck while {self._stage}",
            "a batch within --data-timeout",
            "see whether the disk or share answers; if it is only slow, raise --data-timeout",
        )
