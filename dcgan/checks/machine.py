"""What `dcgan-doctor` looks at on the machine once torch loads; no check changes anything.

But what is read of a remote set is fetched, and kept in the shard cache as it is for training.
"""

from __future__ import annotations

import ctypes
import importlib
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from functools import partial
from pathlib import Path

import torch

from dcgan.checks.findings import Check, Finding, fail, first_line, not_checked, ok, warning
from dcgan.checks.system import CORES, DALI, DISK, GIB, PACKAGES, dali_wheels, enough, numbers
from dcgan.options import DoctorOptions
from dcgan.step.precision import choose_precision
from pipeline.errors import UserError
from pipeline.images.size import sides
from pipeline.loading.options import LoaderOptions
from pipeline.machine import MIB, free_memory, free_shared_memory, shared_memory_lack
from pipeline.remote.access import Access
from pipeline.remote.address import Address
from pipeline.remote.cache import ShardCache
from pipeline.remote.open import open_set
from pipeline.remote.store import Store
from pipeline.shards.manifest import MANIFEST, MAX_MANIFEST_BYTES
from pipeline.shards.shard_set import is_url

NVIDIA, DISPLAY = "0x10de", "0x03"
"""How the PCI bus names NVIDIA, and the class of devices that draw or compute."""

OLDEST_DRIVERS = {11: 450, 12: 525, 13: 580}
"""The oldest NVIDIA driver for Linux that runs a CUDA of this major version
(docs.nvidia.com/deploy/cuda-compatibility, "minor version compatibility")."""

LEAST_MEMORY, GOOD_MEMORY = 1.5 * GIB, 4 * GIB
"""Training on noise at the default options took 1.13 GiB of a CPU machine's memory in bfloat16;
fp32, a cache and the compiler of `--step compiled` need more."""

SHARED_BY_GPUS, SHARED_BY_PROCESSES = (256, "NCCL"), (48, "dcgan-profile compare alone")
"""MiB, and who needs them: NCCL's guide asks for 1 GB, and Docker gives 64 MiB; the DataLoaders
that are compared take 38 MB with one worker at the default options."""

BATCH_TIMEOUT = 60.0
"""Seconds: a share or a sleeping disk may take some, a stuck one would take for ever."""


STORE_PATIENCE = 20.0
"""Seconds in which a store must answer."""


def checks(device: torch.device, options: DoctorOptions) -> list[Check]:
    """All checks, in the order of a repair: what comes first may be why a later one fails."""
    shards, access = options.shards or "", options.access
    no_shards = None if shards else "no --shards given"
    memories = {"memory": torch.device("cpu")}
    if device.type == "cuda":
        memories[f"memory of {device}"] = device
    one, in_time = partial(one_batch, shards, device, access), f"within {BATCH_TIMEOUT:g} s"
    return [
        PACKAGES,
        Check("torch", torch_build),
        Check("NVIDIA driver", driver),
        Check("GPU", gpu, "compute capability 8.0 or later, for bfloat16"),
        Check("DALI", dali, "one of its wheels"),
        Check("DALI beside torch", pairing, "a driver that runs both"),
        Check("DALI's libraries", libraries, "nvidia.dali.fn loads, and libcuda where a GPU is"),
        CORES,
        Check("bfloat16", partial(bfloat16, device), "hardware that multiplies it"),
        *(Check(name, partial(memory, place)) for name, place in memories.items()),
        Check("shared memory", shared_memory),
        DISK,
        *(_of_a_store(shards, access) if is_url(shards) else []),
        Check("shard set", partial(shard_set, shards, access), "a complete set", no_shards),
        Check("one batch", one, in_time, no_shards),
    ]


def _of_a_store(url: str, access: Access) -> list[Check]:
    return [
        Check("store", partial(store, url, access), "an answer"),
        Check("shard cache", partial(shard_cache, access), "room for shards"),
    ]


# The GPU, and what drives it


def torch_build() -> Finding:
    """Torch, and the CUDA that it is made for."""
    cuda = f"for CUDA {torch.version.cuda}" if torch.version.cuda else "without CUDA"
    return ok(f"{torch.__version__}, built {cuda}")


