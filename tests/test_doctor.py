"""dcgan-doctor: what each line says of a machine, faked or this one."""

import importlib
import os
import shutil
import sys
from importlib import metadata
from typing import Any

import pytest
import torch

from dcgan.checks import machine as machine_checks
from dcgan.checks import system
from dcgan.checks.findings import Check, Verdict, examine
from dcgan.checks.machine import one_batch, shard_set
from pipeline.shards.manifest import MANIFEST

CPU = torch.device("cpu")
OK, WARNING, FAIL, UNKNOWN = Verdict.OK, Verdict.WARNING, Verdict.FAIL, Verdict.NOT_CHECKED

H100 = ("NVIDIA H100", (9, 0))
HEALTHY: dict[str, Any] = {
    "nvidia_cards": 1,
    "driver_version": "580.65.06",
    "driver_cuda": (13, 0),
    "dali_wheels": {"nvidia-dali-cuda120": "2.4.0"},
    "torch_cuda": "13.0",
    "seen": [H100],
}
"""What is faked in `machine_checks`, torch's CUDA, and the cards that torch sees."""

BARE: dict[str, Any] = {"nvidia_cards": 0, "driver_version": None, "driver_cuda": None, "seen": []}
"""No card, and no driver."""


@pytest.fixture
def machine(monkeypatch):
    """Make the system tell of a healthy machine with a GPU, but for these changes."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    def fake(**changes):
        told = HEALTHY | changes
        seen = told.pop("seen")
        monkeypatch.setattr(torch.version, "cuda", told.pop("torch_cuda"))
        monkeypatch.setattr(torch.cuda, "is_available", lambda: bool(seen))
        monkeypatch.setattr(torch.cuda, "device_count", lambda: len(seen))
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda place: seen[place][0])
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda place: seen[place][1])
        monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: ["sm_75", "sm_80", "sm_90a"])
        for name, value in told.items():
            monkeypatch.setattr(machine_checks, name, lambda value=value: value)

    return fake


OLD = {"driver_version": "535.129.03", "driver_cuda": (12, 2)}
TWO = {"nvidia-dali-cuda120": "2.4.0", "nvidia-dali-cuda130": "2.4.0"}

LINES = [
    ("driver", {}, OK, "580.65.06"),
    ("driver", BARE, UNKNOWN, "no NVIDIA card"),
    ("driver", BARE | {"nvidia_cards": 2}, WARNING, "without its driver"),
    ("driver", OLD | {"seen": []}, FAIL, "535.129.03: too old for torch's CUDA 13.0"),
    ("driver", OLD, WARNING, "takes it all the same"),
    ("driver", {"seen": []}, FAIL, "torch sees no device"),
    ("driver", {"torch_cuda": None, "seen": []}, WARNING, "built without CUDA"),
    ("gpu", {}, OK, "NVIDIA H100 (9.0)"),
    ("gpu", BARE, UNKNOWN, "no CUDA device"),
    ("gpu", {"seen": [H100, ("T4", (7, 5))]}, WARNING, "T4 (7.5)"),
    ("gpu", {"seen": [("V100", (7, 0))]}, FAIL, "V100 (7.0)"),
    ("dali", {}, OK, "nvidia-dali-cuda120 2.4.0"),
    ("dali", {"dali_wheels": {}}, WARNING, "not installed"),
    ("dali", {"dali_wheels": TWO}, FAIL, "over the other's files"),
    ("pairing", {}, OK, "CUDA 12 beside CUDA 13, driver for CUDA 13.0; nvidia-dali-cuda130 is"),
    ("pairing", BARE, UNKNOWN, "no CUDA driver to ask"),
    ("pairing", {"dali_wheels": {}}, UNKNOWN, "no DALI"),
    ("pairing", OLD | {"dali_wheels": {"nvidia-dali-cuda130": "2.4.0"}}, FAIL, "CUDA 12.2"),
    ("pairing", OLD | {"torch_cuda": "12.8"}, OK, "CUDA 12 beside CUDA 12, driver for CUDA 12.2"),
    ("libraries", {"dali_wheels": {}}, UNKNOWN, "no DALI"),
]


@pytest.mark.parametrize(("check", "changes", "verdict", "said"), LINES)
def test_what_a_line_says_of_a_machine(machine, check, changes, verdict, said):
    machine(**changes)
    finding = getattr(machine_checks, check)()
    assert (finding.verdict, said in finding.found) == (verdict, True), finding
    assert bool(finding.remedy) == (verdict in (WARNING, FAIL))


def test_a_card_that_is_hidden_is_no_fault(machine, monkeypatch):
    machine(seen=[])
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert machine_checks.driver().verdict is UNKNOWN


@pytest.mark.parametrize(
    ("changes", "verdict", "said"),
    [
        ({}, OK, "and libcuda load"),
        (BARE, OK, "no GPU for libcuda"),
        ({"driver_cuda": None}, FAIL, "libcuda.so.1 does not"),
        (BARE | {"nvidia_cards": 1}, WARNING, "libcuda.so.1 does not"),
    ],
)
def test_the_libraries_that_dali_loads(machine, monkeypatch, changes, verdict, said):
    machine(**changes)
    monkeypatch.setattr(importlib, "import_module", lambda name: None)
    finding = machine_checks.libraries()
    assert (finding.verdict, said in finding.found) == (verdict, True), finding


def test_a_dali_that_does_not_load_is_a_fault(machine, monkeypatch):
    def refuse(name):
        raise ImportError("libnvimgcodec.so.0: cannot open shared object file\nmore")

    machine()
    monkeypatch.setattr(importlib, "import_module", refuse)
    finding = machine_checks.libraries()
    assert finding.verdict is FAIL
    assert finding.found.endswith("cannot open shared object file")


@pytest.mark.parametrize(("gib", "verdict"), [(5, OK), (4.9, WARNING), (0.4, FAIL)])
def test_room_on_the_disk(monkeypatch, gib, verdict):
    usage = shutil.disk_usage(".")._replace(free=int(gib * 2**30))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    assert system.disk().verdict is verdict


def test_too_little_memory(monkeypatch):
    monkeypatch.setattr(machine_checks, "free_memory", lambda device: int(1.4 * 2**30))
    assert machine_checks.memory(CPU).verdict is FAIL


@pytest.mark.skipif(sys.platform != "linux", reason="/dev/shm is Linux's")
@pytest.mark.parametrize(
    ("mib", "cards", "verdict", "said"),
    [
        (64, 1, OK, "64 MiB free"),
        (64, 2, WARNING, ": 64 MiB free"),
        (None, 0, WARNING, ": absent"),
    ],
)
def test_shared_memory(monkeypatch, machine, tmp_path, mib, cards, verdict, said):
    machine(seen=[H100] * cards)
    monkeypatch.setattr("pipeline.machine.SHARED", tmp_path if mib is not None else tmp_path / "no")
    usage = shutil.disk_usage(".")._replace(free=(mib or 0) << 20)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    finding = machine_checks.shared_memory()
    assert finding.verdict is verdict
    assert finding.found.endswith(said)


def test_what_cannot_be_written(monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert "cannot be written" in machine_checks.shared_memory().found
    assert system.disk().verdict is FAIL


@pytest.mark.parametrize(("flags", "verdict"), [({"amx_bf16"}, OK), ({"avx2"}, WARNING)])
def test_bfloat16_on_a_cpu(monkeypatch, flags, verdict):
    monkeypatch.setattr("dcgan.step.precision.cpu_flags", lambda: flags)
    assert machine_checks.bfloat16(CPU).verdict is verdict


@pytest.mark.parametrize(
    ("limits", "threads", "verdict", "said"),
    [
        ({"machine": 8, "affinity": 8}, "", OK, "8 of 8 cores"),
        ({"machine": 8, "affinity": 2, "cgroup quota": 2}, "2", OK, "2 of 8 cores (affinity, c"),
        ({"machine": 8, "affinity": 2}, "8", WARNING, "OMP_NUM_THREADS=8"),
    ],
)  # fmt: skip
def test_the_cores_that_may_be_used(monkeypatch, limits, threads, verdict, said):
    monkeypatch.setattr(system, "core_limits", lambda: limits)
    monkeypatch.setattr(system, "usable_cores", lambda: min(limits.values()))
    monkeypatch.setenv("OMP_NUM_THREADS", threads)
    finding = system.cores()
    assert (finding.verdict, said in finding.found) == (verdict, True), finding


def test_versions_are_held_against_the_projects_own_bounds(monkeypatch):
    bounds = system.lower_bounds()
    assert {"torch", "typer", "nvidia-dali-cuda120"} <= set(bounds)
    assert not {"pytest", "ruff"} & set(bounds)
    assert system.packages().verdict is OK
    versions = dict.fromkeys(bounds, "999") | {"torch": "2.8.1+cu128", "pillow": None}
    monkeypatch.setattr(system, "installed", versions.get)
    finding = system.packages()
    assert finding.verdict is FAIL
    assert f"torch 2.8.1+cu128 (wanted {bounds['torch']})" in finding.found
    assert "pillow is missing" in finding.found
    assert finding.found.count("wanted") == 2


def test_files_that_are_neither_a_checkout_nor_installed_have_no_bounds(monkeypatch, tmp_path):
    def requires(package):
        raise metadata.PackageNotFoundError(package)

    monkeypatch.setattr(metadata, "requires", requires)
    assert len(system.lower_bounds()) > 10  # a checkout has its own
    monkeypatch.setattr("dcgan.__file__", str(tmp_path / "dcgan" / "__init__.py"))
    finding = system.packages()
    assert finding.verdict is UNKNOWN
    assert "neither pyproject.toml nor an installed" in finding.found


def test_versions_are_compared_as_numbers():
    assert system.numbers("2.10") > system.numbers("2.9.1")


# A shard set


def test_a_set_opens_and_gives_a_batch(numbered_set):
    folder = numbered_set(12, 5).folder
    assert shard_set(folder).found == "12 images in 3 shards, --store original --crop none"
    loader, batch = list(examine([Check("one batch", lambda: one_batch(folder, CPU))]))
    assert [(each.name, each.verdict) for each in (loader, batch)] == [
        ("loader", OK),
        ("one batch", OK),
    ]
    assert "threads" in loader.found
    assert batch.found.startswith("12×64×64×3 after ")


def test_a_broken_set_is_a_fault_with_its_remedy(spare_set):
    (spare_set.folder / MANIFEST).unlink()
    folder = spare_set.folder
    checks = [
        Check("shard set", lambda: shard_set(folder)),
        Check("one batch", lambda: one_batch(folder, CPU)),
    ]
    finding, batch = examine(checks)
    assert (batch.verdict, batch.found) == (UNKNOWN, "the set does not open")
    assert (finding.verdict, finding.name) == (FAIL, "shard set")
    assert "unfinished" in finding.found
    assert "tools/make_shards.py" in finding.remedy


def test_a_loader_that_cannot_be_imported_is_a_line_like_others(monkeypatch, numbered_set):
    monkeypatch.setitem(sys.modules, "pipeline.loading.loader", None)
    folder = numbered_set(12, 5).folder
    (finding,) = examine([Check("one batch", lambda: one_batch(folder, CPU))])
    assert (finding.verdict, "pipeline.loading.loader" in finding.found) == (FAIL, True)
