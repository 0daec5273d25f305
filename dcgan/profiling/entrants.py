"""The steps that `dcgan-profile step` measures, made ready and counted: the tutorial's and ours."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import cycle
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from dcgan.cli import tell_progress
from dcgan.options import MeasuringStep, TrainConfig
from dcgan.profiling.measuring import synchronise
from dcgan.profiling.tutorial_step import (
    tutorial_discriminator,
    tutorial_generator,
    tutorial_step,
)
from dcgan.step.precision import AMPERE, choose_kernels, choose_precision, set_matrix_format
from dcgan.step.statistics import StepRows
from dcgan.step.train_step import keep_compiled_code
from dcgan.training.build import build_nets, build_step
from pipeline.images.pixels import to_signed
from pipeline.loading.options import LoaderOptions
from pipeline.loading.synthetic import BATCHES, SyntheticLoader

ROWS = 2**16
"""Rows of statistics, one a step: the most steps that a turn may have."""

LR = 1e-12
"""The nets all but stand still, so that every step computes on numbers like the first one's. With a
real rate D soon tells noise from G's images, and how far it has come depends on how many steps an
entrant could do. Not 0: the arithmetic is to be Adam's, and its products normal numbers.
"""

TUTORIAL = "tutorial"

MODES = {"eager fp32": "eager", "eager auto": "eager", "compiled": "compiled", "graph": "graph"}
"""What takes part beside the tutorial's step, and in which mode of `WholeStep`."""


SIDES = {"cuda": 8192}
"""Sides of the square matrices whose product is timed, by type of device: they fill it."""

SIDE = 2048
"""Their side on any other type."""

TRIES = 3
"""Products that are timed; the fastest gives the rate."""

Act = Callable[[], object]
"""A step, or anything else that can be done again and again."""


class UnavailableError(Exception):
    """Why a mode cannot be had."""


@dataclass(frozen=True)
class Entrant:
    """A step that takes part, ready to run."""

    name: str
    precision: str
    """fp32, tf32 or bf16: what its convolutions multiply."""
    step: Act
    begin: Act
    """Done before each turn, untimed."""
    ready_s: float
    """Wall seconds from nothing to the end of the first step: compiling, capturing."""
    peak_bytes: int | None
    """Most that the device held for it until the end of the second step; CUDA only."""
    calls: int | None
    """ATen calls of one step; None for compiled code, whose kernels are not ATen's."""

    def to_json(self) -> dict[str, Any]:
        """What is known of it before its turns."""
        return {
            name: getattr(self, name) for name in ("precision", "ready_s", "peak_bytes", "calls")
        }


def make_entrants(options: MeasuringStep, device: torch.device) -> tuple[list[Entrant], list[str]]:
    """All that can be had here, ready; and a line about each that cannot."""
    config = TrainConfig(
        shards="synthetic",
        lr=LR,
        **{
            name: getattr(options, name)
            for name in ("batch_size", "image_size", "channels", "nz", "ngf", "ndf")
        },
    )
    cuda = device.type == "cuda"
    if options.compiled or cuda:
        keep_compiled_code()  # before the first optimiser, which is the tutorial's
    torch.optim.Adam([torch.zeros(1)])  # loads Dynamo: seconds that are no entrant's
    pixels = _pixels(config, device)
    build = partial(build_tutorial, config, pixels, device)
    entrants = [_enter(TUTORIAL, _torch_default(device), build, device)]
    left_out = []
    for name, mode in MODES.items():
        if mode == "graph" and not cuda:
            left_out.append(f"{name}: not available here: it takes CUDA.")
        elif mode == "compiled" and not (cuda or options.compiled):
            left_out.append(f"{name}: left out; --compiled includes it, and takes minutes.")
        else:
            asked = "fp32" if name == "eager fp32" else "auto"
            precision = choose_precision(asked, device).name
            build = partial(build_ours, config, precision, mode, pixels, device)
            try:
                entrants.append(_enter(name, precision, build, device))
            except UnavailableError as reason:
                left_out.append(f"{name}: not available here: {reason}.")
    return entrants, left_out


Build = Callable[[], tuple[Act, Act]]
"""Makes a step: what to do before a turn, and the step itself."""


def _enter(name: str, precision: str, build: Build, device: torch.device) -> Entrant:
    """Make a step and do it twice: after the first all is compiled, after both all is allocated."""
    tell_progress(f"preparing {name}")
    set_matrix_format(precision, device)
    cuda = device.type == "cuda"
    held = torch.cuda.memory_allocated(device) if cuda else 0
    if cuda:
        torch.cuda.reset_peak_memory_stats(device)
    began = time.perf_counter()
    begin, step = build()
    begin()
    step()
    synchronise(device)
    ready_s = time.perf_counter() - began
    step()
    peak = torch.cuda.max_memory_allocated(device) - held if cuda else None
    calls = None if name == "compiled" else count_calls(step)
    return Entrant(name, precision, step, begin, ready_s, peak, calls)


def build_tutorial(
    config: TrainConfig, pixels: Sequence[torch.Tensor], device: torch.device
) -> tuple[Act, Act]:
    """The tutorial's step on batches of these, in turn, and what to do before."""
    size, channels = config.image_size, config.channels
    nets = (
        tutorial_generator(size, config.nz, config.ngf, channels),
        tutorial_discriminator(size, config.ndf, channels),
    )
    generator, discriminator = build_nets(config, torch.device("cpu"))
    for net, ours in zip(nets, (generator.main, discriminator.main), strict=True):
        net.load_state_dict(ours.state_dict())  # equal nets do equal work
        net.to(device)
    step = tutorial_step(*nets, config.nz, device, config.lr)
    # As its loader delivers them, but on the device already: the copy is left out
    images = cycle([to_signed(batch).contiguous() for batch in pixels])
    return _try_no_kernels, lambda: step(next(images))


def build_ours(
    config: TrainConfig,
    precision: str,
    mode: str,
    pixels: Sequence[torch.Tensor],
    device: torch.device,
) -> tuple[Act, Act]:
    """Our step in a mode, likewise.

    Raises:
        UnavailableError: the mode cannot be had.
    """
    rows = StepRows(ROWS, device)
    config = config.replace(precision=precision)
    step = build_step(config, *build_nets(config, device), rows)
    log: list[str] = []
    if step.prepare(mode, log.append) != mode:
        raise UnavailableError("; ".join(log))
    batches = cycle(pixels)

    def begin() -> None:
        rows.place.zero_()
        choose_kernels()

    return begin, lambda: step(next(batches))


def _try_no_kernels() -> None:
    """Leave cuDNN's trials off, torch's default: the tutorial does not turn them on."""
    torch.backends.cudnn.benchmark = False


def _pixels(config: TrainConfig, device: torch.device) -> list[torch.Tensor]:
    """Some batches, (B, S, S, C) uint8 on the device."""
    sizes = config.batch_size, config.image_size, config.channels
    options = LoaderOptions(*sizes, device=device, seed=config.seed, dtype=torch.uint8)
    noise = SyntheticLoader(options)
    return [next(noise) for _ in range(BATCHES)]


def _torch_default(device: torch.device) -> str:
    """The default format of torch's convolutions, which the tutorial leaves as it is."""
    ampere = device.type == "cuda" and torch.cuda.get_device_capability(device) >= AMPERE
    return "tf32" if ampere else "fp32"


# What a step is made of, counted; and how fast the device multiplies


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
