"""Every loader over a shard set: what a batch is, where the loader stands, and how it is closed."""

import json
import time
from pathlib import Path

import pytest
import torch

from pipeline.errors import UserError
from pipeline.images.pixels import to_signed
from tests.loaders import of_jpegs
from tests.needs import take, within
from tests.pictures import encode, pack_pictures

# What a batch is


@pytest.mark.parametrize(("image_size", "channels"), [(32, 3), (64, 1)])
def test_floats_are_channels_last_in_the_nets_range(open_batches, make_set, image_size, channels):
    loader = open_batches(make_set(12, 5), 4, image_size, channels=channels)
    for batch in take(loader, 7):
        assert batch.shape == (4, channels, image_size, image_size)
        assert batch.dtype == torch.float32
        assert batch.device.type == "cpu"
        assert batch.is_contiguous(memory_format=torch.channels_last)
        assert -1 <= batch.amin() < batch.amax() <= 1


@pytest.mark.parametrize(("image_size", "channels"), [(32, 1), (64, 3)])
def test_pixels_are_uint8_and_the_floats_are_made_of_them(
    open_batches, make_set, channels, image_size
):
    options = {"channels": channels, "seed": 3}
    floats = take(open_batches(make_set(12, 5), 4, image_size, **options), 7)
    pixels = take(open_batches(make_set(12, 5), 4, image_size, dtype=torch.uint8, **options), 7)
    for stored, batch in zip(pixels, floats, strict=True):
        assert stored.shape == (4, image_size, image_size, channels)
        assert stored.dtype == torch.uint8
        assert stored.is_contiguous()
        assert torch.equal(batch, to_signed(stored))


@of_jpegs
def test_the_whole_range_is_used(open_batches, tmp_path):
    halves = torch.zeros(32, 32, 3, dtype=torch.uint8)
    halves[:16] = 255
    shards = pack_pictures(tmp_path, {"a.jpg": encode(halves.numpy())})
    for batch in take(open_batches(shards, 1), 2):
        assert (batch.amin().item(), batch.amax().item()) == (-1.0, 1.0)
        assert batch[0, :, 4].mean() > 0.99 > -0.99 > batch[0, :, 28].mean()  # upright


@pytest.mark.parametrize("image_size", [32, 64])
def test_batches_once_taken_are_not_overwritten(open_batches, make_set, image_size):
    loader = open_batches(make_set(23, 9), 4, image_size, dtype=torch.uint8)
    batches, copies = [], []
    for _ in range(20):
        (batch,) = take(loader, 1)
        batches.append(batch)
        copies.append(batch.clone())
    within(10, loader.close)
    for batch, copy in zip(batches, copies, strict=True):
        assert torch.equal(batch, copy)
    assert len({batch.data_ptr() for batch in batches}) == 20


@pytest.mark.parametrize("image_size", [32, 64])
def test_whoever_paints_over_a_batch_changes_no_later_one(open_batches, make_set, image_size):
    options = {"batch_size": 4, "image_size": image_size, "dtype": torch.uint8}
    expected = take(open_batches(make_set(12, 5), **options), 10)
    painted = open_batches(make_set(12, 5), **options)
    for batch in expected:
        (mine,) = take(painted, 1)
        assert torch.equal(mine, batch)
        mine.fill_(0)


def test_number_of_workers_changes_no_batch(open_batches, make_set):
    one, three = (take(open_batches(make_set(23, 9), 4, workers=n), 12) for n in (1, 3))
    assert all(torch.equal(a, b) for a, b in zip(one, three, strict=True))


# Into a static buffer


@pytest.mark.parametrize("channels", [1, 3])
def test_a_buffer_is_filled_with_the_next_batch_and_stays_where_it_is(
    open_batches, make_set, channels
):
    options = {"dtype": torch.uint8, "channels": channels}
    expected = take(open_batches(make_set(23, 9), 4, **options), 17)
    loader = open_batches(make_set(23, 9), 4, **options)
    buffer = torch.zeros(4, 32, 32, channels, dtype=torch.uint8)
    address = buffer.data_ptr()
    for batch in expected:
        within(30, lambda: loader.fill(buffer))
        assert torch.equal(buffer, batch)
        assert buffer.data_ptr() == address
    assert (loader.epoch, loader.batch) == (3, 2)  # 5 steps an epoch


def test_a_loader_of_floats_fills_no_buffer(open_batches, make_set):
    loader = open_batches(make_set(12, 5), 4)
    with pytest.raises(AssertionError, match="uint8"):
        loader.fill(torch.zeros(4, 32, 32, 3, dtype=torch.uint8))
    assert (loader.epoch, loader.batch) == (0, 0)


# Position


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32], ids=str)
@pytest.mark.parametrize("done", [0, 3, 5, 14])
def test_another_process_goes_on_from_the_state(open_batches, make_set, done, dtype):
    shards = make_set(23, 9)  # 5 steps an epoch
    first = open_batches(shards, 4, dtype=dtype, seed=2)
    take(first, done)
    state = json.loads(json.dumps(first.state_dict()))  # as a checkpoint keeps it
    assert (state["epoch"], state["batch"]) == divmod(done, 5)
    second = open_batches(shards, 4, dtype=dtype, seed=2)
    second.load_state_dict(state)
    for old, new in zip(take(first, 12), take(second, 12), strict=True):
        assert torch.equal(old, new)
    assert first.state_dict() == second.state_dict()


OTHERS = {
    "--seed": {"seed": 1},
    "--batch-size": {"batch_size": 3},
    "--image-size": {"image_size": 16},
    "--channels": {"channels": 1},
    "ranks": {"num_ranks": 2},
}


@pytest.mark.parametrize(("name", "change"), OTHERS.items(), ids=OTHERS)
def test_the_state_of_other_batches_is_refused(open_batches, make_set, name, change):
    saved = open_batches(make_set(12, 5), **({"batch_size": 4} | change)).state_dict()
    loader = open_batches(make_set(12, 5), 4)
    with pytest.raises(UserError) as error:
        loader.load_state_dict(saved)
    assert error.value.found.startswith(f"{name} ")
    assert error.value.wanted.startswith(f"{name} ")
    assert (loader.epoch, loader.batch) == (0, 0)


def test_the_state_of_another_set_is_refused(open_batches, make_set):
    saved = open_batches(make_set(12, 4), 4).state_dict()
    with pytest.raises(UserError, match="shard set"):
        open_batches(make_set(12, 5), 4).load_state_dict(saved)


# The end


def threads() -> set[str]:
    """Of this process, native ones too."""
    return {entry.name for entry in Path("/proc/self/task").iterdir()}


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="lists threads through /proc")
@pytest.mark.parametrize("taken", [0, 2, 15], ids=["unused", "first-epoch", "later"])
def test_closing_leaves_no_thread(open_batches, make_set, taken):
    shards = make_set(41, 7)  # 13 steps an epoch: too many to be decoded ahead

    def open_and_close() -> set[str]:
        before = threads()
        loader = open_batches(shards, 3)
        take(loader, taken)  # others are being decoded ahead
        started = threads() - before
        within(10, loader.close)
        within(10, loader.close)
        return started

    open_and_close()  # torch starts threads of its own, once
    started = open_and_close()
    if taken == 2:
        assert started  # the one that decodes, at least
    for _ in range(100):  # a thread that was joined takes a moment to leave /proc
        if not started & threads():
            break
        time.sleep(0.05)
    assert not started & threads()
