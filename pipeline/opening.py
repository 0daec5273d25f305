"""From the options of a command to the batches that it takes."""

from __future__ import annotations

from pathlib import Path

import torch

from pipeline.batches import Batches
from pipeline.cache import Progress, ResidentCache
from pipeline.errors import UserError
from pipeline.feeder import DATA_TIMEOUT
from pipeline.loader import Loader
from pipeline.manifest import ShardSet
from pipeline.memory import free_memory
from pipeline.synthetic import SyntheticLoader

SYNTHETIC = "synthetic"
"""What `--shards` says to train on noise instead of a shard set."""

CACHE_SHARE = 0.5
"""Of the free memory that `--cache auto` takes at most; the rest is left to the step, to the
system's own cache, and to whoever else works on the machine."""


def open_loader(
    shards: str,
    batch_size: int,
    image_size: int,
    channels: int,
    device: torch.device,
    seed: int = 0,
    workers: int | None = None,
    dtype: torch.dtype = torch.float32,
    cache: str = "auto",
    data_timeout: float = DATA_TIMEOUT,
    progress: Progress = lambda done, total: None,
    rank: int = 0,
    num_ranks: int = 1,
) -> Batches:
    """Open what `--shards` names with the best loader that this machine can run.

    Args:
        shards: folder of a set, or `SYNTHETIC`.
        batch_size: images in a batch, on this rank.
        image_size: side of the square images, in pixels.
        channels: 3 (RGB) or 1 (luma).
        device: where batches go.
        seed: of the order of images.
        workers: decoding threads; None for the default.
        dtype: float32 for normalised batches, uint8 for stored pixels.
        cache: where to keep the decoded set: `device`, `host`, `auto` or `off`.
        data_timeout: seconds to wait for a batch.
        progress: told how far the cache is.
        rank: of this process; each reads and keeps its own share of the set.
        num_ranks: number of processes.

    Raises:
        UserError: no usable shard set there, one too small for the batch, or too large for the
            cache that was asked for.
    """
    if shards == SYNTHETIC:
        sizes = batch_size, image_size, channels
        return SyntheticLoader(*sizes, device, seed, dtype, rank, num_ranks)
    shard_set = ShardSet.open(Path(shards))
    decoded = len(shard_set) * image_size**2 * channels
    where, why = place_cache(cache, decoded, device, num_ranks)
    loader = Loader(
        shard_set,
        batch_size,
        image_size,
        device,
        seed,
        dtype if where is None else torch.uint8,
        rank,
        num_ranks,
        channels=channels,
        workers=workers,
        data_timeout=data_timeout,
    )
    loader.description += f"; {why}"
    return loader if where is None else ResidentCache(loader, where, dtype, progress)


def place_cache(
    cache: str, decoded: int, device: torch.device, num_ranks: int = 1
) -> tuple[torch.device | None, str]:
    """Where to keep a decoded set, or None, and the reason for people.

    `auto` takes the device's memory where the set fits in `CACHE_SHARE` of what is free, or else
    the host's, or else none.

    Args:
        cache: `device`, `host`, `auto` or `off`.
        decoded: bytes of the decoded set.
        device: where batches go.
        num_ranks: that share the set: a device takes one share, the host's memory all of them.

    Raises:
        UserError: the memory that was asked for has not that much free.
    """
    if cache == "off":
        return None, "no cache, as asked"
    host = torch.device("cpu")
    places = {"device": [device], "host": [host], "auto": [device, host]}[cache]
    limit = CACHE_SHARE if cache == "auto" else 1.0
    found = []
    for place in dict.fromkeys(places):
        kept = decoded if place == host else -(-decoded // num_ranks)
        size = f"{kept / 1e6:,.1f} MB decoded"
        free = free_memory(place)
        found.append(
            f"{free / 1e6:,.0f} MB free {'in host memory' if place == host else f'on {place}'}"
        )
        if kept <= limit * free:
            return place, f"cached from the second epoch on: {size}, {found[-1]}"
    if cache != "auto":
        raise UserError(
            f"--cache {cache}", f"{size}, {found[0]}", "a set that fits", "use --cache auto or off"
        )
    return None, f"no cache: {size}, {', '.join(found)}; at most {CACHE_SHARE:.0%} is taken"
