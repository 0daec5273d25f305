"""How much memory there is to spend."""

from __future__ import annotations

from pathlib import Path

import psutil
import torch

CGROUP = Path("/sys/fs/cgroup")
"""Where a container reads its own limits (kernel.org/doc/Documentation/admin-guide/cgroup-v2.rst);
what the system as a whole has free says nothing about them."""


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
