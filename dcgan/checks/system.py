"""What `dcgan-doctor` looks at without torch: Python, the packages, the cores, the disk."""

from __future__ import annotations

import os
import re
import shutil
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import dcgan
from dcgan.checks.findings import Check, Finding, fail, first_line, not_checked, ok, warning
from dcgan.cli import PACKAGE, installed
from pipeline.machine import core_limits, usable_cores

DALI = {"nvidia-dali-cuda110": 11, "nvidia-dali-cuda120": 12, "nvidia-dali-cuda130": 13}
"""DALI's wheels, and the major version of CUDA that each is made for."""

GIB = 1 << 30

LEAST_DISK, GOOD_DISK = GIB // 2, 5 * GIB
"""A run of five epochs writes some 130 MB of nets; CelebA as raw 64×64 pixels is 2.5 GB, and its
originals are 1.4 GB."""

_BOUND = re.compile(r"^([\w.-]+)\s*>=\s*([\d.]+)")


def without_torch(obstacle: str, verify: bool) -> list[Check]:
    """The checks that are left where torch does not load: they look for the reason."""
    remedy = "install it again: pip install --force-reinstall torch torchvision"
    rest = ["NVIDIA driver", "GPU", "DALI", "bfloat16", "memory", *(["--verify"] if verify else [])]
    lost = not_checked("torch does not load")
    return [
        Check("torch", lambda: fail(obstacle, remedy), "torch that loads"),
        PACKAGES,
        CORES,
        DISK,
        *(Check(name, lambda: lost) for name in rest),
    ]


def why_no_torch() -> str | None:
    """What keeps torch from loading, or None."""
    try:
        import torch  # noqa: F401
    except Exception as error:  # a broken library shows as nearly anything
        return first_line(error)
    return None


def packages() -> Finding:
    """Python's version and every dependency's, against the lower bounds of pyproject.toml."""
    bounds, lacking = lower_bounds(), []
    for name, least in bounds.items():
        # Any of DALI's wheels will do; where there is none, the line on DALI tells
        wheels = dali_wheels() if name in DALI else {}
        if name in DALI and not wheels:
            continue
        version = next(iter(wheels.values()), None) or installed(name)
        if version is None or numbers(version) < numbers(least):
            lacking.append(f"{name} {version or 'is missing'} (wanted {least})")
    if not bounds:
        return not_checked("neither pyproject.toml nor an installed dcgan-shards")
    if lacking:
        return fail(", ".join(lacking), "in your checkout: pip install --upgrade -e .")
    python = ".".join(map(str, sys.version_info[:3]))
    return ok(f"Python {python}, {len(bounds)} packages")


def lower_bounds() -> dict[str, str]:
    """The oldest version of each dependency of this system's; of a checkout, the checkout's."""
    project = Path(dcgan.__file__).parents[1] / "pyproject.toml"
    if project.is_file():
        requirements = tomllib.loads(project.read_text())["project"]["dependencies"]
    else:
        try:
            requirements = metadata.requires(PACKAGE) or []
        except metadata.PackageNotFoundError:
            requirements = []
    bounds = {}
    for requirement in requirements:
        text, _, marker = requirement.partition(";")
        foreign = "linux" in marker and sys.platform != "linux"
        if "extra" not in marker and not foreign and (bound := _BOUND.match(text)):
            bounds[bound[1]] = bound[2]
    return bounds


def numbers(version: str) -> tuple[int, ...]:
    """A version's leading numbers, to compare: (2, 14, 1) of 2.14.1+cu130."""
    return tuple(int(part) for part in re.findall(r"\d+", version.partition("+")[0])[:3])


def dali_wheels() -> dict[str, str]:
    """The DALI wheels that are installed, with their versions."""
    return {wheel: version for wheel in DALI if (version := installed(wheel)) is not None}


def cores() -> Finding:
    """The cores that workers and torch's threads are counted by, and what holds them back."""
    limits, usable, asked = core_limits(), usable_cores(), os.environ.get("OMP_NUM_THREADS", "")
    holding = [name for name, number in limits.items() if number == usable < limits["machine"]]
    found = f"{usable} of {limits['machine']} cores"
    if holding:
        found += f" ({', '.join(holding)})"
    if asked.isdecimal() and int(asked) > usable:
        found += f", and OMP_NUM_THREADS={asked}"
        return warning(found, "unset it", "at most a thread for each core")
    return ok(found)


def disk() -> Finding:
    """Room for runs and shards where the command is run."""
    if not os.access(".", os.W_OK):
        wanted = "a folder to write runs to"
        return fail("this folder cannot be written", "run from another folder", wanted)
    remedy = "make room, or run from a folder on another disk"
    return enough(shutil.disk_usage(".").free, LEAST_DISK, GOOD_DISK, remedy)


def enough(free: int, least: float, good: float, remedy: str) -> Finding:
    """Hold free bytes against what training needs at least, and what is good to have."""
    found = f"{free / GIB:,.1f} GiB free"
    if free < least:
        return fail(found, remedy, f"{least / GIB:g} GiB at least")
    if free < good:
        return warning(found, remedy, f"{good / GIB:g} GiB")
    return ok(found, f"{good / GIB:g} GiB")


PACKAGES = Check("Python and packages", packages, "pyproject.toml's lower bounds")
CORES = Check("CPU", cores)
DISK = Check("disk", disk)
