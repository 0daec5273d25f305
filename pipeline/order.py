"""Seeded orders that are the same on every machine and in every release."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


def permutation(count: int, seed: int, epoch: int = 0) -> npt.NDArray[np.int64]:
    """A uniformly random order of `range(count)`, a function of (seed, epoch) alone.

    The raw stream of a bit generator is all that NumPy promises to keep from release to release
    (NEP 19); `Generator.permutation` is not, and shard sets must come out the same next year.

    Returns:
        (count,) int64.
    """
    stream = np.random.Philox(np.random.SeedSequence((seed, epoch)))
    return np.argsort(stream.random_raw(count), kind="stable")
