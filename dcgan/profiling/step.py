"""`dcgan-profile step`: the tutorial's step and ours, eager, compiled and captured, on noise."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import cycle
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from dcgan.cli import tell_progress
from dcgan.options import MeasuringStep, TrainConfig
from dcgan.profiling import tuning as tuning_tables
from dcgan.profiling.measuring import (
    CpuClock,
    Spread,
    figures,
    repeat,
    spreads,
    synchronise,
    take_turns,
)
from dcgan.profiling.report import Bars, Report, cells, make_table, publish, times
from dcgan.profiling.tutorial_step import (
    tutorial_discriminator,
    tutorial_generator,
    tutorial_step,
)
from dcgan.rundir.environment import pick_device
from dcgan.step.precision import AMPERE, choose_kernels, choose_precision, set_matrix_format
from dcgan.step.statistics import StepRows
from dcgan.step.train_step import WholeStep, keep_compiled_code
from dcgan.step.tuner import Found
from dcgan.step.tuning import UNTUNED, Tuning
from dcgan.training.build import build_nets, build_step
from dcgan.training.tuned import choose_tuning, measure_step, stored_or_measured
from pipeline.errors import first_line
from pipeline.images.pixels import to_signed
from pipeline.images.size import shown_size
from pipeline.loading.options import LoaderOptions
from pipeline.loading.synthetic import BATCHES, SyntheticLoader
from pipeline.machine import MIB, limit_torch_threads

LEAST_STEPS = 3
"""In a turn."""

ROWS = 2**16
"""Rows of statistics, one a step: the most steps that a turn may have."""

LAUNCHED = 20
"""Steps by which the host's own time for one is taken on CUDA, whose queue holds some hundred."""

LR = 1e-12
"""The nets all but stand still, so that every step computes on numbers like the first one's. With a
real rate D soon tells noise from G's images, and how far it has come depends on how many steps an
entrant could do. Not 0: the arithmetic is to be Adam's, and its products normal numbers.
"""

TUTORIAL = "tutorial"

MODES: dict[str, tuple[str, Tuning | None]] = {
    "eager fp32": ("eager", None),
    "eager auto": ("eager", None),
    "compiled": ("compiled", UNTUNED),
    "one graph": ("compiled", Tuning(one_graph=True)),
    "graph": ("graph", None),
    "graph untuned": ("graph", UNTUNED),
}
"""What takes part beside the tutorial's step: the mode of `WholeStep`, and its tuning; None for the
one that `dcgan-train` takes here."""

SIDES = {"cuda": 8192}
"""Sides of the square matrices whose product is timed, by type of device: they fill it."""

SIDE = 2048
"""Their side on any other type."""

TRIES = 3
"""Products that are timed; the fastest gives the rate."""

Act: TypeAlias = Callable[[], object]
"""A step, or anything else that can be done again and again."""


FACTS = ("precision", "ready_s", "peak_bytes", "calls")
"""Fields of an `Entrant` that the report holds."""


class UnavailableError(Exception):
    """Why a mode cannot be had."""


@dataclass(frozen=True)
class Entrant:
    """A step that takes part, ready to run."""

    step: Act
    begin: Act
    """Done before each turn, untimed."""
    precision: str
    """fp32, tf32 or bf16: what its convolutions multiply."""
    ready_s: float
    """Wall seconds from nothing to the end of the first step: compiling, capturing."""
    peak_bytes: int | None
    """Most that the device held for it until the end of the second step; CUDA only."""
    calls: int | None
    """ATen calls of one step; None for compiled code, whose kernels are not ATen's."""


@dataclass(frozen=True)
class Turn:
    """What one turn showed."""

    steps: int
    step_ms: float
    cpu_ms: float
    """CPU milliseconds for each step, all threads together."""


