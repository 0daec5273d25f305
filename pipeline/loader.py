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

from pipeline.batches import Batches, default_workers
from pipeline.decoders import Decoder, RawDecoder
from pipeline.feeder import DATA_TIMEOUT
from pipeline.manifest import ShardSet
from pipeline.order import Rows
from pipeline.schedule import WINDOW, Schedule
from pipeline.stream import Stream


class Loader(Batches):
    """Reads, decodes and resizes a shard set, batch by batch.

    Args:
        shards: an opened set.
        batch_size: images in a batch, on this rank.
        image_size: side of the square images, in pixels.
        device: where the batches go, `cpu` or `cuda`.
        seed: the order of images is a function of it and the epoch.
        dtype: float32 for normalised batches, uint8 for stored pixels.
        rank: of this process among all; ranks see disjoint images.
        num_ranks: number of processes.
        channels: 3 (RGB) or 1 (luma).
        workers: decoding threads; None for one a core, at most 8, or 4 for a GPU.
        data_timeout: seconds to wait for a batch.
        decoder: for the set's samples; None for the best that this machine can run.

    Raises:
        UserError: the batch is larger than this rank's share of the set, the set has fewer pixels
            than asked for, or its files do not fit together.
    """

    def __init__(
        self,
        shards: ShardSet,
        batch_size: int,
        image_size: int = 64,
        device: torch.device | str = "cpu",
        seed: int = 0,
        dtype: torch.dtype = torch.float32,
        rank: int = 0,
        num_ranks: int = 1,
        channels: int = 3,
        workers: int | None = None,
        data_timeout: float = DATA_TIMEOUT,
        decoder: Decoder | None = None,
    ) -> None:
        shards.require_size(image_size)
        self.shards, self.data_timeout = shards, data_timeout
        self.image_size, self.channels = image_size, channels
        self.device = torch.device(device)
        self.schedule = Schedule.of(shards, batch_size, seed, rank, num_ranks)
        self.decoder = decoder or open_decoder(
            shards, batch_size, image_size, channels, self.device, workers, dtype
        )
        identity: dict[str, str | int] = {
            "shard set": shards.fingerprint,
            "recipe": shards.manifest.recipe.told(),
            "--batch-size": batch_size,
            "--image-size": image_size,
            "--channels": channels,
            "--seed": seed,
            "rank": rank,
            "ranks": num_ranks,
            "decoder": self.decoder.name,
            "window": WINDOW,
        }
        steps = self.schedule.steps_per_epoch
        super().__init__(batch_size, steps, dtype, identity, self.decoder.description)
        self._stream: Stream | None = None

    def stream(self, plan: Iterator[Rows]) -> Stream:
        """What decodes the batches of a plan; a loader has one, and closes it."""
        assert self._stream is None
        self._stream = Stream(self.shards, self.decoder, plan, self.data_timeout)
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


def open_decoder(
    shards: ShardSet,
    batch_size: int,
    image_size: int,
    channels: int,
    device: torch.device,
    workers: int | None = None,
    dtype: torch.dtype = torch.uint8,
) -> Decoder:
    """The best decoder that this machine can run, for the samples of a set.

    Args:
        shards: the set.
        batch_size: images in a batch, at most.
        image_size: side of the images that come out, in pixels.
        channels: 3 (RGB) or 1 (luma).
        device: where batches go.
        workers: threads; None for the default.
        dtype: of what comes out.
    """
    if shards.manifest.recipe.store == "raw":
        return RawDecoder(shards, image_size, channels, device)
    workers = workers or default_workers(device)
    obstacle = _why_not_dali(device)
    if obstacle:
        from pipeline.fallback import ThreadDecoder

        return ThreadDecoder(shards, image_size, channels, device, workers, obstacle)
    from pipeline.dali import DaliDecoder

    normalised = dtype.is_floating_point
    return DaliDecoder(shards, image_size, channels, device, batch_size, workers, normalised)


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
