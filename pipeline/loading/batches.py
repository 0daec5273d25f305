"""What the trainer takes its batches from: the options, interface and state of every loader."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import KW_ONLY, dataclass
from typing import Any, Self

import torch

from pipeline.errors import UserError
from pipeline.images.pixels import to_signed, to_signed_alone
from pipeline.loading.prefetcher import DATA_TIMEOUT
from pipeline.machine import usable_cores
from pipeline.shards.manifest import ShardSet
from pipeline.shards.order import WINDOW

MAX_WORKERS = 8
"""More decoding threads than this were never needed to feed small images; `--workers` overrules."""

MAX_WORKERS_OF_A_GPU = 4
"""Threads that feed a GPU's decoder get in each other's way: beside an H100, on 16 cores, 2, 4, 6
and 8 gave 10,454, 22,035, 20,923 and 16,709 faces of 178×218 a second, in batches of 128."""

CPU = torch.device("cpu")


@dataclass(frozen=True)
class LoaderOptions:
    """What batches are to be, and how they are made: from `open_loader` down to DALI's graph."""

    batch_size: int
    """Images in a batch, on this rank."""
    image_size: int = 64
    """Side of the square images, in pixels."""
    channels: int = 3
    """3 (RGB) or 1 (luma)."""
    _: KW_ONLY
    device: torch.device = CPU
    """Where batches go."""
    seed: int = 0
    """The order of images is a function of it and the epoch; so is noise, where that is served."""
    dtype: torch.dtype = torch.float32
    """float32 for normalised batches, uint8 for stored pixels."""
    workers: int | None = None
    """Decoding threads; None for one a core, at most 8, or 4 for a GPU."""
    cache: str = "auto"
    """Where `open_loader` keeps the decoded set: `device`, `host`, `auto` or `off`."""
    data_timeout: float = DATA_TIMEOUT
    """Seconds to wait for a batch."""
    rank: int = 0
    """Of this process among all; each reads and keeps its own share of the set."""
    num_ranks: int = 1
    """Number of processes."""

    @property
    def threads(self) -> int:
        """Decoding threads, the default resolved."""
        return self.workers or default_workers(self.device)

    def identity(self, shards: ShardSet | None = None, decoder: str = "") -> dict[str, str | int]:
        """All that the contents of batch b of epoch e depend on, by name; checkpoints hold it.

        Args:
            shards: the set; None for noise.
            decoder: name of what decodes its samples.
        """
        own: dict[str, str | int] = {
            "--batch-size": self.batch_size,
            "--image-size": self.image_size,
            "--channels": self.channels,
            "--seed": self.seed,
            "rank": self.rank,
            "ranks": self.num_ranks,
        }
        if shards is None:
            return {"shard set": "synthetic"} | own
        source = {"shard set": shards.fingerprint, "recipe": shards.manifest.recipe.told()}
        return source | own | {"decoder": decoder, "window": WINDOW}


class Batches(ABC):
    """Batches on the device, without end.

    An epoch is `steps_per_epoch` batches; within it no image occurs twice.

    Args:
        batch_size: images in a batch, on this rank.
        steps_per_epoch: batches in an epoch.
        dtype: float32 for batches (B, C, S, S) in [-1, 1], channels_last; uint8 for stored pixels,
            (B, S, S, C).
        identity: all that the contents of batch b of epoch e depend on, by name; see
            `LoaderOptions.identity`.
        description: one line for people: which loader this is, and why.
    """

    def __init__(
        self,
        batch_size: int,
        steps_per_epoch: int,
        dtype: torch.dtype,
        identity: dict[str, str | int],
        description: str,
    ) -> None:
        self.batch_size, self.steps_per_epoch = batch_size, steps_per_epoch
        self.dtype, self.identity, self.description = dtype, identity, description
        self.epoch = 0
        self.batch = 0
        """Of the epoch; the one that comes next."""
        self._taken = self._closed = False

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> torch.Tensor:
        """The next batch, in `dtype`.

        Raises:
            UserError: the data is damaged, or does not come in time.
            StopIteration: it is closed.
        """
        images = self._take_next(None)
        if not self.dtype.is_floating_point:
            return images
        if images.is_floating_point():
            return images.permute(0, 3, 1, 2)
        return to_signed(images) if images.device.type != "cpu" else to_signed_alone(images)

    def fill(self, buffer: torch.Tensor) -> None:
        """Put the next batch into a static buffer, on the current stream: one copy, no allocation.

        Args:
            buffer: (B, S, S, C) uint8 on the device, contiguous.
        """
        assert not self.dtype.is_floating_point, "static buffers take uint8"
        self._take_next(buffer)

    def state_dict(self) -> dict[str, Any]:
        """Where it stands, in plain values: what `load_state_dict` needs to give the next batch."""
        return {"epoch": self.epoch, "batch": self.batch, "identity": dict(self.identity)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state, in this process or another one, before the first batch is taken.

        Raises:
            UserError: it is the state of other batches than these.
            RuntimeError: a batch was taken before.
        """
        if self._taken:
            raise RuntimeError("a loader that has given batches does not go back")
        self._refuse_other(state["identity"])
        self.epoch, self.batch = state["epoch"], state["batch"]

    def close(self) -> None:
        """Stop all threads and let go of files and memory."""
        self._closed = True
        self._close()

    @abstractmethod
    def _close(self) -> None: ...

    @abstractmethod
    def _take(self, out: torch.Tensor | None) -> torch.Tensor:
        """Batch `batch` of epoch `epoch`, (B, S, S, C); into `out` where that is given."""

    def _take_next(self, out: torch.Tensor | None) -> torch.Tensor:
        if self._closed:
            raise StopIteration
        images = self._take(out)
        self._taken = True
        self.batch += 1
        if self.batch == self.steps_per_epoch:
            self.epoch, self.batch = self.epoch + 1, 0
        return images

    def _refuse_other(self, saved: dict[str, Any]) -> None:
        names = [name for name in self.identity if saved.get(name) != self.identity[name]]
        if names:
            raise UserError(
                "the saved position of the data",
                ", ".join(f"{name} {saved.get(name)}" for name in names),
                ", ".join(f"{name} {self.identity[name]}" for name in names),
                "resume with the shard set and the options that the run began with",
            )


def default_workers(device: torch.device) -> int:
    """Decoding threads where nobody asks for a number."""
    most = MAX_WORKERS_OF_A_GPU if device.type == "cuda" else MAX_WORKERS
    return min(usable_cores(), most)