def driver() -> Finding:
    """The driver, against what this torch's CUDA needs."""
    version, cuda = driver_version(), torch.version.cuda
    major = int((cuda or "0").split(".")[0])
    oldest = OLDEST_DRIVERS.get(major)
    wanted = f"{oldest} or later, for CUDA {major}" if oldest else ""
    if version is None and nvidia_cards():
        found = "an NVIDIA card without its driver: training would run on the CPU"
        return warning(found, "install NVIDIA's driver, or go on without the card", wanted)
    if version is None:
        return not_checked("no NVIDIA card and no driver here", wanted)
    if cuda is None:
        remedy = "install a CUDA build: pip install --force-reinstall torch torchvision"
        return warning(f"{version}, but torch is built without CUDA", remedy, "a CUDA build")
    old = oldest is not None and numbers(version) < (oldest,)
    if torch.cuda.is_available():
        if old:  # data-centre cards may: CUDA's forward compatibility package
            found = f"{version}; torch takes it all the same"
            return warning(found, "nothing, while it works", wanted)
        return ok(version, wanted)
    if os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        return not_checked(f"{version}; CUDA_VISIBLE_DEVICES hides all cards", wanted)
    if old:
        remedy = f"install driver {oldest} or later, or a torch for an older CUDA"
        return fail(f"{version}: too old for torch's CUDA {cuda}", remedy, wanted)
    remedy = "see whether nvidia-smi lists the card; restart after a driver's update"
    return fail(f"{version}, but torch sees no device", remedy, wanted)


