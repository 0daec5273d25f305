"""What `dcgan-doctor` asks the system; nothing here judges. Torch is loaded inside functions."""

from __future__ import annotations

import ctypes
import re
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import dcgan
from dcgan.cli import PACKAGE
from pipeline.errors import first_line

DALI = {"nvidia-dali-cuda110": 11, "nvidia-dali-cuda120": 12, "nvidia-dali-cuda130": 13}
"""DALI's wheels, and the major version of CUDA that each is made for."""

NVIDIA, DISPLAY = "0x10de", "0x03"
"""How the PCI bus names NVIDIA, and the class of devices that draw or compute."""

_BOUND = re.compile(r"^([\w.-]+)\s*>=\s*([\d.]+)")


def numbers(version: str) -> tuple[int, ...]:
    """A version's leading numbers, to compare: (2, 14, 1) of 2.14.1+cu130."""
    return tuple(int(part) for part in re.findall(r"\d+", version.partition("+")[0])[:3])


def why_no_torch() -> str | None:
    """What keeps torch from loading, or None."""
    try:
        import torch  # noqa: F401
    except Exception as error:  # a broken library shows as nearly anything
        return f"{type(error).__name__}: {first_line(error)}"
    return None


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


def installed(package: str) -> str | None:
    """A package's version, or None."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def dali_wheels() -> dict[str, str]:
    """The DALI wheels that are installed, with their versions."""
    return {wheel: version for wheel in DALI if (version := installed(wheel)) is not None}


def torch_cuda() -> str | None:
    """The CUDA that torch is built for, or None."""
    import torch

    return torch.version.cuda


def cuda_available() -> bool:
    """Whether torch sees a CUDA device."""
    import torch

    return torch.cuda.is_available()


def gpus() -> list[tuple[str, tuple[int, int]]]:
    """Name and compute capability of each device that torch sees."""
    import torch

    found = range(torch.cuda.device_count())
    return [
        (torch.cuda.get_device_name(place), torch.cuda.get_device_capability(place))
        for place in found
    ]


def architectures() -> list[tuple[int, int]]:
    """The compute capabilities that torch's kernels are built for: `sm_75` is (7, 5)."""
    import torch

    listed = (re.fullmatch(r"sm_(\d+)(\d)[a-z]?", name) for name in torch.cuda.get_arch_list())
    return [(int(match[1]), int(match[2])) for match in listed if match]


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
        told = subprocess.run(query, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    lines = told.stdout.split() if told.returncode == 0 else []
    return lines[0] if lines else None


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
