"""Both loaders over a shard set: what a batch is, what an epoch is, and what ends them."""

import tarfile
import time
from collections import Counter
from itertools import chain
from pathlib import Path

import pytest
import torch

from pipeline.batches import steps_per_epoch
from pipeline.errors import UserError
from pipeline.fallback import FallbackLoader
from pipeline.loader import Loader
from pipeline.manifest import ShardSet
from pipeline.pixels import to_signed
from tests.needs import OBSTACLES, require, take, within
from tests.pictures import encode, numbers, pack_pictures, smooth

LOADERS = {"dali": Loader, "fallback": FallbackLoader}


@pytest.fixture(params=LOADERS)
def open_batches(request):
    """The constructor of one loader; what it opens is closed when the test ends."""
    if request.param == "dali":
        require("dali")
    opened = []

    def open_(shards, batch_size, image_size=32, workers=2, **options):
        loader = LOADERS[request.param](shards, batch_size, image_size, workers=workers, **options)
        opened.append(loader)
        return loader

    yield open_
    for loader in opened:
        loader.close()


def take_epochs(loader, epochs):
    """The numbers of the pictures seen, one list an epoch."""
    steps = loader.steps_per_epoch
    batches = take(loader, epochs * steps)
    return [
        list(chain.from_iterable(map(numbers, batches[first : first + steps])))
        for first in range(0, len(batches), steps)
    ]


def shuffle_through(buffer, monkeypatch):
    monkeypatch.setattr("pipeline.fallback.SHUFFLE_BUFFER", buffer)
    if OBSTACLES["dali"]() is None:
        monkeypatch.setattr("pipeline.graph.SHUFFLE_BUFFER", buffer)


# What a batch is


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("image_size", [32, 64])
def test_floats_are_channels_last_in_the_nets_range(
    open_batches, numbered_set, image_size, channels
):
    loader = open_batches(numbered_set(12, 5), 4, image_size, channels=channels)
    for batch in take(loader, 4):
        assert batch.shape == (4, channels, image_size, image_size)
        assert batch.dtype == torch.float32
        assert batch.device.type == "cpu"
        assert batch.is_contiguous(memory_format=torch.channels_last)
        assert -1 <= batch.amin() < batch.amax() <= 1


@pytest.mark.parametrize("channels", [1, 3])
def test_pixels_are_uint8_and_the_floats_are_made_of_them(open_batches, numbered_set, channels):
    options = {"channels": channels, "seed": 3}
    floats = take(open_batches(numbered_set(12, 5), 4, **options), 7)
    pixels = take(open_batches(numbered_set(12, 5), 4, dtype=torch.uint8, **options), 7)
    for stored, batch in zip(pixels, floats, strict=True):
        assert stored.shape == (4, 32, 32, channels)
        assert stored.dtype == torch.uint8
        assert stored.is_contiguous()
        torch.testing.assert_close(batch, to_signed(stored), rtol=0, atol=1e-6)


def test_the_whole_range_is_used(open_batches, tmp_path):
    halves = torch.zeros(32, 32, 3, dtype=torch.uint8)
    halves[:16] = 255
    shards = pack_pictures(tmp_path, {"a.jpg": encode(halves.numpy())})
    (batch,) = take(open_batches(shards, 1), 1)
    assert (batch.amin().item(), batch.amax().item()) == (-1.0, 1.0)
    assert batch[0, :, 4].mean() > 0.99 > -0.99 > batch[0, :, 28].mean()  # upright


def test_batches_once_taken_are_not_overwritten(open_batches, numbered_set):
    loader = open_batches(numbered_set(23, 9), 4, dtype=torch.uint8)
    batches, copies = [], []
    for _ in range(20):
        (batch,) = take(loader, 1)
        batches.append(batch)
        copies.append(batch.clone())
    loader.close()
    for batch, copy in zip(batches, copies, strict=True):
        assert torch.equal(batch, copy)
    assert len({batch.data_ptr() for batch in batches}) == 20


def test_both_loaders_give_the_same_pictures(tmp_path):
    require("dali")
    pictures = {f"{k}.jpg": encode(smooth(100 + 11 * k, 140 - 9 * k, seed=k)) for k in range(6)}
    shards = pack_pictures(tmp_path, pictures)
    batches = []
    for kind in LOADERS.values():
        loader = kind(shards, 6, dtype=torch.uint8, workers=2)
        batches.append(take(loader, 1)[0].int())
        loader.close()
    apart = (batches[0][:, None] - batches[1][None]).abs().amax(dim=(2, 3, 4))
    assert apart.amin(dim=1).tolist() == pytest.approx([1] * 6, abs=1)  # 0, 1 or 2 levels
    assert sorted(apart.argmin(dim=1).tolist()) == list(range(6))
    assert (apart > 20).sum() == 30  # different pictures cannot be taken for each other


# What an epoch is

EPOCHS = [
    # images, images in a shard, batch size, ranks
    (24, 7, 6, 1),  # no rest
    (23, 9, 4, 1),  # a rest of 3; shards of 9, 9 and 5
    (23, 9, 4, 3),  # shares of 7, 8 and 8
    (25, 4, 4, 3),  # shares of 8, 8 and 9: some ranks read a batch more than they may pass on
    (10, 10, 10, 1),  # one step
    (9, 2, 2, 4),  # shares of 2, 2, 2 and 3; more ranks than some shards have images
    (7, 1, 3, 2),  # a shard an image
]


