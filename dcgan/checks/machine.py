"""What `dcgan-doctor` looks at on the machine: each check is one line, and none changes anything.

They judge what `probes` asks the system. Torch is loaded inside functions: where it is
broken, that is the first thing to be told.
"""

from __future__ import annotations

import importlib
import os
import shutil
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from dcgan.checks.findings import Check, Finding, fail, first_line, not_checked, ok, warning
from dcgan.checks.probes import (
    DALI,
    architectures,
    cuda_available,
    dali_wheels,
    driver_cuda,
    driver_version,
    gpus,
    installed,
    lower_bounds,
    numbers,
    nvidia_cards,
    torch_cuda,
)
from pipeline.errors import UserError
from pipeline.machine import core_limits, usable_cores

if TYPE_CHECKING:
    import torch

OLDEST_DRIVERS = {11: 450, 12: 525, 13: 580}
"""The oldest NVIDIA driver for Linux that runs a CUDA of this major version
(docs.nvidia.com/deploy/cuda-compatibility, "minor version compatibility")."""

GIB = 1 << 30

LEAST_MEMORY, GOOD_MEMORY = 1.5 * GIB, 4 * GIB
"""Training on noise at the default options took 1.13 GiB of a CPU machine's memory in bfloat16;
fp32, a cache and the compiler of `--step compiled` need more."""

SHARED_BY_GPUS, SHARED_BY_PROCESSES = (256, "NCCL"), (48, "dcgan-profile compare alone")
"""MiB, and who needs them: NCCL's guide asks for 1 GB, and Docker gives 64 MiB; the DataLoaders
that are compared take 38 MB with one worker at the default options."""

LEAST_DISK, GOOD_DISK = GIB // 2, 5 * GIB
"""A run of five epochs writes some 130 MB of nets; CelebA as raw 64×64 pixels is 2.5 GB, and its
originals are 1.4 GB."""


BATCH_TIMEOUT = 60.0
"""Seconds: a share or a sleeping disk may take some, a stuck one would take for ever."""


def checks(device: torch.device, shards: Path | None) -> list[Check]:
    """All checks, in the order of a repair: what comes first may be why a later one fails."""
    return [
        Check("Python and packages", packages),
        Check("torch", torch_build),
        Check("NVIDIA driver", driver),
        Check("GPU", gpu),
        Check("DALI", dali),
        Check("DALI beside torch", pairing),
        Check("DALI's libraries", libraries),
        Check("CPU", cores),
        Check("bfloat16", lambda: bfloat16(device)),
        Check("memory", lambda: memory(device)),
        Check("shared memory", shared_memory),
        Check("disk", disk),
        Check("shard set", lambda: shard_set(shards)),
        Check("one batch", lambda: one_batch(shards, device)),
    ]


def without_torch(obstacle: str, verify: bool) -> list[Check]:
    """The checks that are left where torch does not load: they look for the reason."""
    wanted = "torch that loads"
    remedy = "install it again: pip install --force-reinstall torch torchvision"
    found = [
        Check("torch", lambda: fail("torch", obstacle, wanted, remedy)),
        Check("Python and packages", packages),
        Check("CPU", cores),
        Check("disk", disk),
    ]
    rest = ["NVIDIA driver", "GPU", "DALI", "bfloat16", "memory", *(["--verify"] if verify else [])]
    return found + [_unknown(name, "torch does not load") for name in rest]


def _unknown(name: str, reason: str) -> Check:
    return Check(name, lambda: not_checked(name, reason))


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
    name, wanted = "Python and packages", "pyproject.toml's lower bounds"
    python = ".".join(map(str, sys.version_info[:3]))
    if not bounds:
        return not_checked(name, "neither pyproject.toml nor an installed dcgan-shards", wanted)
    if lacking:
        told = ", ".join(lacking)
        return fail(name, told, wanted, "in your checkout: pip install --upgrade -e .")
    return ok(name, f"Python {python}, {len(bounds)} packages", wanted)


def torch_build() -> Finding:
    """Torch, and the CUDA that it is made for."""
    import torch

    cuda = f"for CUDA {torch.version.cuda}" if torch.version.cuda else "without CUDA"
    return ok("torch", f"{torch.__version__}, built {cuda}")


