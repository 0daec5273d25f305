"""The device that a run takes, and what `env.json` says of the machine."""

from __future__ import annotations

import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from dcgan.cli import installed
from dcgan.distributed import Ranks
from pipeline.errors import UserError
from pipeline.machine import cpu_info, usable_cores

PACKAGES = (
    "dcgan-shards",
    "torch",
    "torchvision",
    "nvidia-dali-cuda120",
    "nvidia-dali-cuda130",
    "webdataset",
    "numpy",
    "pillow",
)
"""Packages whose version may change pixels or numbers."""


def pick_device(name: str) -> torch.device:
    """Resolve `--device`; `auto` is CUDA where there is one, else Apple's MPS, else the CPU.

    Raises:
        UserError: an unknown device, or one that this machine or this torch does not have.
    """
    present = ["cpu"]
    if torch.backends.mps.is_available():
        present.insert(0, "mps")
    if torch.cuda.is_available():
        present[:0] = ["cuda", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]
    if name == "auto":
        return torch.device(present[0])
    if name in present:
        return torch.device(name)
    known = name.partition(":")[0] in ("cuda", "mps")
    raise UserError(
        f"--device {name}",
        "no such device here" if known else "an unknown device",
        "one of auto, " + ", ".join(present),
        "leave --device out"
        + ("; for CUDA, check nvidia-smi and that torch is a CUDA build" if known else ""),
    )


def own_device(device: torch.device, ranks: Ranks) -> torch.device:
    """Pick the device of this rank: each takes one of the machine's GPUs.

    Raises:
        UserError: there are too few, or the device is of another kind.
    """
    if ranks.count == 1 or device.type == "cpu":
        return device
    if device.type != "cuda" or device.index is not None:
        raise UserError(
            f"--device {device}",
            f"{ranks.count} processes",
            "cpu, or cuda without a number: each process takes a GPU of its own",
            "leave --device out, or give --device cpu",
        )
    found = torch.cuda.device_count()
    if ranks.local >= found:
        raise UserError(
            "torchrun --nproc-per-node",
            f"{ranks.local + 1} processes or more, and {found} GPUs",
            "no more processes than GPUs on a machine",
            f"use --nproc-per-node {found}",
        )
    torch.cuda.set_device(ranks.local)
    return torch.device("cuda", ranks.local)


def describe_environment(device: torch.device) -> dict[str, Any]:
    """Describe this machine in plain values, for `env.json`."""
    cuda, cpu = device.type == "cuda", cpu_info("model name") or platform.processor()
    return {
        "command": sys.argv,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpus": usable_cores(),
        "device": str(device),
        "device_name": torch.cuda.get_device_name(device) if cuda else cpu,
        "cuda": torch.version.cuda if cuda else None,
        "packages": {name: version for name in PACKAGES if (version := installed(name))},
        "git_commit": _git_commit(),
    }


def _git_commit() -> str | None:
    """The commit of the checkout that this code runs from; None where it is installed."""
    folder = Path(__file__).parents[2]
    if not (folder / ".git").exists():  # git would find whatever repository lies around it
        return None
    try:
        done = subprocess.run(
            ["git", "rev-parse", "HEAD"],
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=5,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None
