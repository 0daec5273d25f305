"""`dcgan-profile step`: the tutorial's step and ours, eager, compiled and captured, on noise."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch

from dcgan.options import MeasuringStep
from dcgan.profiling.bench import machine
from dcgan.profiling.entrants import (
    ROWS,
    SIDE,
    SIDES,
    TUTORIAL,
    Entrant,
    count_flops,
    make_entrants,
    matrix_rate,
)
from dcgan.profiling.measuring import CpuClock, Spread, ratios, synchronise, take_turns
from dcgan.profiling.report import Bars, Report, Table, span, times
from dcgan.rundir.environment import describe_environment, pick_device
from dcgan.step.precision import set_matrix_format
from pipeline.machine import MIB, limit_torch_threads

LEAST_STEPS = 3
"""In a turn."""

LAUNCHED = 20
"""Steps by which the host's own time for one is taken on CUDA, whose queue holds some hundred."""


@dataclass(frozen=True)
class Turn:
    """What one turn showed."""

    steps: int
    step_ms: float
    cpu_ms: float
    """CPU milliseconds for each step, all threads together."""


@dataclass(frozen=True)
class Figures:
    """What an entrant's turns come to."""

    ms: Spread
    cpu_ms: Spread
    faster: Spread
    """The tutorial's time, times this one's."""
    less_cpu: Spread
    """The tutorial's CPU time, times this one's."""


def profile(options: MeasuringStep) -> Report:
    """Measure every step that can be had here, in turn."""
    limit_torch_threads()
    device = pick_device(options.device)
    entrants, left_out = make_entrants(options, device)
    by_name = {each.name: each for each in entrants}
    flops = {
        whose: count_flops(by_name[name].step) / options.batch_size
        for whose, name in (("tutorial", TUTORIAL), ("ours", "eager auto"))
    }
    turns, rates = _measure(entrants, options, device)
    peaks = {precision: max(taken) for precision, taken in rates.items()}
    figures = summarise(turns)
    environment = describe_environment(device)
    return Report(
        "step",
        machine(environment, ("torch",)) | _facts(options, flops, peaks, device),
        [
            _times(entrants, figures, options.batch_size),
            _costs(entrants, figures, flops, peaks, options.batch_size),
        ],
        [conclude(figures), *left_out],
        [
            Bars("A step", "ms", {name: each.ms for name, each in figures.items()}),
            Bars("Its CPU time", "ms", {name: each.cpu_ms for name, each in figures.items()}),
        ],
        {
            "options": options.to_json(),
            "environment": environment | {"torch_threads": torch.get_num_threads()},
            "flops_per_image": flops,
            "matrix_flop_per_s": rates,
            "left_out": left_out,
            "entrants": {each.name: each.to_json() for each in entrants},
            "turns": {name: [asdict(turn) for turn in taken] for name, taken in turns.items()},
            "wall_ratios": {name: asdict(each.faster) for name, each in figures.items()},
            "cpu_ratios": {name: asdict(each.less_cpu) for name, each in figures.items()},
        },
    )


# The measuring


def _measure(
    entrants: Sequence[Entrant], options: MeasuringStep, device: torch.device
) -> tuple[dict[str, list[Turn]], dict[str, list[float]]]:
    """Everybody's turns, and the matrix rate of each precision in each round, FLOP/s."""
    steps = {each.name: _steps_of(each, options.seconds, device) for each in entrants}
    clock = CpuClock()
    turns: dict[tuple[str, str], Callable[[], Any]] = {
        ("step", each.name): partial(take_turn, each, steps[each.name], clock, device)
        for each in entrants
    }
    precisions = list(dict.fromkeys(each.precision for each in entrants))
    turns |= {("rate", each): partial(matrix_rate, each, device) for each in precisions}
    taken = take_turns(turns, options.rounds)
    rates = {each: taken["rate", each] for each in precisions}
    return {each.name: taken["step", each.name] for each in entrants}, rates


def take_turn(entrant: Entrant, steps: int, clock: CpuClock, device: torch.device) -> Turn:
    """Time some steps; all must be quiet before, and is again afterwards."""
    _get_ready(entrant, device)
    clock.wait_until_quiet()
    used, began = clock.read(), time.perf_counter()
    for _ in range(steps):
        entrant.step()
    synchronise(device)
    seconds = time.perf_counter() - began
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


