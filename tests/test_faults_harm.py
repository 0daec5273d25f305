"""The harm that the fault harness does to files and disks."""

import errno
import os
import random
import shutil
import subprocess
from collections import namedtuple

import pytest

from tests.faults.cases import Case
from tests.faults.harm import cut, fill, flip, make_room
from tests.faults.lab import Lab
from tests.faults.rows import Round
from tests.packing_runs import needs_proc

pytestmark = needs_proc


def test_a_flipped_bit_is_one_bit_in_its_place(tmp_path):
    path = tmp_path / "file"
    for seed in range(20):
        path.write_bytes(bytes(100))
        flip(path, random.Random(seed), 40, 44)
        changed = {place: byte for place, byte in enumerate(path.read_bytes()) if byte}
        assert len(changed) == 1
        assert set(changed) <= {40, 41, 42, 43}
        assert changed.popitem()[1].bit_count() == 1


def test_a_file_that_is_cut_loses_its_end(tmp_path):
    path, data = tmp_path / "file", bytes(range(100))
    for seed in range(20):
        path.write_bytes(data)
        cut(path, random.Random(seed))
        assert path.stat().st_size < 100
        assert data.startswith(path.read_bytes())


def test_a_disk_is_filled_and_emptied(tmp_path):
    filled = {}

    def inject(lab: Lab) -> str:
        disk = lab.small_disk(2)
        fill(disk, 8192)
        with pytest.raises(OSError, match="No space"):
            (disk / "file").write_bytes(bytes(100_000))
        (disk / "file").write_bytes(bytes(4096))
        make_room(disk)
        (disk / "file").write_bytes(bytes(100_000))
        filled["it"] = True
        return "full"

    row = Round(tmp_path, 0, quick=True, mounts=False).carry_out(Case("disk", inject, 1))
    assert row.outcome() == "not possible here: nothing can be mounted here"
    if os.geteuid() == 0:
        try:
            row = Round(tmp_path, 0, quick=True, mounts=True).carry_out(Case("disk", inject, 1))
        except subprocess.CalledProcessError:
            pytest.skip("root may not mount here")
        assert filled == {"it": True}
        assert row.outcome() == "full"


def test_a_disk_is_filled_though_a_command_goes_on_writing(tmp_path, monkeypatch):
    Usage = namedtuple("Usage", "free")
    asked = []

    def allocate(descriptor: int, first: int, size: int) -> None:
        asked.append(size)
        if len(asked) < 3:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(5000 - 1000 * len(asked)))
    monkeypatch.setattr(os, "posix_fallocate", allocate)
    fill(tmp_path, 500)
    assert asked == [4500, 3500, 2500]