@pytest.mark.parametrize("buffer", [4096, 5], ids=["whole-buffer", "small-buffer"])
@pytest.mark.parametrize(("images", "per_shard", "batch_size", "ranks"), EPOCHS, ids=str)
def test_no_image_comes_twice_in_an_epoch(
    open_batches, numbered_set, monkeypatch, images, per_shard, batch_size, ranks, buffer
):
    shuffle_through(buffer, monkeypatch)
    shards = numbered_set(images, per_shard)
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
        assert max(together.values()) == 1
        assert set(together) <= set(range(images))


@pytest.mark.parametrize("per_shard", [9, 23], ids=["shards", "one-shard"])
def test_order_is_a_function_of_seed_and_epoch(open_batches, numbered_set, per_shard):
    shards = numbered_set(23, per_shard)
    orders = [
        take_epochs(open_batches(shards, 4, dtype=torch.uint8, seed=seed), 3) for seed in (0, 0, 1)
    ]
    assert orders[0] == orders[1]
    different = {tuple(epoch) for order in orders for epoch in order}
    assert len(different) == 6


@pytest.mark.parametrize("ranks", [1, 2])
def test_other_images_go_unseen_each_epoch(open_batches, numbered_set, ranks):
    seen: set[int] = set()
    for rank in range(ranks):
        loader = open_batches(numbered_set(23, 9), 4, dtype=torch.uint8, rank=rank, num_ranks=ranks)
        for epoch in take_epochs(loader, 12):
            assert len(epoch) < 23
            seen |= set(epoch)
    assert seen == set(range(23))


def test_shards_come_in_another_order_each_epoch(open_batches, numbered_set, monkeypatch):
    # Without a buffer the order of samples is that of the shards
    shuffle_through(1, monkeypatch)
    epochs = take_epochs(open_batches(numbered_set(24, 7), 6, dtype=torch.uint8), 5)
    assert len({tuple(epoch) for epoch in epochs}) >= 4


def test_number_of_workers_changes_no_batch(open_batches, numbered_set):
    shards = numbered_set(23, 9)
    one, three = (take(open_batches(shards, 4, workers=workers), 12) for workers in (1, 3))
    assert all(torch.equal(a, b) for a, b in zip(one, three, strict=True))


# What ends them


@pytest.mark.parametrize(
    ("batch_size", "ranks", "remedy"), [(13, 1, "--batch-size 12"), (3, 5, "--batch-size 2")]
)
def test_a_batch_larger_than_the_share_is_refused(
    open_batches, numbered_set, batch_size, ranks, remedy
):
    with pytest.raises(UserError) as error:
        open_batches(numbered_set(12, 5), batch_size, num_ranks=ranks)
    assert error.value.where == f"--batch-size {batch_size}"
    assert "12 images" in error.value.found
    assert remedy in error.value.remedy


@pytest.mark.parametrize(
    ("samples", "batch_size", "ranks", "steps"),
    [(202_599, 128, 1, 1582), (202_599, 128, 8, 197), (128, 128, 1, 1), (23, 4, 3, 1)],
)
def test_steps_are_the_full_batches_of_the_smallest_share(samples, batch_size, ranks, steps):
    assert steps_per_epoch(samples, batch_size, ranks) == steps


def overwrite_sample(shards: ShardSet, fill) -> str:
    """Overwrite one sample's bytes in place, and give its shard's name."""
    tar = shards.tars[1]
    with tarfile.open(tar) as archive:
        member = archive.getmembers()[2]
    with tar.open("r+b") as file:
        file.seek(member.offset_data)
        data = file.read(member.size)
        file.seek(member.offset_data)
        file.write(fill(data))
    assert tar.stat().st_size == shards.manifest.shards[1].bytes
    return tar.name


DAMAGES = {
    "zeros": lambda data: bytes(len(data)),
    "text": lambda data: (b"not an image " * len(data))[: len(data)],
    "second-half": lambda data: data[: len(data) // 2] + bytes(len(data) - len(data) // 2),
}


@pytest.mark.parametrize("fill", DAMAGES.values(), ids=DAMAGES)
def test_a_sample_damaged_in_place_is_an_error_that_names_its_shard(open_batches, spare_set, fill):
    name = overwrite_sample(spare_set, fill)
    loader = open_batches(ShardSet.open(spare_set.folder), 3)
    with pytest.raises(UserError) as error:
        take(loader, 4)  # an epoch
    assert name in error.value.where
    assert "pack the set again" in error.value.remedy
    assert "Critical error" not in str(error.value)
    within(10, loader.close)


def threads() -> set[str]:
    """Of this process, native ones too."""
    return {entry.name for entry in Path("/proc/self/task").iterdir()}


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="lists threads through /proc")
def test_closing_leaves_no_thread(open_batches, numbered_set):
    def open_and_close() -> set[str]:
        before = threads()
        loader = open_batches(numbered_set(12, 5), 3)
        take(loader, 2)  # others are being decoded ahead
        started = threads() - before
        within(10, loader.close)
        return started

    open_and_close()  # torch starts threads of its own, once
    started = open_and_close()
    assert len(started) >= 2  # the workers
    for _ in range(100):  # a thread that was joined takes a moment to leave /proc
        if not started & threads():
            break
        time.sleep(0.05)
    assert not started & threads()


def test_closing_twice_is_harmless(open_batches, numbered_set):
    loader = open_batches(numbered_set(12, 5), 3)
    take(loader, 1)
    within(10, loader.close)
    within(10, loader.close)


def test_it_is_its_own_endless_iterator(open_batches, numbered_set):
    loader = open_batches(numbered_set(12, 5), 6)
    assert iter(loader) is loader
    assert len(take(loader, 50)) == 50
