"""`dcgan-profile step`: the tutorial's step and ours, eager, compiled and captured, on noise."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from dcgan.options import MeasuringStep
from dcgan.profiling.bench import machine, progress
from dcgan.profiling.counts import SIDE, SIDES, count_flops, matrix_rate
from dcgan.profiling.entrants import ROWS, TUTORIAL, Entrant, make_entrants
from dcgan.profiling.measuring import CpuClock, Spread, ratios, synchronise
from dcgan.profiling.report import Bars, Report, Table, span, times
from dcgan.rundir.environment import describe_environment, pick_device
from dcgan.step.precision import set_matrix_format
from pipeline.machine import limit_torch_threads

LEAST_STEPS = 3
"""In a turn."""

LAUNCHED = 20
"""Steps by which the host's own time for one is taken on CUDA, whose queue holds some hundred."""

MIB = 2**20


@dataclass(frozen=True)
class Turn:
    """What one turn showed."""

    steps: int
    step_ms: float
    cpu_ms: float
    """CPU milliseconds for each step, all threads together."""


Turns = Mapping[str, Sequence[Turn]]
"""By the name of the entrant."""


def profile(options: MeasuringStep) -> Report:
    """Measure every step that can be had here, in turn."""
    limit_torch_threads()
    device = pick_device(options.device)
    entrants, left_out = make_entrants(options, device)
    by_name = {each.name: each for each in entrants}
    counted = {name: by_name[name] for name in (TUTORIAL, "eager auto")}
    flops = {name: count_flops(each.step) / options.batch_size for name, each in counted.items()}
    turns, rates = _measure(entrants, options, device)
    work = Work(flops[TUTORIAL], flops["eager auto"], {k: max(v) for k, v in rates.items()})
    environment = describe_environment(device)
    return Report(
        "step",
        machine(environment, ("torch",)) | _facts(options, work, device),
        [_times(entrants, turns, options.batch_size), _costs(entrants, turns, work, options)],
        [*_conclusions(turns), *left_out],
        [
            Bars("A step", "ms", {name: _ms(taken) for name, taken in turns.items()}),
            Bars("Its CPU time", "ms", {name: _cpu_ms(taken) for name, taken in turns.items()}),
        ],
        {
            "options": options.to_json(),
            "environment": environment | {"torch_threads": torch.get_num_threads()},
            "flops_per_image": {"tutorial": work.tutorial, "ours": work.ours},
            "matrix_flop_per_s": rates,
            "left_out": left_out,
            "entrants": {each.name: _entrant_as_json(each) for each in entrants},
            "turns": {name: [asdict(turn) for turn in taken] for name, taken in turns.items()},
            "wall_ratios": {name: asdict(_faster(turns, name)) for name in turns},
            "cpu_ratios": {name: asdict(_thriftier(turns, name)) for name in turns},
        },
    )


# The measuring


def _measure(
    entrants: Sequence[Entrant], options: MeasuringStep, device: torch.device
) -> tuple[dict[str, list[Turn]], dict[str, list[float]]]:
    """Everybody's turns, and the matrix rate of each precision in each round, FLOP/s."""
    steps = {each.name: _steps_of(each, options.seconds, device) for each in entrants}
    clock = CpuClock()
    turns: dict[str, list[Turn]] = {each.name: [] for each in entrants}
    rates: dict[str, list[float]] = {each.precision: [] for each in entrants}
    with progress() as told:
        for number in range(options.rounds):
            for place, each in enumerate(entrants, 1):
                turns[each.name].append(_turn(each, steps[each.name], clock, device))
                told(number * len(entrants) + place, options.rounds * len(entrants))
            for precision, taken in rates.items():
                taken.append(matrix_rate(precision, device))
    return turns, rates


def _turn(entrant: Entrant, steps: int, clock: CpuClock, device: torch.device) -> Turn:
    set_matrix_format(entrant.precision, device)
    entrant.begin()
    synchronise(device)
    clock.wait_until_quiet()
    used, began = clock.read(), time.perf_counter()
    for _ in range(steps):
        entrant.step()
    synchronise(device)
    seconds = time.perf_counter() - began
    clock.wait_until_quiet()
    if device.type == "cuda":
        return Turn(steps, 1e3 * seconds / steps, 1e3 * _launching(entrant, clock, device))
    return Turn(steps, 1e3 * seconds / steps, 1e3 * (clock.read() - used) / steps)


def _launching(entrant: Entrant, clock: CpuClock, device: torch.device) -> float:
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


