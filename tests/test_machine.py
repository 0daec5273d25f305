"""The cores that a process may use, and that every command keeps to them."""

import json
import os

import pytest
import torch

from dcgan import doctor, evaluate, profile, sample
from dcgan.training import session
from pipeline import machine
from pipeline.errors import UserError
from pipeline.machine import core_limits, limit_torch_threads, usable_cores
from tests.pictures import numbered_pictures, write_pictures
from tests.running import tiny
from tools import make_shards


@pytest.fixture
def pretend(monkeypatch, tmp_path):
    """Eight cores without a limit; returns a function that makes control groups."""
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    monkeypatch.setattr("os.sched_getaffinity", lambda process: set(range(8)), raising=False)
    monkeypatch.delenv("SLURM_CPUS_PER_TASK", raising=False)
    monkeypatch.setattr(machine, "CGROUPS", tmp_path)
    monkeypatch.setattr(machine, "OWN_GROUPS", tmp_path / "own")

    def groups(own, files):
        (tmp_path / "own").write_text(own)
        for name, text in files.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(text)

    return groups


@pytest.mark.usefixtures("pretend")
def test_without_a_limit_it_is_the_machine(monkeypatch):
    assert usable_cores() == 8
    monkeypatch.setattr("os.cpu_count", lambda: None)
    assert usable_cores() == 1


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no affinity on this system")
def test_the_affinity_of_this_process_counts():
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        assert usable_cores() == 1
    finally:
        os.sched_setaffinity(0, before)


NAME = "pod/job/cpu.cfs"
OWN = f"cpu/{NAME}"
V2, V1 = "0::/pod/job\n", "9:memory:/\n4:cpu,cpuacct:/pod/job\n1:cpuset:/\n"


@pytest.mark.parametrize(
    ("own", "files", "expected"),
    [
        (V2, {"pod/job/cpu.max": "399999 100000\n"}, 3),
        (V2, {"pod/job/cpu.max": "50000 100000\n"}, 1),
        (V2, {"pod/job/cpu.max": "max 100000\n"}, 8),
        (V2, {"pod/job/cpu.max": "max 100000\n", "pod/cpu.max": "200000 100000\n"}, 2),
        (V2, {"cpu.max": "300000 100000\n"}, 3),  # a container that sees its path on the host
        (V1, {f"{OWN}_quota_us": "150000", f"{OWN}_period_us": "50000"}, 3),
        (V1, {"cpu/cpu.cfs_quota_us": "200000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 2),
        (V1, {f"cpu,cpuacct/{NAME}_quota_us": "2", f"cpu,cpuacct/{NAME}_period_us": "1"}, 2),
        (V1, {f"cpuacct,cpu/{NAME}_quota_us": "2", f"cpuacct,cpu/{NAME}_period_us": "1"}, 2),
        (f"\n{V1}\nno group\n", {f"{OWN}_quota_us": "2", f"{OWN}_period_us": "1"}, 2),
        (V1, {f"{OWN}_quota_us": "-1", f"{OWN}_period_us": "50000"}, 8),
    ],
)  # fmt: skip
def test_a_quota_counts_rounded_down_but_for_less_than_one(pretend, own, files, expected):
    pretend(own, files)
    assert usable_cores() == expected


@pytest.mark.usefixtures("pretend")
@pytest.mark.parametrize(("text", "expected"), [("3", 3), ("64", 8), ("0", 8), ("2(x4)", 8)])
def test_what_slurm_gave_counts(monkeypatch, text, expected):
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", text)
    assert usable_cores() == expected


def test_the_least_limit_holds(pretend, monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda process: {0, 3, 5}, raising=False)
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "4")
    pretend(V2, {"pod/job/cpu.max": "200000 100000"})
    assert core_limits() == {
        "machine": 8, "affinity": 3, "cgroup quota": 2, "SLURM_CPUS_PER_TASK": 4,
    }  # fmt: skip
    assert usable_cores() == 2


# Torch's threads, and workers


@pytest.fixture
def two_threads(monkeypatch):
    """Torch has two threads, and this process one core."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(machine, "usable_cores", lambda: 1)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("two_threads")
def test_torch_keeps_to_the_cores_unless_the_user_says_otherwise(monkeypatch):
    monkeypatch.setattr(machine, "usable_cores", lambda: 64)
    limit_torch_threads()
    assert torch.get_num_threads() == 2
    monkeypatch.setattr(machine, "usable_cores", lambda: 1)
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    limit_torch_threads()
    assert torch.get_num_threads() == 2
    monkeypatch.delenv("OMP_NUM_THREADS")
    limit_torch_threads()
    assert torch.get_num_threads() == 1


def evaluate_here(folder, nowhere):
    (folder / "config.json").write_text(json.dumps({"shards": "synthetic"}))
    evaluate.evaluate(net=folder, n=16, fid_n=16, device=nowhere)


def profile_loader(folder, nowhere):
    profile.loader(shards=str(folder), device=nowhere)


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize(
    "command",
    [
        lambda folder, nowhere: session.train(tiny(folder / "run", device=nowhere)),
        lambda folder, nowhere: sample.sample(net=folder, device=nowhere),
        lambda folder, nowhere: doctor.doctor(device=nowhere),
        lambda folder, nowhere: profile.step(device=nowhere),
        profile_loader,
        evaluate_here,
    ],
    ids=["train", "sample", "doctor", "profile step", "profile loader", "evaluate"],
)
def test_every_command_that_computes_keeps_to_the_cores(tmp_path, command):
    with pytest.raises(UserError, match="nowhere"):
        command(tmp_path, "nowhere")
    assert torch.get_num_threads() == 1


@pytest.mark.parametrize(("asked", "expected"), [(None, 1), (3, 3)])
def test_packing_takes_a_worker_a_usable_core_unless_told(tmp_path, monkeypatch, asked, expected):
    monkeypatch.setattr("os.sched_getaffinity", lambda process: {1}, raising=False)
    pictures, found = write_pictures(tmp_path / "pictures", numbered_pictures(2)), []

    class Begun(Exception):  # noqa: N818, the end of this test
        pass

    def write_left(work, *others):
        found.append(work.packing.workers)
        raise Begun

    monkeypatch.setattr("pipeline.packing.pack.write_left", write_left)
    with pytest.raises(Begun):
        make_shards.make_shards([str(pictures)], str(tmp_path / "set"), workers=asked)
    assert found == [expected]
