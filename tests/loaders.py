"""Every way to take the batches of a shard set on the CPU, under the names that tests give them."""

from collections.abc import Iterator
from itertools import chain
from typing import Any

import pytest
import torch

from pipeline.loading.batches import Batches
from pipeline.loading.cache import ResidentCache
from pipeline.loading.decoders import Decoder, ThreadDecoder
from pipeline.loading.loader import Loader
from pipeline.loading.options import LoaderOptions
from pipeline.shards.order import Schedule
from pipeline.shards.shard_set import ShardSet
from tests.needs import take
from tests.pictures import numbers, stored

CPU = torch.device("cpu")

DECODERS = ("dali", "threads", "raw")
KINDS = tuple(f"{decoder}{cached}" for decoder in DECODERS for cached in ("", "-cached"))
"""Each decoder, and the cache over it. `raw` is what serves `raw` sets, the others the JPEGs."""

of_jpegs = pytest.mark.parametrize(
    "kind", [kind for kind in KINDS if not kind.startswith("raw")], indirect=True
)
"""For tests whose set is of JPEGs."""


def decoder_of(name: str, shards: ShardSet, options: LoaderOptions) -> Decoder | None:
    """A decoder by its name; None, which lets the loader choose, where nothing is to be decoded."""
    if shards.manifest.recipe.store == "raw":
        return None
    if name == "threads":
        return ThreadDecoder(shards, options)
    from pipeline.loading.dali import DaliDecoder

    return DaliDecoder(shards, options)


def open_kind(
    kind: str,
    shards: ShardSet,
    batch_size: int,
    image_size: int = 32,
    *,
    workers: int = 2,
    dtype: torch.dtype = torch.float32,
    **options: Any,
) -> Batches:
    """Open one of `KINDS`.

    Args:
        kind: its name.
        shards: a set.
        batch_size: images in a batch.
        image_size: side of the images, in pixels.
        workers: threads.
        dtype: of the batches.
        options: other fields of `LoaderOptions`.
    """
    name, _, cached = kind.partition("-")
    asked = LoaderOptions(
        batch_size,
        image_size,
        dtype=dtype,
        workers=workers,
        **options,
    )
    decoder = decoder_of(name, shards, asked)
    if cached:
        return ResidentCache(shards, asked, CPU, decoder=decoder)
    return Loader(shards, asked, decoder)


def keys(shards: ShardSet) -> list[int]:
    """The key of each row: of a numbered set, the number of the picture there."""
    return [int(name.partition(".")[0]) for name, _ in chain.from_iterable(stored(shards))]


def planned(schedule: Schedule, key_of: list[int], epoch: int) -> list[int]:
    """The pictures of an epoch in their order, as the schedule has them."""
    return [key_of[row] for rows in schedule.batches(epoch) for row in rows]


def take_epochs(batches: Batches, epochs: int) -> list[list[int]]:
    """The numbers of the pictures seen, one list an epoch; of uint8 batches."""
    steps = batches.steps_per_epoch
    return [list(chain.from_iterable(each)) for each in _in_epochs(batches, epochs, steps)]


def _in_epochs(batches: Batches, epochs: int, steps: int) -> Iterator[list[list[int]]]:
    for _ in range(epochs):
        yield [numbers(batch) for batch in take(batches, steps)]
