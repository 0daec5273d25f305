"""How well a shard set is mixed: are its samples in the order of a uniform shuffle?

A key is the sample's rank in the source's sorted names, so the keys in tar order are a permutation.
Two questions, each with what chance explains as its measure. First: how far apart in the source are
samples that stand next to each other? That notices an order that was sorted, dealt in turn like
cards, or shuffled in a small buffer. Second: does every shard draw from the whole source? That
notices shards that were dealt in the source's order, however well each is shuffled in itself.

The tests are distribution-free: the keys are ranks, so what chance does is known without a model.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

FALSE_ALARM = 1e-5
"""How often a uniform shuffle is called none: at most once in so many sets, half of it for each
question. Far below 5 %, since the remedy is to pack again. In 3 million simulated shuffles of 100
the normal tails of the first question were kept: 4 in a million beyond 4.5 deviations."""

MIN_SAMPLES = 100
"""Of fewer, chance alone moves the distance of neighbours by more than 30 %."""

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Mixing:
    """Both figures of a set; all are shares: 1.0 is the whole."""

    distance: float
    """Mean distance of neighbours, as a share of what a uniform shuffle gives."""
    distance_limit: float
    """How far that may be from 1 by chance, on either side: orders that jump to and fro between the
    ends of the source are no shuffles either."""
    stray: float
    """Of the least typical shard: how far its share of any first part of the source is from that
    part's own share."""
    stray_limit: float
    """How far it may be by chance; 0 if there is one shard, which is the whole."""

    @property
    def uniform(self) -> bool:
        """Whether chance explains both."""
        return abs(self.distance - 1) <= self.distance_limit and self.stray <= self.stray_limit

    def told(self) -> str:
        """The verdict and both figures in a line."""
        verdict = "a random order" if self.uniform else "not a random order"
        neighbours = (
            f"{verdict}: neighbours are {self.distance:.1%} as far apart in the source"
            f" as in a uniform shuffle"
        )
        if not self.stray_limit:
            return neighbours
        return (
            f"{neighbours}; the least typical shard is {self.stray:.1%} off the whole source,"
            f" where chance explains {self.stray_limit:.1%}"
        )


def measure(keys: Ints, sizes: Ints, false_alarm: float = FALSE_ALARM) -> Mixing | None:
    """How well a set is mixed.

    Args:
        keys: (n,) of all samples, in the order of the tars; gaps do not matter.
        sizes: (shards,) samples of each shard, in the same order; they add up to n.
        false_alarm: the share of uniform shuffles that may be called none.

    Returns:
        None if there are fewer than `MIN_SAMPLES`.
    """
    if len(keys) < MIN_SAMPLES:
        return None
    sizes = sizes[sizes > 0]
    ranks = dense_ranks(keys)
    distance_limit = NormalDist().inv_cdf(1 - false_alarm / 4) * distance_deviation(len(keys))
    strays = shard_strays(ranks, sizes)
    limits = stray_limits(sizes, false_alarm / 2)
    # Shards may differ in size, and of a small one chance explains more
    worst = int(np.argmax(strays / np.maximum(limits, np.finfo(np.float64).tiny)))
    return Mixing(
        distance=neighbour_distance(ranks),
        distance_limit=distance_limit,
        stray=float(strays[worst]),
        stray_limit=float(limits[worst]),
    )


def dense_ranks(keys: Ints) -> Ints:
    """Ranks 0 to n − 1 of keys that may have gaps, where images were rejected.

    Args:
        keys: (n,)

    Returns:
        (n,), in the order of the keys.
    """
    ranks = np.empty(len(keys), np.int64)
    ranks[np.argsort(keys, kind="stable")] = np.arange(len(keys))
    return ranks


def neighbour_distance(ranks: Ints) -> float:
    """Mean `|difference|` of adjacent ranks, as a share of a uniform shuffle's mean, (n + 1) / 3.

    The common test of such an order squares the differences (R. Bartels, "The Rank Version of von
    Neumann's Ratio Test for Randomness", JASA 77, 1982, pp. 40–46). Absolute ones are as sensitive
    here, and are a distance that one can picture: half the figure is half as far.

    Args:
        ranks: (n,) a permutation of 0 to n − 1, n > 1.
    """
    return float(np.abs(np.diff(ranks)).mean()) / ((len(ranks) + 1) / 3)


def distance_deviation(count: int) -> float:
    """Standard deviation of `neighbour_distance` over all orders of so many ranks, n > 1.

    The sum of the differences has the variance (n − 2)(n + 1)(4n − 7) / 90: each `|U − V|` of
    uniform variables contributes 1/18, adjacent ones 1/180 twice, less 4/180 as the ranks are
    given. The test compares it with all permutations of up to eight.
    """
    variance = (count - 2) * (count + 1) * (4 * count - 7) / 90
    return 3 * math.sqrt(variance) / ((count - 1) * (count + 1))


def shard_strays(ranks: Ints, sizes: Ints) -> Floats:
    """Kolmogorov-Smirnov distance of each shard from the whole set.

    The largest difference, over all x, between the share of the shard and the share of the set that
    stand below x in the source. A shard's mean rank would miss one that draws from both ends only.

    Args:
        ranks: (n,) a permutation of 0 to n − 1.
        sizes: (shards,) each > 0; they add up to n.

    Returns:
        (shards,) float64 in [0, 1).
    """
    total, starts = len(ranks), np.cumsum(sizes) - sizes
    shard_of_place = np.repeat(np.arange(len(sizes)), sizes)
    by_shard = ranks[np.lexsort((ranks, shard_of_place))]  # ascending within each shard
    place = np.arange(total) - starts[shard_of_place]
    size = sizes[shard_of_place]
    below = np.abs(place / size - by_shard / total)
    up_to = np.abs((place + 1) / size - (by_shard + 1) / total)
    strays: Floats = np.maximum.reduceat(np.maximum(below, up_to), starts)
    return strays


def stray_limits(sizes: Ints, false_alarm: float) -> Floats:
    """What `shard_strays` stays below, for all shards together, in all uniform shuffles but a few.

    P(D > x) ≤ 2 exp(−2 x² m n / (n − m)) for a shard of m, which is the two-sample inequality of
    Dvoretzky, Kiefer and Wolfowitz, here between the shard and the others (F. Wei and R. M. Dudley,
    "Two-sample Dvoretzky–Kiefer–Wolfowitz inequalities", Statistics & Probability Letters 82, 2012,
    pp. 636–644), and every shard may have an equal part of the rate.

    Args:
        sizes: (shards,) each > 0.
        false_alarm: the rate.

    Returns:
        (shards,) float64; 0 for a shard that is the whole set.
    """
    total = sizes.sum()
    limits: Floats = np.sqrt(
        math.log(2 * len(sizes) / false_alarm) / 2 * (total - sizes) / (sizes * total)
    )
    return limits