def _steps_of(entrant: Entrant, seconds: float, device: torch.device) -> int:
    """As many steps as fill a turn."""
    _get_ready(entrant, device)
    began = time.perf_counter()
    for _ in range(2):
        entrant.step()
    synchronise(device)
    wanted = math.ceil(2 * seconds / (time.perf_counter() - began))
    return min(max(LEAST_STEPS, wanted), ROWS)


def _get_ready(entrant: Entrant, device: torch.device) -> None:
    set_matrix_format(entrant.precision, device)
    entrant.begin()
    synchronise(device)


# The report


def summarise(turns: Mapping[str, Sequence[Turn]]) -> dict[str, Figures]:
    """The figures of each entrant, by name; ratios are taken within a round."""
    ms = {name: [turn.step_ms for turn in taken] for name, taken in turns.items()}
    cpu = {name: [turn.cpu_ms for turn in taken] for name, taken in turns.items()}
    return {
        name: Figures(
            Spread.of(ms[name]),
            Spread.of(cpu[name]),
            ratios(ms[TUTORIAL], ms[name]),
            ratios(cpu[TUTORIAL], cpu[name]),
        )
        for name in turns
    }


def conclude(figures: Mapping[str, Figures]) -> str:
    """Which step is the fastest."""
    best = min(figures, key=lambda name: figures[name].ms.median)
    if best == TUTORIAL:
        return "None is faster than the tutorial's step here."
    return (
        f"{best} is the fastest: {times(figures[best].faster)} the tutorial's rate, with"
        f" {times(figures[best].less_cpu)} as many images for a second of CPU time."
    )


def _facts(
    o: MeasuringStep, flops: Mapping[str, float], peaks: Mapping[str, float], device: torch.device
) -> dict[str, str]:
    side = SIDES.get(device.type, SIDE)
    peak = ", ".join(f"{name} {rate / 1e9:,.0f}" for name, rate in peaks.items())
    return {
        "nets": f"nz {o.nz}, ngf {o.ngf}, ndf {o.ndf}",
        "batches": f"of {o.batch_size}, {o.image_size}×{o.image_size} pixels, {o.channels}"
        " channels, of noise that lies ready",
        "rounds": f"{o.rounds} each, in turn, of at least {o.seconds:g} s and {LEAST_STEPS} steps",
        "work": f"{flops['tutorial'] / 1e9:.4g} GFLOP an image in the tutorial's step,"
        f" {flops['ours'] / 1e9:.4g} in ours",
        "peak": f"{peak} GFLOP/s: the fastest product of two {side}×{side} matrices",
    }


def _times(entrants: Sequence[Entrant], figures: Mapping[str, Figures], batch_size: int) -> Table:
    columns = ("step", "precision", "ms/step", "lowest – highest", "img/s", "CPU ms/step")
    table = Table("", (*columns, "× tutorial, wall", "× tutorial, CPU"))
    for each in entrants:
        found = figures[each.name]
        ms = found.ms
        form = ",.0f" if ms.median >= 1000 else ",.3g" if ms.median < 100 else ",.1f"
        table.rows.append(
            (
                each.name,
                each.precision,
                f"{ms.median:{form}}",
                span(ms, form),
                f"{1e3 * batch_size / ms.median:,.0f}",
                f"{found.cpu_ms.median:{form}}",
                times(found.faster),
                times(found.less_cpu),
            )
        )
    return table


def _costs(
    entrants: Sequence[Entrant],
    figures: Mapping[str, Figures],
    flops: Mapping[str, float],
    peaks: Mapping[str, float],
    batch_size: int,
) -> Table:
    columns = ("step", "GFLOP/s", "of the peak", "ATen calls/step", "ready after", "peak memory")
    table = Table("", columns)
    for each in entrants:
        work = flops["tutorial" if each.name == TUTORIAL else "ours"] * batch_size
        rate = 1e3 * work / figures[each.name].ms.median
        peak = each.peak_bytes
        table.rows.append(
            (
                each.name,
                f"{rate / 1e9:,.3g}" if rate < 1e12 else f"{rate / 1e9:,.0f}",
                f"{rate / peaks[each.precision]:.1%}",
                "–" if each.calls is None else f"{each.calls:,}",
                f"{each.ready_s:.1f} s",
                "–" if peak is None else f"{peak / MIB:,.0f} MiB",
            )
        )
    return table