def driver() -> Finding:
    """The driver, against what this torch's CUDA needs."""
    name, cards, version, cuda = "NVIDIA driver", nvidia_cards(), driver_version(), torch_cuda()
    major = int((cuda or "0").split(".")[0])
    oldest = OLDEST_DRIVERS.get(major)
    wanted = f"{oldest} or later, for CUDA {major}" if oldest else ""
    if not cards and version is None:
        return not_checked(name, "no NVIDIA card and no driver here", wanted)
    if version is None:
        return warning(
            name, "an NVIDIA card without its driver: training would run on the CPU",
            wanted, "install NVIDIA's driver, or go on without the card",
        )  # fmt: skip
    if cuda is None:
        remedy = "install a CUDA build: pip install --force-reinstall torch torchvision"
        return warning(name, f"{version}, but torch is built without CUDA", "a CUDA build", remedy)
    old = oldest is not None and numbers(version) < (oldest,)
    if cuda_available():
        if old:  # data-centre cards may: CUDA's forward compatibility package
            remedy = "nothing, while it works"
            return warning(name, f"{version}; torch takes it all the same", wanted, remedy)
        return ok(name, version, wanted)
    if os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        return not_checked(name, f"{version}; CUDA_VISIBLE_DEVICES hides all cards", wanted)
    if old:
        remedy = f"install driver {oldest} or later, or a torch for an older CUDA"
        return fail(name, f"{version}: too old for torch's CUDA {cuda}", wanted, remedy)
    remedy = "see whether nvidia-smi lists the card; restart after a driver's update"
    return fail(name, f"{version}, but torch sees no device", wanted, remedy)


def gpu() -> Finding:
    """The cards that torch sees, against bfloat16 and the code in torch's build."""
    name, wanted = "GPU", "compute capability 8.0 or later, for bfloat16"
    if not cuda_available():
        return not_checked(name, "no CUDA device", wanted)
    cards, built = gpus(), architectures()
    found = ", ".join(f"{card} ({major}.{minor})" for card, (major, minor) in cards)
    weakest = min(capability for _, capability in cards)
    if built and weakest < min(built):
        least = ".".join(map(str, min(built)))
        remedy = "install an older torch, or use another card: --device cuda:N, or cpu"
        return fail(name, found, f"{least} or later, which this torch is built for", remedy)
    if weakest < (8, 0):
        remedy = "nothing: --precision auto takes fp32 there, which is slower"
        return warning(name, found, wanted, remedy)
    return ok(name, found, wanted)


def dali() -> Finding:
    """Which wheel of DALI is installed."""
    name, wanted = "DALI", "one of its wheels"
    if sys.platform != "linux":
        return not_checked(name, f"no wheels for {sys.platform}: threads decode images", wanted)
    wheels = dali_wheels()
    if not wheels:
        remedy = "pip install nvidia-dali-cuda120; without it, threads decode images"
        return warning(name, "not installed", wanted, remedy)
    found = ", ".join(f"{wheel} {version}" for wheel, version in wheels.items())
    if len(wheels) > 1:
        remedy = f"pip uninstall {' '.join(wheels)}, then install the one you want"
        return fail(name, f"{found}, each over the other's files", wanted, remedy)
    return ok(name, found, wanted)


def pairing() -> Finding:
    """DALI's CUDA beside torch's: they need not be the same, but the driver must run both."""
    name, wheels, cuda, runs = "DALI beside torch", dali_wheels(), torch_cuda(), driver_cuda()
    wanted = "a driver that runs both"
    if len(wheels) != 1 or cuda is None:
        return not_checked(name, "torch without CUDA" if wheels else "no DALI", wanted)
    (wheel,) = wheels
    ours, theirs = DALI[wheel], int(cuda.split(".")[0])
    found = f"CUDA {ours} beside CUDA {theirs}"
    if runs is None:
        return not_checked(name, f"{found}; no CUDA driver to ask", wanted)
    found += f", driver for CUDA {runs[0]}.{runs[1]}"
    if ours > runs[0]:
        remedy = f"update the driver, or: pip uninstall {wheel}; pip install nvidia-dali-cuda120"
        return fail(name, found, wanted, remedy)
    matched = f"nvidia-dali-cuda{theirs}0"
    if ours != theirs and matched in DALI:
        found += f"; {matched} is the matched one"
    return ok(name, found, wanted)


def libraries() -> Finding:
    """What DALI loads: its own Python modules, and CUDA's driver library where there is a GPU."""
    name, wanted = "DALI's libraries", "nvidia.dali.fn loads, and libcuda where a GPU is"
    if not dali_wheels():
        return not_checked(name, "no DALI", wanted)
    try:
        for module in ("nvidia.dali.fn", "nvidia.dali.plugin.pytorch"):
            importlib.import_module(module)
    except (ImportError, OSError, RuntimeError) as error:
        (wheel, *_) = dali_wheels()
        remedy = f"pip install --force-reinstall {wheel}; until then, threads decode images"
        return fail(name, f"does not load: {first_line(error)}", wanted, remedy)
    if driver_cuda() is not None:
        return ok(name, "nvidia.dali.fn and libcuda load", wanted)
    found = "nvidia.dali.fn loads; libcuda.so.1 does not"
    if driver_version() is not None:
        remedy = "install the driver's libraries; in a container, start it with --gpus all"
        return fail(name, found, wanted, remedy)
    if nvidia_cards():
        return warning(name, found, wanted, "install NVIDIA's driver, or go on without the card")
    return ok(name, "nvidia.dali.fn loads; no GPU for libcuda", wanted)