def profile(options: MeasuringStep) -> None:
    """Measure every step that can be had here, in turn."""
    limit_torch_threads()
    device = pick_device(options.device)
    found, failure = tune(options, device)
    entrants, left_out = make_entrants(options, device)
    left_out += failure
    flops = {
        whose: count_flops(entrants[name].step) / options.batch_size
        for whose, name in (("tutorial", TUTORIAL), ("ours", "eager auto"))
    }
    turns, rates = _measure(entrants, options, device)
    peaks = {precision: max(taken) for precision, taken in rates.items()}
    ms, cpu = figures(turns, "step_ms"), figures(turns, "cpu_ms")
    faster = {name: Spread.of(ms[TUTORIAL] / each) for name, each in ms.items()}
    less_cpu = {name: Spread.of(cpu[TUTORIAL] / each) for name, each in cpu.items()}
    time_rows, cost_rows = [], []
    for name, each in entrants.items():
        step_ms = Spread.of(ms[name])
        form = ",.0f" if step_ms.median >= 1000 else ",.3g" if step_ms.median < 100 else ",.1f"
        time_rows.append(
            {
                "step": name,
                "precision": each.precision,
                **cells("ms/step", step_ms, form),
                "img/s": f"{1e3 * options.batch_size / step_ms.median:,.0f}",
                "CPU ms/step": f"{np.median(cpu[name]):{form}}",
                f"× {TUTORIAL}, wall": times(faster[name]),
                f"× {TUTORIAL}, CPU": times(less_cpu[name]),
            }
        )
        work = flops["tutorial" if name == TUTORIAL else "ours"] * options.batch_size
        rate = 1e3 * work / step_ms.median
        cost_rows.append({"step": name, **_cost_cells(each, rate, peaks[each.precision])})
    tables = [make_table(time_rows), make_table(cost_rows)]
    conclusions = [conclude(faster, less_cpu)]
    if found is not None:
        tables += tuning_tables.tabulate(found)
        conclusions.append(tuning_tables.conclude(found, device))
    report = Report(
        "step",
        device,
        _facts(options, flops, peaks, device),
        tables,
        [*conclusions, *left_out],
        [Bars("A step", "ms", spreads(ms)), Bars("Its CPU time", "ms", spreads(cpu))],
        {
            "flops_per_image": flops,
            "matrix_flop_per_s": rates,
            "left_out": left_out,
            "entrants": {
                name: {field: getattr(each, field) for field in FACTS}
                for name, each in entrants.items()
            },
            "turns": turns,
            "wall_ratios": faster,
            "cpu_ratios": less_cpu,
            "tuning": found and asdict(found) | {"tuning": found.tuning.model_dump()},
        },
    )
    publish(report, options)


def _cost_cells(entrant: Entrant, flop_per_s: float, peak: float) -> dict[str, str]:
    calls, held = entrant.calls, entrant.peak_bytes
    form = ",.3g" if flop_per_s < 1e12 else ",.0f"
    return {
        "GFLOP/s": f"{flop_per_s / 1e9:{form}}",
        "of the peak": f"{flop_per_s / peak:.1%}",
        "ATen calls/step": "–" if calls is None else f"{calls:,}",
        "ready after": f"{entrant.ready_s:.1f} s",
        "peak memory": "–" if held is None else f"{held / MIB:,.0f} MiB",
    }


def _facts(
    options: MeasuringStep,
    flops: Mapping[str, float],
    peaks: Mapping[str, float],
    device: torch.device,
) -> dict[str, str]:
    o, side = options, SIDES.get(device.type, SIDE)
    best = ", ".join(f"{name} {rate / 1e9:,.0f}" for name, rate in peaks.items())
    return {
        "nets": f"nz {o.nz}, ngf {o.ngf}, ndf {o.ndf}",
        "batches": f"of {o.batch_size}, {shown_size(o.image_size)} pixels, {o.channels} channels,"
        " of noise that lies ready",
        "rounds": f"{o.rounds} each, in turn, of at least {o.seconds:g} s and {LEAST_STEPS} steps",
        "work": f"{flops['tutorial'] / 1e9:.4g} GFLOP an image in the tutorial's step,"
        f" {flops['ours'] / 1e9:.4g} in ours",
        "peak": f"{best} GFLOP/s: the fastest product of two {side}×{side} matrices",
    }


def tune(options: MeasuringStep, device: torch.device) -> tuple[Found | None, list[str]]:
    """Time forms and levers, if that is asked for; on CUDA, at least read what is stored.

    Returns:
        What was found, if anything, and a line if that failed.
    """
    cuda = device.type == "cuda"
    if not (cuda or options.tune):
        return None, []
    if cuda:
        keep_compiled_code()
    config = _config(options).replace(precision=choose_precision("auto", device).name)
    set_matrix_format(config.precision, device)
    update = build_step(config, *build_nets(config, device), StepRows(1, device)).update
    try:
        if cuda:
            return stored_or_measured(config, update, tell_progress, options.tune), []
        tell_progress("timing the forms of the layers")
        return measure_step(config, update, options.rounds), []
    except Exception as error:  # drivers and compilers raise anything
        return None, [f"the tuner's tables: the timing failed: {first_line(error)}."]


