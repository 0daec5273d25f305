"""Seeded orders, the same on every machine and in every release, and the batches cut from them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt

from pipeline.errors import UserError
from pipeline.shards.shard_set import ShardSet

Rows = npt.NDArray[np.int64]
"""Places in a shard set: its first shard's first sample is row 0."""


def permutation(count: int, seed: int, epoch: int = 0) -> Rows:
    """A uniformly random order of `range(count)`, a function of (count, seed, epoch) alone.

    Returns:
        (count,) int64.
    """
    return _shuffled(count, _stream(seed, epoch))


def windowed(counts: Sequence[int], window: int, seed: int, epoch: int) -> Rows:
    """A random order of `range(sum(counts))` that a disk can follow, a function of its arguments.

    Pieces come in a random order; windows of whole pieces are then shuffled together. So reading
    in this order touches few pieces at a time, each of them once. A window as large as the whole
    gives every order the same probability.

    Args:
        counts: the length of each piece, in order.
        window: places in a window, at least, on average; windows differ by less than a piece.
        seed: picks the order, together with the epoch.
        epoch: counts from 0.

    Returns:
        (sum(counts),) int64.
    """
    stream = _stream(seed, epoch, 1)
    lengths = np.asarray(counts, dtype=np.int64)
    starts = np.cumsum(lengths) - lengths
    pieces = _shuffled(len(lengths), stream)
    places = np.concatenate([np.arange(starts[p], starts[p] + lengths[p]) for p in pieces])
    before = np.cumsum(lengths[pieces]) - lengths[pieces]
    number = max(1, len(places) // window)
    windows = np.repeat(before * number // max(1, len(places)), lengths[pieces])
    order: Rows = places[np.lexsort((stream.random_raw(len(places)), windows))]
    return order


def _stream(*seed: int) -> np.random.Philox:
    """A raw stream of random bits, which is all that NumPy promises never to change (NEP 19)."""
    return np.random.Philox(np.random.SeedSequence(seed))


def _shuffled(count: int, stream: np.random.Philox) -> Rows:
    return np.argsort(stream.random_raw(count), kind="stable")


WINDOW = 32_768
"""Samples shuffled together, or somewhat more: eight shards of the default size, some 240 MB of
CelebA's originals, which the system's page cache has to hold while they are read in random order.
Smaller sets, and all sets within one window, are shuffled uniformly."""


@dataclass(frozen=True)
class Schedule:
    """The rows of every batch of every epoch on one rank.

    A rank owns a fixed run of rows, so that it reads and caches only its own part of a set. Within
    an epoch no row occurs twice; the rows that fill no batch differ from epoch to epoch.
    """

    first: int
    """This rank's first row."""
    counts: tuple[int, ...]
    """How many of its rows lie in each shard that it touches."""
    batch_size: int
    steps_per_epoch: int
    """The same on all ranks."""
    seed: int

    @classmethod
    def of(
        cls, shards: ShardSet, batch_size: int, seed: int, rank: int = 0, num_ranks: int = 1
    ) -> Self:
        """Share a set out among ranks.

        Raises:
            UserError: a batch is larger than the smallest share.
        """
        samples = len(shards)
        first, last = (samples * r // num_ranks for r in (rank, rank + 1))
        ends = np.cumsum([shard.samples for shard in shards.manifest.shards])
        inside = np.diff(np.clip(ends, first, last), prepend=first)
        counts = tuple(int(count) for count in inside if count)
        return cls(first, counts, batch_size, steps_per_epoch(samples, batch_size, num_ranks), seed)

    def __len__(self) -> int:
        return sum(self.counts)

    def order(self, epoch: int) -> Rows:
        """All rows of this rank in the order of an epoch; batches are consecutive pieces of it."""
        return self.first + windowed(self.counts, WINDOW, self.seed, epoch)

    def rows(self, epoch: int, skipped: int = 0) -> Rows:
        """The rows of an epoch's batches, one after another, from the `skipped`-th batch on."""
        return self.order(epoch)[: self.steps_per_epoch * self.batch_size][
            skipped * self.batch_size :
        ]

    def batches(self, epoch: int) -> Iterator[Rows]:
        """The rows of an epoch's batches, (batch_size,) each."""
        return batches_of(self.rows(epoch), self.batch_size)


ReadPlan = Callable[[Schedule], Iterator[Rows]]
"""What is to be read: for the schedule of a rank, its rows in their order, in runs such as epochs.
Called before the first batch is taken."""


def batches_of(rows: Rows, batch_size: int) -> Iterator[Rows]:
    """Cut rows into batches; the last may be smaller."""
    return (rows[start : start + batch_size] for start in range(0, len(rows), batch_size))


def steps_per_epoch(samples: int, batch_size: int, num_ranks: int = 1) -> int:
    """Full batches that every rank can take from its share of a set.

    Raises:
        UserError: not even one.
    """
    steps = samples // num_ranks // batch_size
    if steps == 0:
        share = f"{samples} images" + (f" for {num_ranks} ranks" if num_ranks > 1 else "")
        most = max(1, samples // num_ranks) * num_ranks
        raise UserError(
            f"--batch-size {batch_size * num_ranks}",
            f"a set of {share}",
            "at least one full batch in an epoch",
            f"use --batch-size {most} or less, or pack more images",
        )
    return steps
