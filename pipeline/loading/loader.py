"""Batches decoded as they are needed: the loader of the first epoch, and of sets too large to keep.

Beside it stand `ResidentCache` (the decoded set, from the second epoch on) and `SyntheticLoader`
(batches that cost nothing); all are `Batches`.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from itertools import count

import torch

from pipeline.loading.batches import Batches, LoaderOptions
from pipeline.loading.decoders import Decoder, RawDecoder
from pipeline.loading.stream import Stream
from pipeline.shards.manifest import ShardSet
from pipeline.shards.order import Rows, Schedule


class Loader(Batches):
    """Reads, decodes and resizes a shard set, batch by batch.

    Args:
        shards: an opened set.
        options: what its batches are to be.
        decoder: for the set's samples; None for the best that this machine can run.

    Raises:
        UserError: the batch is larger than this rank's share of the set, the set has fewer pixels
            than asked for, or its files do not fit together.
    """

    def __init__(
        self, shards: ShardSet, options: LoaderOptions, decoder: Decoder | None = None
    ) -> None:
        shards.require_size(options.image_size)
        self.shards, self.options = shards, options
        self.schedule = Schedule.of(
            shards, options.batch_size, options.seed, options.rank, options.num_ranks
        )
        self.decoder = decoder or open_decoder(shards, options)
        super().__init__(
            options.batch_size,
            self.schedule.steps_per_epoch,
            options.dtype,
            options.identity(shards, self.decoder.name),
            self.decoder.description,
        )
        self._stream: Stream | None = None

    def stream(self, plan: Iterator[Rows]) -> Stream:
        """What decodes the batches of a plan; a loader has one, and closes it."""
        assert self._stream is None
        self._stream = Stream(self.shards, self.decoder, plan, self.options.data_timeout)
        return self._stream

    def _close(self) -> None:
        (self._stream or self.decoder).close()

    def _take(self, out: torch.Tensor | None) -> torch.Tensor:
        stream = self._stream or self.stream(self._rest())
        _, images = stream.take(out)
        return images

    def _rest(self) -> Iterator[Rows]:
        """The rows of all batches from here on."""
        yield from self.schedule.batches(self.epoch, self.batch)
        for epoch in count(self.epoch + 1):
            yield from self.schedule.batches(epoch)


def open_decoder(shards: ShardSet, options: LoaderOptions) -> Decoder:
    """The best decoder that this machine can run, for the samples of a set."""
    if shards.manifest.recipe.store == "raw":
        return RawDecoder(shards, options)
    obstacle = _why_not_dali(options.device)
    if obstacle:
        from pipeline.loading.fallback import ThreadDecoder

        return ThreadDecoder(shards, options, obstacle)
    from pipeline.loading.dali import DaliDecoder

    return DaliDecoder(shards, options)


def _why_not_dali(device: torch.device) -> str | None:
    """What keeps DALI from serving this device, or None."""
    if sys.platform != "linux":
        return f"DALI has no wheels for {sys.platform}"
    if device.type not in ("cpu", "cuda"):
        return f"DALI does not know the device {device.type}"
    try:
        importlib.import_module("nvidia.dali.fn")
    except ModuleNotFoundError:
        return "DALI is not installed"
    except (ImportError, OSError, RuntimeError) as error:
        return f"DALI does not load ({error})"
    return None
