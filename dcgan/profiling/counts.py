"""What a step is made of, counted: calls, multiplications; and how fast the device multiplies."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from dcgan.profiling.measuring import synchronise
from dcgan.step.precision import set_matrix_format

SIDES = {"cuda": 8192}
"""Of the square matrices whose product is timed, by type of device: large enough to fill it."""

SIDE = 2048
"""On any other type."""

TRIES = 3
"""Of which the fastest counts."""

Act = Callable[[], object]
"""A step, or anything else that can be done again and again."""


class _Calls(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts what reaches the device's kernels by way of ATen: views too, they cost the host."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.count: int = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self.count += 1
        return func(*args, **(kwargs or {}))


def count_calls(step: Act) -> int:
    """Count the ATen calls of one step, which is done."""
    calls = _Calls()
    with calls:
        step()
    return calls.count


def count_flops(step: Act) -> int:
    """Count the floating-point operations of one step, which is done.

    torch's counter takes convolutions and matrix products, a multiply-add as two, products with
    padding included. It sees neither compiled code nor a graph's replay.
    """
    counter = FlopCounterMode(display=False)
    with counter:
        step()
    return counter.get_total_flops()


def matrix_rate(precision: str, device: torch.device) -> float:
    """Time a large matrix product.

    Args:
        precision: fp32, tf32 or bf16.
        device: to multiply on.

    Returns:
        Floating-point operations a second, at best.
    """
    set_matrix_format(precision, device)
    side = SIDES.get(device.type, SIDE)
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    left, right = torch.randn(2, side, side, device=device).to(dtype)
    product = left @ right  # the first makes room, and picks a kernel
    seconds = []
    for _ in range(TRIES):
        synchronise(device)
        began = time.perf_counter()
        torch.mm(left, right, out=product)
        synchronise(device)
        seconds.append(time.perf_counter() - began)
    return float(2 * side**3 / min(seconds))
