"""From the options of a command to the batches that it takes."""

from __future__ import annotations

import math

import torch

from pipeline.errors import UserError
from pipeline.images.size import sides
from pipeline.loading.batches import Batches
from pipeline.loading.cache import Progress, ResidentCache
from pipeline.loading.loader import Loader
from pipeline.loading.options import LoaderOptions
from pipeline.loading.synthetic import SyntheticLoader
from pipeline.machine import free_memory
from pipeline.remote.files import RemoteFiles
from pipeline.remote.open import open_set
from pipeline.shards.shard_set import ShardSet

SYNTHETIC = "synthetic"
"""What `--shards` says to train on noise instead of a shard set."""

CACHE_SHARE = 0.5
"""Share of the free memory that `--cache auto` takes at most; the rest is left to the step, to the
system's own cache, and to whoever else works on the machine."""


def open_loader(
    shards: str | ShardSet, options: LoaderOptions, progress: Progress = lambda done, total: None
) -> Batches:
    """Open what `--shards` names with the best loader that this machine can run.

    Args:
        shards: folder or URL of a set, or `SYNTHETIC`; or a set that is open.
        options: what its batches are to be.
        progress: called with how far the cache is.

    Raises:
        UserError: no usable shard set there, one too small for the batch, or too large for the
            cache that was asked for.
    """
    if shards == SYNTHETIC:
        return SyntheticLoader(options)
    shard_set = shards if isinstance(shards, ShardSet) else open_set(shards, options.access)
    where, why = place_cache(len(shard_set), options)
    batches: Batches
    if where is None:
        batches = Loader(shard_set, options)
    else:
        batches = ResidentCache(shard_set, options, where, progress)
    batches.description += f"; {why}"
    if isinstance(files := shard_set.files, RemoteFiles):
        there, total = files.there()
        batches.description += (
            f"; shards kept in {files.cache.folder}, {there / 1e6:,.0f} of {total / 1e6:,.0f} MB"
            " so far"
        )
        batches.description += f"; {files.note}" if files.note else ""
    if shard_set.manifest.labels is not None and not options.labels:
        batches.description += "; its labels are not used"
    return batches


def place_cache(images: int, options: LoaderOptions) -> tuple[torch.device | None, str]:
    """Where to keep a decoded set, or None, and the reason for people.

    `auto` takes the device's memory where the set fits in `CACHE_SHARE` of what is free, or else
    the host's, or else none.

    Args:
        images: in the set; a device takes one rank's share of them, the host's memory all.
        options: `cache` is what was asked for.

    Raises:
        UserError: the memory that was asked for has not that much free.
    """
    cache, decoded = options.cache, images * math.prod(sides(options.image_size)) * options.channels
    if cache == "off":
        return None, "no cache, as asked"
    host = torch.device("cpu")
    places = {"device": [options.device], "host": [host], "auto": [options.device, host]}[cache]
    limit = CACHE_SHARE if cache == "auto" else 1.0
    found = []
    for place in dict.fromkeys(places):
        kept = decoded if place == host else -(-decoded // options.num_ranks)
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
