"""`dcgan-profile train`: the step with free data, the loader alone, and both together."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from itertools import cycle
from typing import Any, TypeAlias

import numpy as np
import torch

from dcgan.cli import tell_progress
from dcgan.options import MeasuringTraining, TrainConfig
from dcgan.profiling.bench import Bench
from dcgan.profiling.contenders import cached, ours
from dcgan.profiling.measuring import (
    Contender,
    CpuClock,
    Round,
    Spread,
    figures,
    repeat,
    spreads,
    synchronise,
    take_round,
    take_turns,
    warm_up,
)
from dcgan.profiling.report import Bars, Report, cells, make_table, publish, short, span
from dcgan.step.precision import choose_precision
from dcgan.step.statistics import StepRows
from dcgan.step.train_step import choose_step, keep_compiled_code
from dcgan.training.build import build_nets, build_step
from dcgan.training.clock import Clock
from dcgan.training.tuned import choose_tuning
from pipeline.loading.options import LoaderOptions
from pipeline.loading.synthetic import BATCHES, SyntheticLoader

LEAST_STEPS = 4
"""In a round."""

ROWS = 1
"""Rows of statistics: each step writes the same one."""

FREE, AS_IT_IS, CACHED = "free data", "the set as it is", "the cache"

Update: TypeAlias = Callable[[torch.Tensor], object]
"""One step of training on a batch of the loader's."""


@dataclass(frozen=True)
class Pace:
    """How fast a round of steps was."""

    step_ms: float
    img_per_s: float
    data_wait_pct: float
    """Share of the time that the step spent waiting for a batch."""


def profile(options: MeasuringTraining) -> None:
    """Measure the step on free data, each loader alone, and the step fed by each, in turn."""
    bench = Bench(options)
    same = {"batch_size", "image_size", "ngf", "ndf", "seed"}
    config = TrainConfig(shards="synthetic", **options.model_dump(include=same))
    update, how = training_step(config, bench.device)
    with ExitStack() as stack:
        pixels = replace(bench.conditions, dtype=torch.uint8)
        free = _free(pixels)
        loaders = [ours(AS_IT_IS, bench.shards, pixels), cached(CACHED, bench.shards, pixels)]
        for contender in (free, *loaders):
            stack.callback(contender.close)
        alone, together, steps = _measure(bench, free, loaders, update)
    ms, pace = figures(together, "step_ms"), figures(together, "img_per_s")
    waits = spreads(figures(together, "data_wait_pct"))
    rate = figures(alone, "img_per_s")
    slower = {name: Spread.of(each / ms[FREE]) for name, each in ms.items()}
    faster = {name: float(np.median(each / pace[FREE])) for name, each in rate.items()}
    rows = [
        {
            "": f"step on {name}",
            **cells("ms/step", Spread.of(ms[name]), ",.1f"),
            "img/s": f"{np.median(pace[name]):,.0f}",
            "data wait": f"{waits[name].median:.2f}%",
            "highest": f"{waits[name].high:.2f}%",
            "× time on free data": f"{slower[name].median:.3f} ({span(slower[name], '.3f')})",
        }
        for name in together
    ]
    rows += [
        {"": f"{name}, alone", "img/s": f"{np.median(each):,.0f}"} for name, each in rate.items()
    ]
    report = Report(
        "train",
        bench.device,
        bench.facts()
        | {"step": f"{how}, ngf {config.ngf}, ndf {config.ndf}, {steps} steps in a round"},
        [make_table(rows)],
        [conclude(name, faster[name], slower[name], waits[name]) for name in alone],
        [
            Bars("A step", "ms", spreads(ms)),
            Bars("Loaders alone", "images a second", spreads(rate)),
        ],
        bench.data()
        | {
            "ngf": options.ngf,
            "ndf": options.ndf,
            "steps_per_round": steps,
            "loaders_alone": alone,
            "together": together,
        },
    )
    publish(report, options)