def driver_version() -> str | None:
    """The driver's version in NVIDIA's numbering; None where there is no driver."""
    try:
        text = Path("/proc/driver/nvidia/version").read_text()
        if match := re.search(r"\b(\d{3,}\.\d+(?:\.\d+)?)\b", text):
            return match[1]
    except OSError:
        pass  # as under WSL2, whose driver is Windows'
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        asked = subprocess.run(query, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    lines = asked.stdout.split() if asked.returncode == 0 else []
    return lines[0] if lines else None


def driver_cuda() -> tuple[int, int] | None:
    """The newest CUDA that the driver runs; None where its library does not load.

    cuDriverGetVersion needs no device (docs.nvidia.com/cuda/cuda-driver-api, "Version
    Management"), so this works where torch sees none.
    """
    try:
        library = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    version = ctypes.c_int()
    if library.cuDriverGetVersion(ctypes.byref(version)) != 0:
        return None
    return version.value // 1000, version.value % 1000 // 10


def nvidia_cards() -> int:
    """Cards on the PCI bus, whether or not there is a driver for them."""

    def read(file: Path) -> str:
        try:
            return file.read_text().strip()
        except OSError:
            return ""

    vendors = Path("/sys/bus/pci/devices").glob("*/vendor")
    return sum(
        read(vendor) == NVIDIA and read(vendor.with_name("class")).startswith(DISPLAY)
        for vendor in vendors
    )


def gpu() -> Finding:
    """The cards that torch sees, against bfloat16 and the code in torch's build."""
    if not torch.cuda.is_available():
        return not_checked("no CUDA device")
    places = range(torch.cuda.device_count())
    capabilities = [torch.cuda.get_device_capability(place) for place in places]
    found = ", ".join(
        f"{torch.cuda.get_device_name(place)} ({major}.{minor})"
        for place, (major, minor) in zip(places, capabilities, strict=True)
    )
    # The capabilities that torch's kernels are built for: `sm_75` is (7, 5)
    listed = (re.fullmatch(r"sm_(\d+)(\d)[a-z]?", name) for name in torch.cuda.get_arch_list())
    built = [(int(match[1]), int(match[2])) for match in listed if match]
    if built and min(capabilities) < min(built):
        least = ".".join(map(str, min(built)))
        remedy = "install an older torch, or use another card: --device cuda:N, or cpu"
        return fail(found, remedy, f"{least} or later, which this torch is built for")
    if min(capabilities) < (8, 0):
        return warning(found, "nothing: --precision auto takes fp32 there, which is slower")
    return ok(found)


# DALI


def dali() -> Finding:
    """Which wheel of DALI is installed."""
    if sys.platform != "linux":
        return not_checked(f"no wheels for {sys.platform}: threads decode images")
    wheels = dali_wheels()
    if not wheels:
        remedy = "pip install nvidia-dali-cuda120; without it, threads decode images"
        return warning("not installed", remedy)
    found = ", ".join(f"{wheel} {version}" for wheel, version in wheels.items())
    if len(wheels) > 1:
        remedy = f"pip uninstall {' '.join(wheels)}, then install the one you want"
        return fail(f"{found}, each over the other's files", remedy)
    return ok(found)


def pairing() -> Finding:
    """DALI's CUDA beside torch's: they need not be the same, but the driver must run both."""
    wheels, cuda, runs = dali_wheels(), torch.version.cuda, driver_cuda()
    if len(wheels) != 1 or cuda is None:
        return not_checked("torch without CUDA" if wheels else "no DALI")
    (wheel,) = wheels
    ours, theirs = DALI[wheel], int(cuda.split(".")[0])
    found = f"CUDA {ours} beside CUDA {theirs}"
    if runs is None:
        return not_checked(f"{found}; no CUDA driver to ask")
    found += f", driver for CUDA {runs[0]}.{runs[1]}"
    if ours > runs[0]:
        remedy = f"update the driver, or: pip uninstall {wheel}; pip install nvidia-dali-cuda120"
        return fail(found, remedy)
    matched = f"nvidia-dali-cuda{theirs}0"
    if ours != theirs and matched in DALI:
        found += f"; {matched} is the matched one"
    return ok(found)


def libraries() -> Finding:
    """What DALI loads: its own Python modules, and CUDA's driver library where there is a GPU."""
    if not dali_wheels():
        return not_checked("no DALI")
    try:
        for module in ("nvidia.dali.fn", "nvidia.dali.plugin.pytorch"):
            importlib.import_module(module)
    except (ImportError, OSError, RuntimeError) as error:
        (wheel, *_) = dali_wheels()
        remedy = f"pip install --force-reinstall {wheel}; until then, threads decode images"
        return fail(f"does not load: {first_line(error)}", remedy)
    if driver_cuda() is not None:
        return ok("nvidia.dali.fn and libcuda load")
    found = "nvidia.dali.fn loads; libcuda.so.1 does not"
    if driver_version() is not None:
        return fail(
            found, "install the driver's libraries; in a container, start it with --gpus all"
        )
    if nvidia_cards():
        return warning(found, "install NVIDIA's driver, or go on without the card")
    return ok("nvidia.dali.fn loads; no GPU for libcuda")


# Precision and memory


def bfloat16(device: torch.device) -> Finding:
    """What `--precision auto` takes on this device, and why."""
    choice = choose_precision("auto", device)
    found = f"{choice.name}: {choice.reason}"
    if choice.name == "bf16":
        return ok(found)
    return warning(found, "nothing: training takes fp32, which is slower")


def memory(device: torch.device) -> Finding:
    """What is free, of a CUDA device or else of the host."""
    remedy = "end other programs; or train with a smaller --batch-size and --cache off"
    return enough(free_memory(device), LEAST_MEMORY, GOOD_MEMORY, remedy)


def shared_memory() -> Finding:
    """What is left of /dev/shm, which several GPUs need (NCCL's guide, "Shared memory")."""
    if sys.platform != "linux":
        return not_checked(f"no /dev/shm on {sys.platform}")
    several = torch.cuda.is_available() and torch.cuda.device_count() > 1
    least, user = SHARED_BY_GPUS if several else SHARED_BY_PROCESSES
    wanted = f"{least} MiB in /dev/shm, for {user}"
    if lack := shared_memory_lack(least * MIB):
        remedy = "in a container: docker run --shm-size 1g; else remove what fills it"
        return warning(lack, remedy, wanted)
    return ok(f"{free_shared_memory() / MIB:,.0f} MiB free", wanted)


# The shard set


def store(url: str, access: Access) -> Finding:
    """How soon the store of a set gives its manifest."""
    place = Store(Address.parse(url, access.endpoint), patience=STORE_PATIENCE)
    began = time.perf_counter()
    place.read(MANIFEST, MAX_MANIFEST_BYTES)
    return ok(f"the manifest came after {1e3 * (time.perf_counter() - began):,.0f} ms")


def shard_cache(access: Access) -> Finding:
    """What the shard cache holds, and what it may."""
    cache = ShardCache(access.folder, access.cache_size)
    holds, may = (f"{size / 1e6:,.0f} MB" for size in (cache.held(), cache.limit))
    return ok(f"{access.folder}: holds {holds}, and may hold {may}")


def shard_set(name: str, access: Access | None = None) -> Finding:
    """Whether the set opens, and its recipe."""
    shards = open_set(name, access)
    manifest, note = shards.manifest, shards.files.note
    shard_count = len(manifest.shards)
    size = f"{manifest.samples:,} images in {shard_count:,} shard{'s' * (shard_count > 1)}"
    found = f"{size}, {manifest.recipe.describe()}"
    if note:
        return warning(f"{found}; {note}", "see whether the store can be reached from here")
    return ok(found)


def one_batch(name: str, device: torch.device, access: Access | None = None) -> Iterator[Finding]:
    """Whether a batch of the set comes out, and of which loader."""
    from pipeline.loading.loader import Loader  # it needs decoders, whose lack is a finding

    try:
        shards = open_set(name, access)
    except UserError:
        yield not_checked("the set does not open")
        return
    recipe = shards.manifest.recipe
    crop = recipe.crop if isinstance(recipe.crop, int) else 64
    size = min(64, *sides(recipe.size or 64), crop)
    options = LoaderOptions(
        min(64, len(shards)), size, device=device, dtype=torch.uint8, data_timeout=BATCH_TIMEOUT
    )
    with closing(Loader(shards, options)) as loader:
        began = time.perf_counter()
        batch = next(loader)
        seconds = time.perf_counter() - began
    yield ok(loader.description, name="loader")
    yield ok(f"{'×'.join(map(str, batch.shape))} after {seconds:.1f} s")
