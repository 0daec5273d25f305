"""The seeded orders, frozen: shard sets and epochs must come out the same next year."""

import hashlib
import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.shards.order import permutation, windowed

GOLDEN = {
    # (count, seed, epoch): the order
    (10, 0, 0): [0, 8, 9, 3, 7, 5, 1, 2, 6, 4],
    (10, 0, 1): [3, 7, 4, 2, 9, 8, 1, 6, 5, 0],
    (10, 1, 0): [2, 0, 1, 4, 5, 6, 7, 8, 3, 9],
    (7, 123456789, 42): [1, 6, 2, 5, 3, 0, 4],
}


@pytest.mark.parametrize(("count", "seed", "epoch"), GOLDEN, ids=str)
def test_orders_are_those_of_the_first_release(count, seed, epoch):
    assert permutation(count, seed, epoch).tolist() == GOLDEN[count, seed, epoch]


def test_celebas_order_is_that_of_the_first_release():
    order = permutation(202_599, 0)
    assert hashlib.sha256(order.astype("<i8").tobytes()).hexdigest() == (
        "dd54b9f6e8bcfce3c198875189571f060a2765a39211307c99d92d3cb922f7d8"
    )


@pytest.mark.parametrize("count", [0, 1, 2, 1000])
def test_it_is_a_permutation(count):
    order = permutation(count, 3)
    assert order.dtype == np.int64
    assert sorted(order.tolist()) == list(range(count))


def test_seed_and_epoch_both_matter_and_are_not_added():
    orders = {tuple(permutation(50, seed, epoch)) for seed in range(4) for epoch in range(4)}
    assert len(orders) == 16


def test_every_place_is_as_likely_as_another():
    # Where number 0 ends up, over 2,000 seeds: each of 5 places 400 times, ±5 deviations
    places = [int(np.flatnonzero(permutation(5, seed) == 0)[0]) for seed in range(2000)]
    counts = np.bincount(places, minlength=5)
    assert np.abs(counts - 400).max() < 5 * np.sqrt(2000 * 0.2 * 0.8)


# In windows

WINDOWED = {
    # (lengths of the pieces, window, seed, epoch): the order
    ((10,), 10, 0, 0): [3, 6, 7, 5, 0, 9, 1, 8, 4, 2],
    ((10,), 10, 0, 1): [8, 0, 1, 7, 3, 4, 2, 5, 6, 9],
    ((10,), 10, 1, 0): [2, 9, 7, 5, 4, 6, 8, 3, 0, 1],
    ((3, 1, 4, 2), 5, 0, 0): [3, 6, 7, 5, 4, 1, 9, 8, 2, 0],
    ((3, 1, 4, 2), 5, 0, 1): [7, 3, 4, 5, 6, 8, 2, 0, 1, 9],
    ((2, 2, 2, 2), 1, 7, 3): [2, 3, 4, 5, 6, 7, 0, 1],
}

COUNTS = st.lists(st.integers(0, 30), min_size=1, max_size=12)


@pytest.mark.parametrize(("counts", "window", "seed", "epoch"), WINDOWED, ids=str)
def test_windowed_orders_are_those_of_the_first_release(counts, window, seed, epoch):
    order = windowed(counts, window, seed, epoch)
    assert order.tolist() == WINDOWED[counts, window, seed, epoch]


def test_celebas_windowed_order_is_that_of_the_first_release():
    order = windowed([4096] * 49 + [1895], 32_768, 0, 0)
    assert hashlib.sha256(order.astype("<i8").tobytes()).hexdigest() == (
        "6923657c6d69361b5cff10662b7f39f195586d1fda365f2ebf831ffaa838c593"
    )


@given(COUNTS, st.integers(1, 400), st.integers(0, 2**63), st.integers(0, 99))
def test_windowed_is_a_permutation_and_a_function_of_its_arguments(counts, window, seed, epoch):
    order = windowed(counts, window, seed, epoch)
    assert order.dtype == np.int64
    assert sorted(order.tolist()) == list(range(sum(counts)))
    assert np.array_equal(order, windowed(tuple(counts), window, seed, epoch))


@given(COUNTS, st.integers(1, 100), st.integers(0, 99))
def test_a_piece_is_read_at_once_and_then_never_again(counts, window, seed):
    order = windowed(counts, window, seed, 0)
    pieces = np.repeat(np.arange(len(counts)), counts)[order]
    reach = sum(counts) / max(1, sum(counts) // window) + max(counts)
    for piece in np.unique(pieces):
        places = np.flatnonzero(pieces == piece)
        assert places[-1] - places[0] < reach


@given(st.integers(1, 8), st.integers(1, 4), st.integers(1, 5), st.integers(0, 99))
def test_windows_of_equal_pieces_hold_as_many_as_fill_them(length, number, together, seed):
    pieces = number * together
    order = windowed([length] * pieces, together * length, seed, 0)
    windows = [
        set(order[start:][: together * length] // length)
        for start in range(0, length * pieces, together * length)
    ]
    assert sum(map(len, windows)) == pieces  # none lies in two
    assert all(len(window) == together for window in windows)


def chi_square(orders, kinds):
    """How far from even, in deviations of a chi-square of as many kinds; all must occur."""
    counts = np.array(list(Counter(orders).values()))
    assert len(counts) == kinds
    expected = len(orders) / kinds
    statistic = ((counts - expected) ** 2 / expected).sum()
    return (statistic - (kinds - 1)) / np.sqrt(2 * (kinds - 1))


@pytest.mark.parametrize("counts", [(4,), (1, 2, 1)], ids=str)
@pytest.mark.parametrize("window", [4, 1000])
def test_one_window_over_everything_makes_every_order_as_likely(counts, window):
    orders = [tuple(windowed(counts, window, seed, 0)) for seed in range(1200)]
    assert chi_square(orders, math.factorial(4)) < 5


def test_smaller_windows_shuffle_the_pieces_and_what_is_in_them():
    orders = [tuple(windowed((2, 2), 2, seed, 0)) for seed in range(2400)]
    assert chi_square(orders, 2 * 2 * 2) < 5


def test_loading_does_not_repeat_the_order_of_packing():
    for seed in range(5):
        assert not np.array_equal(windowed([50], 50, seed, 0), permutation(50, seed))
        assert not np.array_equal(windowed([1] * 50, 50, seed, 0), permutation(50, seed))
