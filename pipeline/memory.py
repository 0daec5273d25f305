"""How much memory there is to spend."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import psutil
import torch

MIB = 1 << 20

CGROUP = Path("/sys/fs/cgroup")
"""Where a container reads its own limits (kernel.org/doc/Documentation/admin-guide/cgroup-v2.rst);
what the system as a whole has free says nothing about them."""


SHARED = Path("/dev/shm")  # noqa: S108, no file is made there
"""Where Linux keeps shared memory and named semaphores (man 7 shm_overview, sem_overview). Packing
and training on one device need neither; torch's DataLoader and NCCL do."""


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
        return torch.cuda.mem_get_info(device)[0]
    available: int = psutil.virtual_memory().available
    left = _left_in_container()
    return available if left is None else min(available, left)


def _left_in_container() -> int | None:
    """Bytes, or None where there is no limit or no telling."""
    try:
        limit = int((CGROUP / "memory.max").read_text())  # or the word max
        used = int((CGROUP / "memory.current").read_text())
        stat = dict(line.split() for line in (CGROUP / "memory.stat").read_text().splitlines())
        return max(0, limit - used + int(stat["inactive_file"]))  # which gives way to others
    except (KeyError, OSError, ValueError):
        return None
