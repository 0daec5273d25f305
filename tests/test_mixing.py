"""Orders of which it is known how well they are mixed."""

import itertools

import numpy as np
import pytest

from pipeline.mixing import (
    MIN_SAMPLES,
    dense_ranks,
    distance_deviation,
    measure,
    neighbour_distance,
    shard_strays,
    stray_limits,
)
from pipeline.shards.order import permutation

COUNT, PER_SHARD = 4000, 400


def in_shards(count, per_shard):
    """Sizes as packing deals them: the last shard may be shorter."""
    return np.diff(np.append(np.arange(0, count, per_shard), count))


def mixing(keys, per_shard=PER_SHARD, **options):
    keys = np.asarray(keys, np.int64)
    return measure(keys, in_shards(len(keys), per_shard), **options)


def buffered(count, buffer, seed=0):
    """What a reader with a small shuffle buffer makes of a sorted source."""
    chosen, held, order = np.random.default_rng(seed), list(range(buffer)), []
    for key in range(buffer, count):
        place = chosen.integers(buffer)
        order.append(held[place])
        held[place] = key
    return order + held


def shuffled_within_shards():
    return np.concatenate(
        [
            start + permutation(PER_SHARD, seed)
            for seed, start in enumerate(range(0, COUNT, PER_SHARD))
        ]
    )


def test_a_uniform_shuffle_gives_100_percent():
    for seed in range(20):
        found = mixing(permutation(COUNT, seed))
        assert found.uniform
        assert found.distance == pytest.approx(1, abs=4 * np.sqrt(0.4 / COUNT))
        assert 0 < found.stray < found.stray_limit < 0.15


def test_celebas_order_is_a_uniform_shuffle():
    found = mixing(permutation(202_599, 0), 4096)
    assert found.uniform
    assert found.distance == pytest.approx(1, abs=0.01)
    assert found.stray < 0.04


@pytest.mark.parametrize("per_shard", [PER_SHARD, COUNT])
@pytest.mark.parametrize("step", [1, -1])
def test_a_sorted_order_gives_0_percent(per_shard, step):
    found = mixing(range(COUNT)[::step], per_shard)
    assert not found.uniform
    assert found.distance == pytest.approx(3 / (COUNT + 1))
    assert "neighbours are 0.1% as far apart" in found.told()


def test_shuffled_shards_dealt_in_the_sources_order_are_noticed():
    found = mixing(shuffled_within_shards())
    assert not found.uniform
    assert found.distance == pytest.approx(0.1, abs=0.02)
    assert found.stray == pytest.approx(0.9, abs=0.01)  # the first shard is the first tenth


