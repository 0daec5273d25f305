"""Which samples make up which batch: shares, epochs and batches, for any set and any ranks."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from pipeline.errors import UserError
from pipeline.shards.manifest import Manifest, Recipe, Shard
from pipeline.shards.order import Schedule, batches_of, steps_per_epoch
from pipeline.shards.shard_set import Folder, ShardSet
from tests.running import assert_four_parts

DIGEST = "0" * 64


def shard_set(sizes):
    """A set of shards of so many samples, of which there is nothing on disk."""
    shards = tuple(
        Shard(
            name=f"shard-{number:06d}",
            samples=size,
            bytes=10_240,
            tar_sha256=DIGEST,
            index_sha256=DIGEST,
        )
        for number, size in enumerate(sizes)
    )
    manifest = Manifest(
        recipe=Recipe(),
        seed=0,
        samples=sum(sizes),
        rejected=0,
        image_bytes=1,
        largest_image=(1, 1),
        smallest_image=(1, 1),
        shards=shards,
    )
    return ShardSet(Folder(Path("nowhere")), manifest)


def schedules(sizes, batch_size, ranks, seed=0):
    shards = shard_set(sizes)
    return [Schedule.of(shards, batch_size, seed, rank, ranks) for rank in range(ranks)]


@st.composite
def settings_of_a_run(draw):
    """Shard sizes, batch size and number of ranks, with one batch for each rank at least."""
    sizes = draw(st.lists(st.integers(1, 40), min_size=1, max_size=10))
    ranks = draw(st.integers(1, min(6, sum(sizes))))
    return sizes, draw(st.integers(1, sum(sizes) // ranks)), ranks


RUNS = settings_of_a_run()
SEEDS, EPOCHS = st.integers(0, 2**32), st.integers(0, 1000)


@given(RUNS, SEEDS, EPOCHS)
@example(([5, 5, 2], 3, 4), 0, 0)
@example(([1] * 7, 1, 6), 0, 0)
def test_an_epoch_is_full_batches_of_rows_that_occur_once(run, seed, epoch):
    sizes, batch_size, ranks = run
    samples, steps = sum(sizes), sum(sizes) // ranks // batch_size
    seen = []
    for schedule in schedules(sizes, batch_size, ranks, seed):
        batches = list(schedule.batches(epoch))
        assert schedule.steps_per_epoch == len(batches) == steps
        assert all(batch.shape == (batch_size,) for batch in batches)
        seen += np.concatenate(batches).tolist()
    assert len(set(seen)) == len(seen) == steps * batch_size * ranks
    assert set(seen) <= set(range(samples))
    assert 0 <= samples - len(seen) < batch_size * ranks


@given(RUNS)
def test_each_rank_owns_a_run_of_rows_and_together_they_own_all(run):
    sizes, batch_size, ranks = run
    owned = []
    for schedule in schedules(sizes, batch_size, ranks):
        rows = np.sort(schedule.order(3)).tolist()
        assert rows == list(range(schedule.first, schedule.first + len(schedule)))
        assert len(rows) - sum(sizes) // ranks in (0, 1)
        owned += rows
    assert owned == list(range(sum(sizes)))


@given(RUNS)
def test_counts_are_a_ranks_rows_in_each_shard_that_it_touches(run):
    sizes, batch_size, ranks = run
    shard_of = np.repeat(np.arange(len(sizes)), sizes)
    for schedule in schedules(sizes, batch_size, ranks):
        touched = shard_of[schedule.first : schedule.first + len(schedule)]
        assert schedule.counts == tuple(np.unique(touched, return_counts=True)[1].tolist())


@pytest.mark.parametrize(
    ("sizes", "batch_size", "ranks"), [([9, 9, 5], 4, 1), ([9, 9, 5], 4, 3), ([7], 5, 1)], ids=str
)
def test_epochs_together_show_every_sample_and_each_leaves_out_others(sizes, batch_size, ranks):
    seen, unseen = set(), set()
    for epoch in range(40):
        rows = {
            int(row)
            for schedule in schedules(sizes, batch_size, ranks)
            for batch in schedule.batches(epoch)
            for row in batch
        }
        seen |= rows
        unseen.add(frozenset(range(sum(sizes))) - rows)
    assert seen == set(range(sum(sizes)))
    assert len(unseen) > 5


@given(RUNS, SEEDS, EPOCHS, st.data())
def test_an_epoch_entered_later_is_its_tail(run, seed, epoch, data):
    sizes, batch_size, ranks = run
    for schedule in schedules(sizes, batch_size, ranks, seed):
        whole = list(schedule.batches(epoch))
        skipped = data.draw(st.integers(0, len(whole)))
        tail = list(batches_of(schedule.rows(epoch, skipped), schedule.batch_size))
        assert len(tail) == len(whole) - skipped
        assert np.array_equal(np.ravel(tail), np.ravel(whole[skipped:]))


def test_seeds_and_epochs_have_orders_of_their_own():
    orders = {
        tuple(schedules([9, 9, 5], 4, 1, seed)[0].order(epoch))
        for seed in range(4)
        for epoch in range(4)
    }
    assert len(orders) == 16


def test_a_small_set_is_shuffled_across_its_shards():
    order = schedules([10] * 10, 10, 1)[0].order(0)
    assert all(len(set(batch // 10)) > 3 for batch in order.reshape(10, 10))


@given(st.integers(1, 200), st.integers(1, 200), st.integers(1, 8))
def test_a_batch_larger_than_a_share_is_refused_and_the_remedy_helps(samples, batch_size, ranks):
    assume(samples // ranks < batch_size)
    with pytest.raises(UserError) as error:
        Schedule.of(shard_set([samples]), batch_size, 0, 0, ranks)
    assert_four_parts(error.value, f"--batch-size {batch_size * ranks}", f"{samples} images")
    assert (f"{ranks} ranks" in error.value.found) == (ranks > 1)
    advised = int(error.value.remedy.removeprefix("use --batch-size ").split(" or ")[0])
    assert advised % ranks == 0  # it is that of all together
    if samples >= ranks:
        assert steps_per_epoch(samples, advised // ranks, ranks) == 1
        with pytest.raises(UserError):
            steps_per_epoch(samples, advised // ranks + 1, ranks)