def cores() -> Finding:
    """The cores that workers and torch's threads are counted by, and what holds them back."""
    limits, usable, asked = core_limits(), usable_cores(), os.environ.get("OMP_NUM_THREADS", "")
    holding = [name for name, number in limits.items() if number == usable < limits["machine"]]
    found = f"{usable} of {limits['machine']} cores"
    if holding:
        found += f" ({', '.join(holding)})"
    if asked.isdecimal() and int(asked) > usable:
        wanted = "at most a thread for each core"
        return warning("CPU", f"{found}, and OMP_NUM_THREADS={asked}", wanted, "unset it")
    return ok("CPU", found)


def bfloat16(device: torch.device) -> Finding:
    """What `--precision auto` takes on this device, and why."""
    from dcgan.step.precision import choose_precision

    name, wanted = "bfloat16", "hardware that multiplies it"
    choice = choose_precision("auto", device)
    found = f"{choice.name}: {choice.reason}"
    if choice.name == "bf16":
        return ok(name, found, wanted)
    return warning(name, found, wanted, "nothing: training takes fp32, which is slower")


def memory(device: torch.device) -> list[Finding]:
    """What is free, of the host and of a CUDA device."""
    import torch

    from pipeline.machine import free_memory

    places = {"memory": torch.device("cpu")}
    if device.type == "cuda":
        places[f"memory of {device}"] = device
    remedy = "end other programs; or train with a smaller --batch-size and --cache off"
    return [
        _room(name, free_memory(place), LEAST_MEMORY, GOOD_MEMORY, remedy)
        for name, place in places.items()
    ]


def shared_memory() -> Finding:
    """What is left of /dev/shm, which several GPUs need (NCCL's guide, "Shared memory")."""
    from pipeline.machine import MIB, free_shared_memory, shared_memory_lack

    if sys.platform != "linux":
        return not_checked("shared memory", f"no /dev/shm on {sys.platform}")
    several = cuda_available() and len(gpus()) > 1
    least, user = SHARED_BY_GPUS if several else SHARED_BY_PROCESSES
    wanted = f"{least} MiB in /dev/shm, for {user}"
    if lack := shared_memory_lack(least * MIB):
        remedy = "in a container: docker run --shm-size 1g; else remove what fills it"
        return warning("shared memory", lack, wanted, remedy)
    return ok("shared memory", f"{free_shared_memory() / MIB:,.0f} MiB free", wanted)


def disk() -> Finding:
    """Room for runs and shards where the command is run."""
    remedy = "make room, or run from a folder on another disk"
    if not os.access(".", os.W_OK):
        wanted = "a folder to write runs to"
        return fail("disk", "this folder cannot be written", wanted, "run from another folder")
    return _room("disk", shutil.disk_usage(".").free, LEAST_DISK, GOOD_DISK, remedy)


def _room(name: str, free: int, least: float, good: float, remedy: str) -> Finding:
    found = f"{free / GIB:,.1f} GiB free"
    if free < least:
        return fail(name, found, f"{least / GIB:g} GiB at least", remedy)
    if free < good:
        return warning(name, found, f"{good / GIB:g} GiB", remedy)
    return ok(name, found, f"{good / GIB:g} GiB")


def shard_set(folder: Path | None) -> Finding:
    """Whether the set opens, and its recipe."""
    from pipeline.shards.manifest import ShardSet

    name, wanted = "shard set", "a complete set"
    if folder is None:
        return not_checked(name, "no --shards given", wanted)
    manifest = ShardSet.open(folder).manifest
    size = f"{manifest.samples:,} images in {len(manifest.shards):,} shards"
    return ok(name, f"{size}, {manifest.recipe.describe()}", wanted)


def one_batch(folder: Path | None, device: torch.device) -> Finding | list[Finding]:
    """Whether a batch of the set comes out, and of which loader."""
    import torch

    from pipeline.loading.loader import Loader
    from pipeline.loading.options import LoaderOptions
    from pipeline.shards.manifest import ShardSet

    name, wanted = "one batch", f"within {BATCH_TIMEOUT:g} s"
    if folder is None:
        return not_checked(name, "no --shards given", wanted)
    try:
        shards = ShardSet.open(folder)
    except UserError:
        return not_checked(name, "the set does not open", wanted)
    recipe = shards.manifest.recipe
    size = min(64, recipe.size or 64, recipe.crop if isinstance(recipe.crop, int) else 64)
    options = LoaderOptions(
        min(64, len(shards)), size, device=device, dtype=torch.uint8, data_timeout=BATCH_TIMEOUT
    )
    loader = Loader(shards, options)
    try:
        began = time.perf_counter()
        batch = next(loader)
        seconds = time.perf_counter() - began
    finally:
        loader.close()
    shape = "×".join(map(str, batch.shape))
    return [
        ok("loader", loader.description),
        ok(name, f"{shape} after {seconds:.1f} s", wanted),
    ]
