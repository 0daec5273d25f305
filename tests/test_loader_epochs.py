"""What an epoch is, the same for every loader: which images it holds, and in which order."""

from collections import Counter
from itertools import chain

import pytest
import torch

from pipeline.errors import UserError
from pipeline.shards.order import Schedule, steps_per_epoch
from tests.loaders import keys, planned, take_epochs

EPOCHS = [
    # images, images in a shard, batch size, ranks
    (24, 7, 6, 1),  # no rest
    (23, 9, 4, 3),  # shares of 7, 8 and 8; shards of 9, 9 and 5
    (9, 2, 2, 4),  # shares of 2, 2, 2 and 3; more ranks than some shards have images
    (7, 1, 3, 2),  # a shard an image
]


@pytest.mark.parametrize("window", [None, 5], ids=["one-window", "small-windows"])
@pytest.mark.parametrize(("images", "per_shard", "batch_size", "ranks"), EPOCHS, ids=str)
def test_no_image_comes_twice_in_an_epoch(
    open_batches, make_set, monkeypatch, images, per_shard, batch_size, ranks, window
):
    if window:
        monkeypatch.setattr("pipeline.shards.order.WINDOW", window)
    shards = make_set(images, per_shard)
    loaders = [
        open_batches(shards, batch_size, dtype=torch.uint8, rank=rank, num_ranks=ranks)
        for rank in range(ranks)
    ]
    steps = images // ranks // batch_size
    assert [loader.steps_per_epoch for loader in loaders] == [steps] * ranks
    seen = [take_epochs(loader, 4) for loader in loaders]
    for epoch in range(4):
        together = Counter(chain.from_iterable(share[epoch] for share in seen))
        assert together.total() == steps * batch_size * ranks
        assert max(together.values()) == 1  # so ranks are disjoint, too
        assert set(together) <= set(range(images))
        assert images - together.total() < batch_size * ranks


@pytest.mark.parametrize(("rank", "ranks"), [(0, 1), (1, 2)])
@pytest.mark.parametrize("window", [None, 5], ids=["one-window", "small-windows"])
def test_the_order_is_the_schedules(open_batches, make_set, monkeypatch, window, rank, ranks):
    if window:
        monkeypatch.setattr("pipeline.shards.order.WINDOW", window)
    shards = make_set(23, 9)
    share = {"seed": 7, "rank": rank, "num_ranks": ranks}
    schedule, key_of = Schedule.of(shards, 4, **share), keys(shards)
    assert sorted(key_of) == list(range(23))
    seen = take_epochs(open_batches(shards, 4, dtype=torch.uint8, **share), 4)
    assert seen == [planned(schedule, key_of, epoch) for epoch in range(4)]


@pytest.mark.parametrize("per_shard", [9, 23], ids=["shards", "one-shard"])
def test_order_is_a_function_of_seed_and_epoch(open_batches, make_set, per_shard):
    shards = make_set(23, per_shard)
    orders = [
        take_epochs(open_batches(shards, 4, dtype=torch.uint8, seed=seed), 3) for seed in (0, 0, 1)
    ]
    assert orders[0] == orders[1]
    different = {tuple(epoch) for order in orders for epoch in order}
    assert len(different) == 6


def test_other_images_go_unseen_each_epoch(open_batches, make_set):
    seen: set[int] = set()
    for epoch in take_epochs(open_batches(make_set(23, 9), 4, dtype=torch.uint8), 12):
        assert len(epoch) < 23
        seen |= set(epoch)
    assert seen == set(range(23))


def test_shards_come_in_another_order_each_epoch(open_batches, make_set, monkeypatch):
    # With a window of one shard, what comes together lay together
    monkeypatch.setattr("pipeline.shards.order.WINDOW", 1)
    shards = make_set(24, 6)
    key_of = keys(shards)
    of_shard = {key: row // 6 for row, key in enumerate(key_of)}
    orders = set()
    for epoch in take_epochs(open_batches(shards, 6, dtype=torch.uint8), 6):
        batches = [{of_shard[key] for key in epoch[first : first + 6]} for first in range(0, 24, 6)]
        assert all(len(batch) == 1 for batch in batches)
        orders.add(tuple(chain.from_iterable(batches)))
    assert len(orders) >= 4


@pytest.mark.parametrize(
    ("batch_size", "ranks", "remedy"), [(13, 1, "--batch-size 12"), (3, 5, "--batch-size 10")]
)
def test_a_batch_larger_than_the_share_is_refused(
    open_batches, make_set, batch_size, ranks, remedy
):
    with pytest.raises(UserError) as error:
        open_batches(make_set(12, 5), batch_size, num_ranks=ranks)
    assert error.value.where == f"--batch-size {batch_size * ranks}"  # of all together
    assert "12 images" in error.value.found
    assert remedy in error.value.remedy


@pytest.mark.parametrize(
    ("samples", "batch_size", "ranks", "steps"),
    [(202_599, 128, 1, 1582), (202_599, 128, 8, 197), (128, 128, 1, 1), (23, 4, 3, 1)],
)
def test_steps_are_the_full_batches_of_the_smallest_share(samples, batch_size, ranks, steps):
    assert steps_per_epoch(samples, batch_size, ranks) == steps