def training_step(config: TrainConfig, device: torch.device) -> tuple[Update, str]:
    """The step of dcgan-train, ready to run, and what it is."""
    precision, mode = choose_precision(config.precision, device), choose_step(config.step, device)
    config = config.replace(precision=precision.name)
    if mode.name != "eager":
        keep_compiled_code()
    step = build_step(config, *build_nets(config, device), StepRows(ROWS, device))

    def update(pixels: torch.Tensor) -> torch.Tensor:
        step.rows.place.zero_()  # nobody reads them
        return step(pixels)

    tuning, reason = choose_tuning(config, step.update, mode.name, tell_progress)
    tell_progress(f"tuning: {tuning.describe()}; {reason}")
    taken = step.prepare(mode.name, lambda line: None, tuning=tuning)
    return update, f"{taken}, {precision.name}"


def _free(options: LoaderOptions) -> Contender:
    """Batches of noise that nobody has to make."""
    noise = SyntheticLoader(options)
    ready = [next(noise) for _ in range(BATCHES)]
    return Contender(FREE, cycle(ready), options.batch_size, 0, noise.close)


def _measure(
    bench: Bench, free: Contender, loaders: Sequence[Contender], update: Update
) -> tuple[dict[str, list[Round]], dict[str, list[Pace]], int]:
    """Each loader alone, and the step fed by each, in turn; and how many steps make a round."""
    options, device = bench.options, bench.device
    train_round(free, update, 1, device)
    pace = train_round(free, update, LEAST_STEPS // 2, device)
    steps = max(LEAST_STEPS, math.ceil(1e3 * options.seconds / pace.step_ms))
    lengths = {each.name: warm_up(each, options.seconds, device) for each in loaders}
    clock = CpuClock()
    clock.wait_until_quiet()

    def train(fed: Contender) -> Pace:
        pace = train_round(fed, update, steps, device)
        clock.wait_until_quiet()
        return pace

    turns: dict[str, Callable[[], Any]] = {
        f"{each.name}, alone": partial(take_round, each, lengths[each.name], clock, device)
        for each in loaders
    }
    turns |= {fed.name: partial(train, fed) for fed in (free, *loaders)}
    taken = take_turns(turns, options.rounds)
    alone = {each.name: taken.pop(f"{each.name}, alone") for each in loaders}
    return alone, taken, steps


def train_round(fed: Contender, update: Update, steps: int, device: torch.device) -> Pace:
    """Time some steps that a loader feeds, as the trainer does.

    Batches that the loader had ready are thrown away first, and a step is done untimed: what is
    timed is then the balance of loader and step, and not the emptying of a queue.
    """
    clock = Clock(device)

    def train() -> None:
        with clock.waiting():
            pixels = next(fed.batches)
        update(pixels)

    repeat(partial(next, fed.batches), fed.ahead, device)
    repeat(train, 1, device)
    clock.restart()
    for _ in range(steps):
        train()
    synchronise(device)
    spent = clock.lap()()
    step_ms = spent.step_ms(steps)
    return Pace(step_ms, 1e3 * fed.batch_size / step_ms, spent.data_wait_pct)


def conclude(name: str, faster: float, slower: Spread, waits: Spread) -> str:
    """Which of a loader and the step is the bottleneck.

    Args:
        name: of the loader.
        faster: its rate alone, times that of the step with free data.
        slower: the time of a step that it feeds, times that of a step with free data.
        waits: percent of its time that such a step waits for data.
    """
    if faster >= 1:
        bound = f"the step is the bottleneck, the loader alone is {short(faster)} as fast"
    else:
        bound = f"the loader is the bottleneck, the step alone is {short(1 / faster)} as fast"
    return (
        f"{name}: {bound}; fed by it, a step takes {slower.median:.3f} times as long as with free"
        f" data, and waits for data {waits.median:.2f}% of the time."
    )