def test_one_shard_that_leans_to_a_half_is_noticed():
    # Neighbours do not show it: only the shards' own figure does
    order = permutation(COUNT, 0)
    low, high = order[order < COUNT // 2], order[order >= COUNT // 2]
    leaning, rest = np.append(low[:280], high[:120]), np.append(low[280:], high[120:])
    found = mixing(np.append(leaning[permutation(400, 1)], rest[permutation(3600, 2)]))
    assert abs(found.distance - 1) < found.distance_limit
    assert found.stray == pytest.approx(0.2, abs=0.04)
    assert not found.uniform


ORDERS = {
    "dealt in turn": np.arange(COUNT).reshape(PER_SHARD, -1).T.ravel(),
    "a small buffer": buffered(COUNT, 100),
    "to and fro": np.stack([np.arange(2000), COUNT - 1 - np.arange(2000)], 1).ravel(),
    "two sets, one after the other": np.append(permutation(2000, 0), 2000 + permutation(2000, 1)),
}


@pytest.mark.parametrize("name", ORDERS)
def test_other_orders_that_are_no_shuffles_are_noticed(name):
    assert sorted(ORDERS[name]) == list(range(COUNT))
    assert not mixing(ORDERS[name]).uniform


def test_neighbours_that_are_too_far_apart_are_noticed_too():
    found = mixing(ORDERS["to and fro"], COUNT)
    assert found.distance == pytest.approx(1.5, abs=0.01)
    assert not found.uniform


def test_the_least_typical_shard_is_not_just_the_smallest():
    order = np.concatenate([permutation(2000, 0), 2000 + permutation(1999, 1), [3999]])
    found = measure(order, np.array([2000, 1999, 1]))
    assert shard_strays(order, np.array([2000, 1999, 1]))[2] > 0.99  # one sample can but stray
    assert found is not None
    assert found.stray == pytest.approx(0.5, abs=0.01)
    assert found.stray_limit < 0.1


def test_a_shard_of_both_ends_is_noticed_though_its_mean_is_in_the_middle():
    ends = np.append(np.arange(100), np.arange(COUNT - 100, COUNT))
    (stray, _) = shard_strays(np.append(ends, np.arange(100, COUNT - 100)), np.array([200, 3800]))
    assert ends.mean() == (COUNT - 1) / 2
    assert stray == pytest.approx(0.5 - 100 / COUNT)


@pytest.mark.parametrize("per_shard", [7, 50, 300])
@pytest.mark.parametrize("rate", [0.01, 0.2])
def test_false_alarms_are_as_rare_as_promised(per_shard, rate):
    seeds = 1000
    alarms = sum(
        not mixing(permutation(300, seed), per_shard, false_alarm=rate).uniform
        for seed in range(seeds)
    )
    bound = seeds * rate + 4 * np.sqrt(seeds * rate * (1 - rate))
    assert alarms < bound
    assert alarms > (seeds * rate / 8 if rate > 0.1 else -1)  # and not because it is deaf


@pytest.mark.parametrize("count", range(2, 9))
def test_mean_and_deviation_are_those_of_all_permutations(count):
    distances = [neighbour_distance(np.array(p)) for p in itertools.permutations(range(count))]
    assert np.mean(distances) == pytest.approx(1)
    assert np.std(distances) == pytest.approx(distance_deviation(count), abs=1e-12)


def test_strays_are_those_of_a_literal_reference():
    ranks, sizes = permutation(60, 5), np.array([1, 20, 7, 32])
    shards = np.split(ranks, np.cumsum(sizes)[:-1])
    for shard, stray in zip(shards, shard_strays(ranks, sizes), strict=True):
        differences = [abs(np.mean(shard < x) - x / 60) for x in range(61)]
        assert stray == pytest.approx(max(differences))


def test_gaps_in_the_keys_change_nothing():
    order = permutation(COUNT, 2)
    stretched = order * 3 + 17 + (order > 1000) * 100_000
    assert mixing(stretched) == mixing(order)
    assert dense_ranks(np.array([90, 7, 8])).tolist() == [2, 0, 1]


def test_keys_left_out_by_chance_leave_a_shuffle():
    order = permutation(COUNT, 3)
    found = mixing(order[order % 5 != 0])
    assert found.uniform
    assert found.distance == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("count", [0, 1, 2, 12, MIN_SAMPLES - 1])
def test_too_few_samples_tell_nothing(count):
    assert mixing(np.arange(count), 5) is None
    assert mixing(np.arange(MIN_SAMPLES), 5) is not None


def test_one_shard_is_the_whole():
    found = mixing(permutation(COUNT, 0), COUNT)
    assert found.uniform
    assert (found.stray, found.stray_limit) == (0, 0)
    assert found.told().endswith("in a uniform shuffle")


@pytest.mark.parametrize("per_shard", [1, 2])
def test_tiny_shards_are_no_alarm(per_shard):
    assert mixing(permutation(COUNT, 1), per_shard).uniform


def test_an_empty_shard_is_none():
    order = permutation(200, 0)
    sizes = np.array([100, 100])
    assert measure(order, np.array([0, 100, 0, 100, 0])) == measure(order, sizes)


def test_a_small_shard_may_stray_further():
    small, large = stray_limits(np.array([10, 990]), 1e-5)
    assert small > large > 0
    assert stray_limits(np.array([1000]), 1e-5).tolist() == [0]


def test_told():
    found = mixing(permutation(COUNT, 0))
    assert found.told() == (
        f"a random order: neighbours are {100 * found.distance:.1f}%"
        f" as far apart in the source as in a uniform shuffle;"
        f" the least typical shard is {100 * found.stray:.1f}% off the whole source,"
        f" where chance explains {100 * found.stray_limit:.1f}%"
    )
