"""The steps that `dcgan-profile step` measures, made ready: the tutorial's and ours."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import cycle

import torch

from dcgan.options import MeasuringStep, TrainConfig
from dcgan.profiling.bench import say
from dcgan.profiling.counts import Act, count_calls
from dcgan.profiling.measuring import synchronise
from dcgan.profiling.tutorial_step import tutorial_nets, tutorial_step
from dcgan.step.precision import AMPERE, choose_kernels, choose_precision, set_matrix_format
from dcgan.step.statistics import StepRows
from dcgan.step.train_step import keep_compiled_code
from dcgan.training.build import build_nets, build_step
from pipeline.images.pixels import to_signed
from pipeline.loading.options import LoaderOptions
from pipeline.loading.synthetic import BATCHES, SyntheticLoader

ROWS = 2**16
"""Of statistics, for the steps of a turn; also the most steps of one."""

LR = 1e-12
"""The nets all but stand still, so that every step computes on numbers like the first one's. With a
real rate D soon tells noise from G's images, and how far it has come depends on how many steps an
entrant could do. Not 0: the arithmetic is to be Adam's, and its products normal numbers.
"""

TUTORIAL = "tutorial"

MODES = {"eager fp32": "eager", "eager auto": "eager", "compiled": "compiled", "graph": "graph"}
"""What takes part beside the tutorial's step, and in which mode of `WholeStep`."""


class UnavailableError(Exception):
    """A mode that cannot be had, and why."""


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
    if options.compiled or device.type == "cuda":
        keep_compiled_code()  # before the first optimiser, which is the tutorial's
    torch.optim.Adam([torch.zeros(1)])  # loads Dynamo: seconds that are no entrant's
    pixels = _pixels(config, device)
    entrants = [_enter(TUTORIAL, _torch_default(device), _tutorial(config, pixels, device), device)]
    left_out = []
    for name, mode in MODES.items():
        try:
            _require(mode, device, options.compiled)
            asked = "fp32" if name == "eager fp32" else "auto"
            precision = choose_precision(asked, device).name
            build = _ours(config, precision, mode, pixels, device)
            entrants.append(_enter(name, precision, build, device))
        except UnavailableError as reason:
            left_out.append(f"{name}: {reason}.")
    return entrants, left_out


def _require(mode: str, device: torch.device, compiled: bool) -> None:
    """Refuse what this device lacks, or what would take minutes unasked."""
    cuda = device.type == "cuda"
    if mode == "graph" and not cuda:
        raise UnavailableError("not available here: it takes CUDA")
    if mode == "compiled" and not (cuda or compiled):
        raise UnavailableError("left out; --compiled includes it, and takes minutes")


Build = Callable[[], tuple[Act, Act]]
"""Makes a step; what to do before a turn, and the step."""


def _enter(name: str, precision: str, build: Build, device: torch.device) -> Entrant:
    """Make a step and do it twice: after the first all is compiled, after both all is allocated."""
    say(f"preparing {name}")
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


def _tutorial(config: TrainConfig, pixels: Sequence[torch.Tensor], device: torch.device) -> Build:
    def build() -> tuple[Act, Act]:
        nets = tutorial_nets(config.image_size, config.nz, config.ngf, config.ndf, config.channels)
        generator, discriminator = build_nets(config, torch.device("cpu"))
        for net, ours in zip(nets, (generator.main, discriminator.main), strict=True):
            net.load_state_dict(ours.state_dict())  # equal nets do equal work
            net.to(device)
        step = tutorial_step(*nets, config.nz, device, config.lr)
        # Its loader delivers them so; that it would also copy them to the device is left out
        images = cycle([to_signed(batch).contiguous() for batch in pixels])
        return _try_no_kernels, lambda: step(next(images))

    return build


def _ours(
    config: TrainConfig,
    precision: str,
    mode: str,
    pixels: Sequence[torch.Tensor],
    device: torch.device,
) -> Build:
    def build() -> tuple[Act, Act]:
        rows = StepRows(ROWS, device)
        resolved = config.replace(precision=precision)
        step = build_step(resolved, *build_nets(resolved, device), rows)
        said: list[str] = []
        if step.prepare(mode, said.append) != mode:
            raise UnavailableError("not available here: " + "; ".join(said))
        batches = cycle(pixels)

        def begin() -> None:
            rows.place.zero_()
            choose_kernels()

        return begin, lambda: step(next(batches))

    return build


def _try_no_kernels() -> None:
    """As torch has it by itself: the tutorial says nothing of cuDNN's trials."""
    torch.backends.cudnn.benchmark = False


def _pixels(config: TrainConfig, device: torch.device) -> list[torch.Tensor]:
    """Some batches, (B, S, S, C) uint8 on the device."""
    sizes = config.batch_size, config.image_size, config.channels
    options = LoaderOptions(*sizes, device=device, seed=config.seed, dtype=torch.uint8)
    noise = SyntheticLoader(options)
    return [next(noise) for _ in range(BATCHES)]


def _torch_default(device: torch.device) -> str:
    """What torch's convolutions take unless told otherwise; the tutorial tells nothing."""
    ampere = device.type == "cuda" and torch.cuda.get_device_capability(device) >= AMPERE
    return "tf32" if ampere else "fp32"
