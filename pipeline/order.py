"""Seeded orders that are the same on every machine and in every release."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Rows = npt.NDArray[np.int64]
"""Places in a shard set: its first shard's first sample is row 0."""


def permutation(count: int, seed: int, epoch: int = 0) -> Rows:
    """A uniformly random order of `range(count)`, a function of (seed, epoch) alone.

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
        seed: with `epoch`, says which order.
        epoch: see `seed`.

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
    """The raw stream of a bit generator is all that NumPy promises to keep (NEP 19)."""
    return np.random.Philox(np.random.SeedSequence(seed))


def _shuffled(count: int, stream: np.random.Philox) -> Rows:
    return np.argsort(stream.random_raw(count), kind="stable")