def _config(options: MeasuringStep) -> TrainConfig:
    same = {"batch_size", "image_size", "channels", "nz", "ngf", "ndf"}
    return TrainConfig(shards="synthetic", lr=LR, **options.model_dump(include=same))


# The entrants


def make_entrants(
    options: MeasuringStep, device: torch.device
) -> tuple[dict[str, Entrant], list[str]]:
    """All that can be had here, ready, by name; and a line about each that cannot."""
    config = _config(options)
    cuda = device.type == "cuda"
    if options.compiled or cuda:
        keep_compiled_code()  # before the first optimiser, which is the tutorial's
    torch.optim.Adam([torch.zeros(1)])  # loads Dynamo: seconds that are no entrant's
    pixels = make_pixels(config, device)
    # The default format of torch's convolutions, which the tutorial leaves as it is
    ampere = cuda and torch.cuda.get_device_capability(device) >= AMPERE
    default = "tf32" if ampere else "fp32"
    build = partial(build_tutorial, config, pixels, device)
    entrants = {TUTORIAL: _enter(TUTORIAL, default, build, device)}
    left_out = []
    for name, (mode, tuning) in MODES.items():
        if mode == "graph" and not cuda:
            left_out.append(f"{name}: not available here: it takes CUDA.")
        elif mode == "compiled" and not (cuda or options.compiled):
            left_out.append(f"{name}: left out; --compiled includes it, for a minute or two.")
        else:
            asked = "fp32" if name == "eager fp32" else "auto"
            precision = choose_precision(asked, device).name
            resolved = config.replace(precision=precision)
            build = partial(build_ours, resolved, mode, pixels, device, tuning)
            try:
                entrants[name] = _enter(name, precision, build, device)
            except UnavailableError as reason:
                left_out.append(f"{name}: not available here: {reason}.")
    return entrants, left_out


def _enter(
    name: str, precision: str, build: Callable[[], tuple[Act, Act]], device: torch.device
) -> Entrant:
    """Make a step and do it twice: after the first all is compiled, after both all is allocated.

    Args:
        name: of the entrant.
        precision: its own.
        build: makes what is done before a turn, and the step itself.
        device: where it runs.
    """
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
    # Dynamo refuses to be watched; of a replay there is little to see
    compiled = name in MODES and MODES[name][0] == "compiled"
    calls = None if compiled else count_calls(step)
    return Entrant(step, begin, precision, ready_s, peak, calls)


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

    def begin() -> None:
        # Torch's default: the tutorial does not turn cuDNN's trials on
        torch.backends.cudnn.benchmark = False

    return begin, lambda: step(next(images))


class Prepared(NamedTuple):
    """Our step, ready to run."""

    step: WholeStep
    taken: str
    """The mode: another than was asked for, if that failed."""
    tuning: Tuning
    log: list[str]
    """What failed, among other things."""


def prepare(
    config: TrainConfig, mode: str, device: torch.device, tuning: Tuning | None = None
) -> Prepared:
    """Make our step ready; with `tuning`, or if it is None, as `dcgan-train` tunes it.

    Args:
        config: its options, with the precision resolved.
        mode: eager, compiled or graph.
        device: where it runs.
        tuning: of the step.
    """
    step = build_step(config, *build_nets(config, device), StepRows(ROWS, device))
    if tuning is None:
        tuning, reason = choose_tuning(config, step.update, mode, tell_progress)
        tell_progress(f"tuning: {tuning.describe()}; {reason}")
    log: list[str] = []
    taken = step.prepare(mode, log.append, tuning=tuning)
    return Prepared(step, taken, tuning, log)