def _steps_of(entrant: Entrant, seconds: float, device: torch.device) -> int:
    """As many steps as fill a turn."""
    set_matrix_format(entrant.precision, device)
    entrant.begin()
    synchronise(device)
    began = time.perf_counter()
    for _ in range(2):
        entrant.step()
    synchronise(device)
    wanted = math.ceil(2 * seconds / (time.perf_counter() - began))
    return min(max(LEAST_STEPS, wanted), ROWS)


# The telling


@dataclass(frozen=True)
class Work:
    """Floating-point operations: those of an image, and how many a second the device can do."""

    tutorial: float
    ours: float
    peaks: Mapping[str, float]
    """FLOP/s by precision."""

    def per_image(self, name: str) -> float:
        return self.tutorial if name == TUTORIAL else self.ours


def _facts(options: MeasuringStep, work: Work, device: torch.device) -> dict[str, str]:
    o, side = options, SIDES.get(device.type, SIDE)
    peaks = ", ".join(f"{name} {rate / 1e9:,.0f}" for name, rate in work.peaks.items())
    return {
        "nets": f"nz {o.nz}, ngf {o.ngf}, ndf {o.ndf}",
        "batches": f"of {o.batch_size}, {o.image_size}×{o.image_size} pixels, {o.channels}"
        " channels, of noise that lies ready",
        "rounds": f"{o.rounds} each, in turn, of at least {o.seconds:g} s and {LEAST_STEPS} steps",
        "work": f"{work.tutorial / 1e9:.4g} GFLOP an image in the tutorial's step,"
        f" {work.ours / 1e9:.4g} in ours",
        "peak": f"{peaks} GFLOP/s: the fastest product of two {side}×{side} matrices",
    }


def _times(entrants: Sequence[Entrant], turns: Turns, batch_size: int) -> Table:
    columns = ("step", "precision", "ms/step", "lowest – highest", "img/s", "CPU ms/step")
    table = Table("", (*columns, "× tutorial, wall", "× tutorial, CPU"))
    for each in entrants:
        ms, cpu = _ms(turns[each.name]), _cpu_ms(turns[each.name])
        form = ",.0f" if ms.median >= 1000 else ",.3g" if ms.median < 100 else ",.1f"
        table.rows.append(
            (
                each.name,
                each.precision,
                f"{ms.median:{form}}",
                span(ms, form),
                f"{1e3 * batch_size / ms.median:,.0f}",
                f"{cpu.median:{form}}",
                times(_faster(turns, each.name)),
                times(_thriftier(turns, each.name)),
            )
        )
    return table


def _costs(entrants: Sequence[Entrant], turns: Turns, work: Work, options: MeasuringStep) -> Table:
    columns = ("step", "GFLOP/s", "of the peak", "ATen calls/step", "ready after", "peak memory")
    table = Table("", columns)
    for each in entrants:
        per_step = work.per_image(each.name) * options.batch_size
        rate = 1e3 * per_step / _ms(turns[each.name]).median
        peak = each.peak_bytes
        table.rows.append(
            (
                each.name,
                f"{rate / 1e9:,.3g}" if rate < 1e12 else f"{rate / 1e9:,.0f}",
                f"{rate / work.peaks[each.precision]:.1%}",
                "–" if each.calls is None else f"{each.calls:,}",
                f"{each.ready_s:.1f} s",
                "–" if peak is None else f"{peak / MIB:,.0f} MiB",
            )
        )
    return table


def _conclusions(turns: Turns) -> Iterator[str]:
    best = min(turns, key=lambda name: _ms(turns[name]).median)
    if best == TUTORIAL:
        yield "None is faster than the tutorial's step here."
    else:
        yield (
            f"{best} is the fastest: {times(_faster(turns, best))} the tutorial's rate, with"
            f" {times(_thriftier(turns, best))} as many images for a second of CPU time."
        )


def _entrant_as_json(entrant: Entrant) -> dict[str, Any]:
    names = ("precision", "ready_s", "peak_bytes", "calls")
    return {name: getattr(entrant, name) for name in names}


def _ms(turns: Sequence[Turn]) -> Spread:
    return Spread.of([turn.step_ms for turn in turns])


def _cpu_ms(turns: Sequence[Turn]) -> Spread:
    return Spread.of([turn.cpu_ms for turn in turns])


def _faster(turns: Turns, name: str) -> Spread:
    """The tutorial's time, times that of another."""
    return ratios(*([turn.step_ms for turn in turns[each]] for each in (TUTORIAL, name)))


def _thriftier(turns: Turns, name: str) -> Spread:
    """The tutorial's CPU time, times that of another."""
    return ratios(*([turn.cpu_ms for turn in turns[each]] for each in (TUTORIAL, name)))
