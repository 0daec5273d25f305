"""Number formats and kernels: what `--precision` means on each kind of hardware."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch

from pipeline.errors import UserError
from pipeline.machine import cpu_info

BF16_FLAGS = {"avx512_bf16", "amx_bf16"}
"""Linux's names of the CPU instructions that multiply bfloat16. Without them, bf16 is emulated."""

AMPERE = (8, 0)
"""CUDA compute capability from which on the matrix units take bfloat16 and TensorFloat-32
(docs.nvidia.com/cuda/cuda-c-programming-guide, table of features by compute capability)."""


class Choice(NamedTuple):
    """A choice and its reason."""

    name: str
    reason: str


def choose_precision(asked: str, device: torch.device) -> Choice:
    """Resolve `--precision` to fp32, tf32 or bf16.

    Raises:
        UserError: the device has no tf32.
    """
    if asked == "tf32" and not _on_ampere(device):
        raise UserError(
            "--precision tf32",
            f"the device {_describe(device)}",
            "a CUDA device of compute capability 8.0 or later",
            "leave --precision out",
        )
    if asked != "auto":
        return Choice(asked, "as asked for")
    if _multiplies_bf16(device):
        return Choice("bf16", f"{_describe(device)} multiplies it in hardware")
    return Choice("fp32", f"{_describe(device)} has no hardware for bf16")


def set_matrix_format(precision: str, device: torch.device) -> None:
    """Set how torch multiplies float32 on CUDA, where convolutions use TF32 by default.

    See docs.pytorch.org/docs/stable/notes/cuda.html, "TensorFloat-32 (TF32) on Ampere (and later)".
    """
    if device.type == "cuda":
        for backend in _matrix_backends():
            backend.fp32_precision = "tf32" if precision == "tf32" else "ieee"


def choose_kernels() -> None:
    """Let cuDNN time its kernels on each new shape, unless every run must use the same ones.

    The captured step of the default nets took 2.36 ms without trials and 2.19 ms with them, on an
    H100 in bf16 (docs.pytorch.org/docs/stable/backends.html, `torch.backends.cudnn.benchmark`).
    """
    torch.backends.cudnn.benchmark = not torch.are_deterministic_algorithms_enabled()


@contextmanager
def same_in_every_process(device: torch.device) -> Iterator[None]:
    """Compute in full float32, with kernels that do not depend on trials or on training's settings.

    Thus training, `dcgan-sample` and `dcgan-evaluate` draw the same images.
    """
    if device.type != "cuda":
        yield
        return
    cudnn, backends = torch.backends.cudnn, _matrix_backends()
    trials, fixed = cudnn.benchmark, cudnn.deterministic
    forms = [backend.fp32_precision for backend in backends]
    # Otherwise a transposed convolution may add in any order
    cudnn.benchmark, cudnn.deterministic = False, True
    set_matrix_format("fp32", device)
    try:
        yield
    finally:
        cudnn.benchmark, cudnn.deterministic = trials, fixed
        for backend, form in zip(backends, forms, strict=True):
            backend.fp32_precision = form


def _matrix_backends() -> tuple[Any, Any]:
    """Return the backends of matrix products and of convolutions."""
    return torch.backends.cuda.matmul, torch.backends.cudnn.conv  # type: ignore[attr-defined]


def _multiplies_bf16(device: torch.device) -> bool:
    if device.type == "cpu":
        return bool(BF16_FLAGS & cpu_flags())
    return _on_ampere(device)


def _on_ampere(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= AMPERE


def _describe(device: torch.device) -> str:
    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        return f"{device} (compute capability {major}.{minor})"
    if device.type == "cpu":
        found = ", ".join(sorted(BF16_FLAGS & cpu_flags())) or "neither AVX512-BF16 nor AMX"
        return f"cpu ({found})"
    return str(device)


def cpu_flags() -> set[str]:
    """Return the CPU's features as Linux lists them; an empty set if there is no such list."""
    return set(cpu_info("flags").split())
