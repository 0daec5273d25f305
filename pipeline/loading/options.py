"""How a loader is configured. Its defaults cost neither torch nor numpy: `--help` shows them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pipeline.images.fit import CROP
from pipeline.images.size import ImageSize, plain_size
from pipeline.machine import usable_cores
from pipeline.remote.access import Access

if TYPE_CHECKING:
    import torch

    from pipeline.shards.shard_set import ShardSet

MAX_WORKERS = 8
"""More decoding threads than this were never needed to feed small images; `--workers` overrules."""

MAX_WORKERS_OF_A_GPU = 4
"""Threads that feed a GPU's decoder get in each other's way: beside an H100, on 16 cores, 2, 4, 6
and 8 gave 10,454, 22,035, 20,923 and 16,709 faces of 178×218 a second, in batches of 128."""


def _cpu() -> torch.device:
    import torch

    return torch.device("cpu")


def _float32() -> torch.dtype:
    import torch

    return torch.float32


@dataclass(frozen=True)
class LoaderOptions:
    """What batches are to be, and how they are made: from `open_loader` down to DALI's graph."""

    batch_size: int
    """Images in a batch, on this rank."""
    image_size: ImageSize = 64
    """Side of square images, or width and height of others, in pixels."""
    channels: int = 3
    """3 (RGB) or 1 (luma)."""
    device: torch.device = field(default_factory=_cpu)
    """Where batches go."""
    seed: int = 0
    """The order of images is a function of it and the epoch; so is noise, where that is served."""
    dtype: torch.dtype = field(default_factory=_float32)
    """float32 for normalised batches, uint8 for stored pixels."""
    labels: bool = False
    """Whether batches come with the labels of their images."""
    workers: int | None = None
    """Decoding threads; None for one a core, at most 8, or 4 for a GPU."""
    cache: str = "auto"
    """Where `open_loader` keeps the decoded set: `device`, `host`, `auto` or `off`."""
    data_timeout: float = 120.0
    """Seconds without a batch after which a loader gives up: a network share's usual pauses are
    shorter, and a night spent waiting for a dead one is longer."""
    rank: int = 0
    """Number of this process; each reads and keeps its own share of the set."""
    num_ranks: int = 1
    """Number of processes."""
    local_ranks: tuple[int, ...] = ()
    """The ranks on this machine, if there are several."""
    access: Access = field(default_factory=Access)
    """How a remote set is reached."""
    fit: str | None = None
    """How images of another shape come to that size, as `pipeline.images.fit` has it; None for the
    set's own way, which is `crop` unless it was packed to have another."""

    @property
    def threads(self) -> int:
        """Decoding threads, the default resolved."""
        return self.workers or default_workers(self.device)

    def identity(self, shards: ShardSet | None = None, decoder: str = "") -> dict[str, str | int]:
        """Everything that batch b of epoch e depends on, by name; checkpoints hold it.

        Without a set, it is that of noise.
        """
        own: dict[str, str | int] = {
            "--batch-size": self.batch_size,
            "--image-size": plain_size(self.image_size),
            "--channels": self.channels,
            "--seed": self.seed,
            "rank": self.rank,
            "ranks": self.num_ranks,
        }
        if shards is None:
            return {"shard set": "synthetic"} | own
        from pipeline.shards.order import WINDOW

        source = {"shard set": shards.fingerprint, "recipe": shards.manifest.recipe.describe()}
        fit = shards.fit_of(self.fit)
        fitted = {} if fit == CROP else {"--fit": fit}
        return source | own | {"decoder": decoder, "window": WINDOW} | fitted


def default_workers(device: torch.device) -> int:
    """Decoding threads where nobody asks for a number."""
    most = MAX_WORKERS_OF_A_GPU if device.type == "cuda" else MAX_WORKERS
    return min(usable_cores(), most)
