"""How many cores and how much memory this process may use.

`os.cpu_count` counts the machine's cores. `os.process_cpu_count` (Python 3.13) and psutil know the
affinity, and no quota; those of joblib and dask look at one group only, and know no SLURM.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

if TYPE_CHECKING:  # packing counts cores too, and waits for no torch
    import torch

CGROUPS, OWN_GROUPS = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
CPU_MOUNTS = "cpu", "cpu,cpuacct", "cpuacct,cpu"
"""Version 1's, by what shares it. The first, then, is a link, which containers may lack."""

MIB = 1 << 20

SHARED = Path("/dev/shm")  # noqa: S108, no file is made there
"""Where Linux keeps shared memory and named semaphores (man 7 shm_overview, sem_overview). Packing
and training on one device need neither; torch's DataLoader and NCCL do."""


def usable_cores() -> int:
    """The least of all limits, 1 or more."""
    return min(core_limits().values())


def core_limits() -> dict[str, int]:
    """Each limit that there is here, by what sets it; the first is the machine's own number."""
    limits = {"machine": os.cpu_count() or 1}
    if hasattr(os, "sched_getaffinity"):
        limits["affinity"] = len(os.sched_getaffinity(0))
    if quotas := list(_quotas()):
        # Rounded down: the kernel would stop one thread too many until the next period, and the
        # threads of a computation wait for each other
        limits["cgroup quota"] = max(1, int(min(quotas)))
    slurm = os.environ.get("SLURM_CPUS_PER_TASK", "")
    if slurm.isdecimal() and int(slurm) > 0:
        limits["SLURM_CPUS_PER_TASK"] = int(slurm)
    return limits


def _quotas() -> Iterator[float]:
    """Cores' worth of time that each group around this process may use, where it has a quota.

    Version 2 has both numbers in `cpu.max`, version 1 one in a file each
    (docs.kernel.org/admin-guide/cgroup-v2.html, "CPU Interface Files";
    docs.kernel.org/scheduler/sched-bwc.html). A parent's quota holds for its children.
    """
    for folder in _groups():
        for names in (["cpu.max"], ["cpu.cfs_quota_us", "cpu.cfs_period_us"]):
            try:
                quota, period = " ".join((folder / name).read_text() for name in names).split()
                cores = int(quota) / int(period)  # the quota may be the word max
            except (OSError, ValueError, ZeroDivisionError):
                continue
            if cores > 0:  # -1 is none
                yield cores


def _groups() -> Iterator[Path]:
    """Folders of the groups that may bound this process's CPU time (man 7 cgroups).

    In a container the path may be the host's: then only the mount's root, its own, is there.
    """
    try:
        lines = OWN_GROUPS.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2) if line.count(":") >= 2 else ("", "none", "")
        if controllers and "cpu" not in controllers.split(","):
            continue
        for mount in [CGROUPS / name for name in CPU_MOUNTS] if controllers else [CGROUPS]:
            group = mount / path.lstrip("/")
            yield from (
                folder for folder in (group, *group.parents) if folder.is_relative_to(mount)
            )


def cpu_info(field: str) -> str:
    """Return what Linux lists of the first CPU; "" if there is no such list, or field."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(field)), "")


def limit_torch_threads() -> None:
    """Have torch compute on no more threads than there are cores to use; OMP_NUM_THREADS overrules.

    By itself it takes a thread for each core of the affinity, whatever the quota.
    """
    import torch

    cores = usable_cores()
    # Only where there are too many: a number that is set turns off MKL's own choice of fewer
    if not os.environ.get("OMP_NUM_THREADS") and torch.get_num_threads() > cores:
        torch.set_num_threads(cores)


def shared_memory_lack(wanted: int) -> str | None:
    """Where and why so many bytes of shared memory cannot be had; None if they can."""
    if sys.platform != "linux":
        return None
    if not SHARED.is_dir():
        return f"{SHARED}: absent"
    if not os.access(SHARED, os.W_OK):
        return f"{SHARED}: cannot be written"
    free = free_shared_memory()
    return f"{SHARED}: {free / MIB:,.0f} MiB free" if free < wanted else None


def free_shared_memory() -> int:
    """Bytes."""
    return shutil.disk_usage(SHARED).free


def free_memory(device: torch.device) -> int:
    """Bytes that could be allocated now: of a CUDA device, or else of the host."""
    if device.type == "cuda":
        import torch

        return torch.cuda.mem_get_info(device)[0]
    available: int = psutil.virtual_memory().available
    left = _left_in_container()
    return available if left is None else min(available, left)


def _left_in_container() -> int | None:
    """Bytes that a container's own group has left; None where it has no limit, or none is told.

    What the system as a whole has free says nothing about it
    (docs.kernel.org/admin-guide/cgroup-v2.html, "Memory Interface Files").
    """
    try:
        limit = int((CGROUPS / "memory.max").read_text())  # or the word max
        used = int((CGROUPS / "memory.current").read_text())
        stat = dict(line.split() for line in (CGROUPS / "memory.stat").read_text().splitlines())
        return max(0, limit - used + int(stat["inactive_file"]))  # which gives way to others
    except (KeyError, OSError, ValueError):
        return None
