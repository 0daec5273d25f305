"""What a loader says of a set that is damaged, after it was opened."""

import os
import tarfile

import pytest
import torch

from pipeline.errors import UserError
from pipeline.shards.order import Schedule
from pipeline.shards.shard_set import ShardSet
from tests.loaders import keys, of_jpegs
from tests.needs import take, within
from tests.pictures import numbers


def overwrite_sample(shards: ShardSet, fill, shard: int = 1, place: int = 2) -> tuple[str, str]:
    """Overwrite one sample's bytes in place, and give its shard's path and its key."""
    tar = shards.tars[shard]
    with tarfile.open(tar) as archive:
        member = archive.getmembers()[place]
    with tar.open("r+b") as file:
        file.seek(member.offset_data)
        data = file.read(member.size)
        file.seek(member.offset_data)
        file.write(fill(data))
    assert tar.stat().st_size == shards.manifest.shards[shard].bytes
    return str(tar), member.name.partition(".")[0]


DAMAGES = {
    "zeros": lambda data: bytes(len(data)),
    "second-half": lambda data: data[: len(data) // 2] + bytes(len(data) - len(data) // 2),
}


@of_jpegs
@pytest.mark.parametrize("fill", DAMAGES.values(), ids=DAMAGES)
def test_a_sample_damaged_in_place_is_an_error_that_names_it(open_batches, spare_set, fill):
    tar, key = overwrite_sample(spare_set, fill)
    loader = open_batches(ShardSet.open(spare_set.folder), 3)
    with pytest.raises(UserError) as error:
        take(loader, 4)  # an epoch
    assert error.value.where == tar
    assert f"sample {key} " in error.value.found
    assert "pack it again" in error.value.remedy
    assert "Critical error" not in str(error.value)
    with pytest.raises((UserError, StopIteration)):  # and it stays at an end
        take(loader, 1)
    within(10, loader.close)


@of_jpegs
def test_batches_before_the_damaged_one_are_served(open_batches, spare_set):
    schedule, key_of = Schedule.of(spare_set, 2, seed=0), keys(spare_set)
    row = int(schedule.order(0)[9])  # in the fifth batch
    shard, place = divmod(row, 5)  # shards of 5, 5 and 2
    overwrite_sample(spare_set, DAMAGES["zeros"], shard, place)
    loader = open_batches(ShardSet.open(spare_set.folder), 2, dtype=torch.uint8)
    seen = [numbers(take(loader, 1)[0]) for _ in range(4)]
    assert seen == [[key_of[row] for row in rows] for rows in list(schedule.batches(0))[:4]]
    with pytest.raises(UserError, match="does not decode"):
        take(loader, 1)


@of_jpegs
def test_a_tar_cut_since_the_set_was_opened_is_an_error_that_names_it(open_batches, spare_set):
    loader = open_batches(spare_set, 3)
    os.truncate(spare_set.tars[1], 1500)
    for _ in range(2):  # and it stays an error
        with pytest.raises(UserError) as error:
            take(loader, 4)
        assert error.value.where == str(spare_set.tars[1])
        assert "pack it again" in error.value.remedy
    within(10, loader.close)


@of_jpegs
def test_tar_headers_are_not_read(open_batches, make_set, spare_set):
    """The index tells all places: a header damaged in place keeps nobody from the images."""
    tar = spare_set.tars[1]
    with tarfile.open(tar) as archive:
        header = archive.getmembers()[2].offset
    with tar.open("r+b") as file:
        file.seek(header)
        file.write(b"x" * 512)
    harmed = take(open_batches(ShardSet.open(spare_set.folder), 4), 3)
    whole = take(open_batches(make_set(12, 5), 4), 3)
    assert all(torch.equal(one, other) for one, other in zip(harmed, whole, strict=True))
