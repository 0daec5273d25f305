"""One flipped bit, anywhere in a shard set: always noticed, and its place named."""

import random
import shutil
import tarfile
from itertools import product
from pathlib import Path

import pytest

from pipeline.shards.manifest import MANIFEST, SAMPLES
from tests.three_sets import faults, original, sets, store

__all__ = ["original", "sets", "store"]  # fixtures


@pytest.fixture
def spare(sets, store, tmp_path):
    return Path(shutil.copytree(sets / store, tmp_path / "set"))


def flip(path, offset, bit):
    with path.open("r+b") as file:
        file.seek(offset)
        value = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([value ^ 1 << bit]))


def spans(folder):
    """Where each sample's data lie: shard, key, first and past-the-last byte."""
    for tar in sorted(folder.glob("*.tar")):
        with tarfile.open(tar) as archive:
            for member in archive:
                first = member.offset_data
                yield tar, member.name.partition(".")[0], first, first + member.size


def test_a_flipped_bit_in_a_samples_data_names_shard_and_key(spare):
    draw, tried = random.Random(1), 0
    for tar, key, first, end in spans(spare):
        for offset in {first, end - 1, *draw.sample(range(first, end), 6)}:
            bit = draw.randrange(8)
            flip(tar, offset, bit)
            assert faults(spare) == [f"{tar.stem}: sample {key} has changed (CRC-32)"]
            flip(tar, offset, bit)
            tried += 1
    assert tried >= 80
    assert faults(spare) == []


def test_a_flipped_bit_elsewhere_in_a_tar_names_the_shard(original):
    draw, tried = random.Random(2), 0
    for tar in sorted(original.glob("*.tar")):
        data = {
            offset for place, _, *span in spans(original) if place == tar for offset in range(*span)
        }
        others = sorted(set(range(tar.stat().st_size)) - data)
        # each byte of the first header and of the second's name, then any header, padding or end
        second = next(offset for offset in others if offset >= 1024)
        chosen = [*range(512), *range(second, second + 20), *draw.sample(others, 150)]
        for offset in chosen[draw.randrange(3) :: 3]:
            bit = draw.randrange(8)
            flip(tar, offset, bit)
            found = faults(original)
            assert found, (offset, bit)
            assert tar.stem in found[0]
            flip(tar, offset, bit)
            tried += 1
    assert tried >= 400
    assert faults(original) == []


@pytest.mark.parametrize("name", ["shard-000001.idx", MANIFEST, SAMPLES])
def test_a_flipped_bit_beside_the_tars_names_the_file_or_the_shard(original, name):
    path, draw = original / name, random.Random(3)
    chosen = draw.sample([*product(range(path.stat().st_size), range(8))], 250)
    for offset, bit in chosen:
        flip(path, offset, bit)
        found = faults(original)
        assert found, (path.read_bytes()[max(0, offset - 20) : offset + 20], bit)
        assert "shard-00000" in found[0] or path.name in found[0]
        if name == SAMPLES:  # the tars are as they were written: no sample of theirs is called bad
            assert all(SAMPLES in each for each in found)
        flip(path, offset, bit)
    assert faults(original) == []
