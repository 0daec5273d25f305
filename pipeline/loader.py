"""Batches on the device, without end.

Three loaders share one interface, `Batches`: `Loader` (DALI), `FallbackLoader` (webdataset and
torchvision, where DALI cannot run) and `SyntheticLoader` (batches that cost nothing).
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Self

import torch
from torch.utils.dlpack import from_dlpack

from pipeline.batches import Batches, damage_error, default_workers, steps_per_epoch
from pipeline.errors import UserError
from pipeline.manifest import ShardSet

SYNTHETIC = "synthetic"
"""What `--shards` says to train on noise instead of a shard set."""


class Loader:
    """The DALI graph over a shard set, as an endless iterator.

    Args:
        shards: an opened set.
        batch_size: images in a batch, on this rank.
        image_size: side of the square images, in pixels.
        device: where the batches are born, `cpu` or `cuda`.
        seed: the order of images is a function of it and the epoch.
        dtype: float32 for normalised batches, uint8 for stored pixels.
        rank: of this process among all; ranks see disjoint images.
        num_ranks: number of processes.
        channels: 3 (RGB) or 1 (luma).
        workers: decoding threads; None for one a core, at most eight.

    Raises:
        UserError: the batch is larger than this rank's share of the set, or the set has fewer
            pixels than asked for.
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
    ) -> None:
        from nvidia.dali import __version__ as dali_version

        from pipeline.graph import build_graph

        shards.require_size(image_size)
        self.batch_size = batch_size
        self.steps_per_epoch = steps_per_epoch(len(shards), batch_size, num_ranks)
        self.device = torch.device(device)
        workers = workers or default_workers()
        self.description = f"DALI {dali_version} on {self.device}, {workers} threads"
        self._shards = shards
        self._shape = (batch_size, image_size, image_size, channels)
        self._dtype = dtype
        self._batch_of_epoch = 0
        share = -(-len(shards) // num_ranks)
        self._batches_read_per_epoch = -(-share // batch_size)
        cuda = self.device.type == "cuda"
        self._pipeline: Any = build_graph(
            shards,
            batch_size=batch_size,
            image_size=image_size,
            channels=channels,
            device="cuda" if cuda else "cpu",
            device_id=(self.device.index or 0) if cuda else None,
            seed=seed,
            workers=workers,
            normalised=dtype.is_floating_point,
            rank=rank,
            num_ranks=num_ranks,
        )
        self._pipeline.build()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> torch.Tensor:
        if self._batch_of_epoch == self.steps_per_epoch:
            for _ in range(self._batches_read_per_epoch - self.steps_per_epoch):
                self._run()  # the short batch at the epoch's end, filled up with repetitions
            self._batch_of_epoch = 0
        batch = self._run()
        self._batch_of_epoch += 1
        return batch.permute(0, 3, 1, 2) if self._dtype.is_floating_point else batch

    def _run(self) -> torch.Tensor:
        """Take a batch from the graph: (B, S, S, C), contiguous, ordered on the current stream."""
        cuda = self.device.type == "cuda"
        stream = torch.cuda.current_stream(self.device) if cuda else None
        try:
            (output,) = self._pipeline.run(stream)
        except RuntimeError as error:
            raise _decode_error(self._shards, error) from error
        if stream is None:
            # The dynamic executor never writes again to a batch that somebody holds
            return from_dlpack(output.as_tensor())
        return self._copy_on(stream, output)

    def _copy_on(self, stream: torch.cuda.Stream, output: Any) -> torch.Tensor:
        """Copy a batch out on a stream, without a wait on the host.

        Exporting it through dlpack instead would leave its release to a background thread of
        DALI's that synchronises the whole device (dali/pipeline/data/dltensor.cc).
        """
        from nvidia.dali.plugin.pytorch import feed_ndarray

        batch = torch.empty(self._shape, dtype=self._dtype, device=self.device)
        feed_ndarray(output.as_tensor(), batch, cuda_stream=stream)
        return batch

    def close(self) -> None:
        self._pipeline = None


def open_loader(
    shards: str,
    batch_size: int,
    image_size: int,
    channels: int,
    device: torch.device,
    seed: int,
    workers: int | None,
    dtype: torch.dtype = torch.float32,
) -> Batches:
    """Open what `--shards` names with the best loader that this machine can run.

    Raises:
        UserError: no usable shard set there, or one too small for the batch.
    """
    if shards == SYNTHETIC:
        from pipeline.synthetic import SyntheticLoader

        return SyntheticLoader(batch_size, image_size, channels, device, seed, dtype)
    shard_set = ShardSet.open(Path(shards))
    build: Callable[..., Batches] = Loader
    if obstacle := _why_not_dali(device):
        from pipeline.fallback import FallbackLoader

        build = partial(FallbackLoader, reason=obstacle)
    options = {"channels": channels, "workers": workers}
    return build(shard_set, batch_size, image_size, device, seed, dtype, **options)


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


def _decode_error(shards: ShardSet, error: RuntimeError) -> UserError:
    """Tell of an error that DALI met at run time, without its three frames around one line."""
    reason = str(error).partition("encountered:")[2].strip() or str(error)
    return damage_error(shards, f"an image that DALI cannot decode ({reason.splitlines()[0]})")