def build_ours(
    config: TrainConfig,
    mode: str,
    pixels: Sequence[torch.Tensor],
    device: torch.device,
    tuning: Tuning | None = None,
) -> tuple[Act, Act]:
    """Our step in a mode, likewise; the arguments are those of `prepare`.

    Raises:
        UnavailableError: the mode cannot be had.
    """
    step, taken, tuning, log = prepare(config, mode, device, tuning)
    if (taken, step.is_one_graph) != (mode, tuning.one_graph):
        raise UnavailableError("; ".join(log))
    batches = cycle(pixels)

    def begin() -> None:
        step.rows.place.zero_()
        choose_kernels()

    return begin, lambda: step(next(batches))


def make_pixels(config: TrainConfig, device: torch.device) -> list[torch.Tensor]:
    """Some batches, (B, H, W, C) uint8 on the device."""
    sizes = config.batch_size, config.image_size, config.channels
    options = LoaderOptions(*sizes, device=device, seed=config.seed, dtype=torch.uint8)
    noise = SyntheticLoader(options)
    return [next(noise) for _ in range(BATCHES)]


# What a step is made of, counted; and how fast the device multiplies


class _Calls(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts what reaches the device's kernels by way of ATen: views too, they cost the host."""

    count = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self.count += 1
        return func(*args, **(kwargs or {}))


def count_calls(step: Act) -> int:
    """Count the ATen calls of one step, which is done."""
    calls = _Calls()  # type: ignore[no-untyped-call]
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
    multiply = partial(torch.mm, left, right, out=product)
    return 2 * side**3 / min(repeat(multiply, 1, device) for _ in range(TRIES))


# The turns


def _measure(
    entrants: Mapping[str, Entrant], options: MeasuringStep, device: torch.device
) -> tuple[dict[str, list[Turn]], dict[str, list[float]]]:
    """Each entrant's turns, and each precision's matrix rate in each round, in FLOP/s."""
    steps = {name: _steps_of(each, options.seconds, device) for name, each in entrants.items()}
    clock = CpuClock()
    turns: dict[str, Callable[[], Any]] = {
        name: partial(take_turn, each, steps[name], clock, device)
        for name, each in entrants.items()
    }
    precisions = dict.fromkeys(each.precision for each in entrants.values())
    turns |= {each: partial(matrix_rate, each, device) for each in precisions}
    taken = take_turns(turns, options.rounds)
    rates = {each: taken.pop(each) for each in precisions}
    return taken, rates


def _steps_of(entrant: Entrant, seconds: float, device: torch.device) -> int:
    """As many steps as fill a turn."""
    _get_ready(entrant, device)
    wanted = math.ceil(2 * seconds / repeat(entrant.step, 2, device))
    return min(max(LEAST_STEPS, wanted), ROWS)


def take_turn(entrant: Entrant, steps: int, clock: CpuClock, device: torch.device) -> Turn:
    """Time some steps; all must be quiet before, and is again afterwards."""
    _get_ready(entrant, device)
    clock.wait_until_quiet()
    used = clock.read()
    seconds = repeat(entrant.step, steps, device)
    clock.wait_until_quiet()
    cpu = (clock.read() - used) / steps
    if device.type == "cuda":
        cpu = launch_seconds(entrant, clock, device)
    return Turn(steps, 1e3 * seconds / steps, 1e3 * cpu)


def launch_seconds(entrant: Entrant, clock: CpuClock, device: torch.device) -> float:
    """CPU seconds that the host takes for a step on CUDA, without those that it spins in waiting.

    It waits at the end, and wherever the queue of launches is full: hence a few steps only.
    """
    entrant.begin()
    synchronise(device)
    used = clock.read()
    for _ in range(LAUNCHED):
        entrant.step()
    used = clock.read() - used
    synchronise(device)
    return used / LAUNCHED


def _get_ready(entrant: Entrant, device: torch.device) -> None:
    set_matrix_format(entrant.precision, device)
    entrant.begin()
    synchronise(device)


# The conclusion


def conclude(faster: Mapping[str, Spread], less_cpu: Mapping[str, Spread]) -> str:
    """Which step is the fastest.

    Args:
        faster: the tutorial's time, times each step's, by name.
        less_cpu: the same of the CPU time.
    """
    best = max(faster, key=lambda name: faster[name].median)
    if best == TUTORIAL:
        return "None is faster than the tutorial's step here."
    return (
        f"{best} is the fastest: {times(faster[best])} the tutorial's rate, with"
        f" {times(less_cpu[best])} as many images for a second of CPU time."
    )
