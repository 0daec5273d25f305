"""`dcgan-profile train`: the step with free data, the loader alone, and both together."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import cycle
from typing import Any

import torch

from dcgan.options import MeasuringTraining, TrainConfig
from dcgan.profiling.bench import Bench
from dcgan.profiling.contenders import cached, ours
from dcgan.profiling.measuring import (
    Contender,
    CpuClock,
    Round,
    Spread,
    rates,
    ratios,
    synchronise,
    take_round,
    take_turns,
    warm_up,
)
from dcgan.profiling.report import Bars, Report, Table, rounds_as_json, short, span
from dcgan.step.precision import choose_precision
from dcgan.step.statistics import StepRows
from dcgan.step.train_step import choose_step, keep_compiled_code
from dcgan.training.build import build_nets, build_step
from dcgan.training.clock import Clock
from pipeline.loading.options import LoaderOptions
from pipeline.loading.synthetic import BATCHES, SyntheticLoader

LEAST_STEPS = 4
"""In a round."""

ROWS = 1
"""Rows of statistics: each step writes the same one."""

FREE, AS_IT_IS, CACHED = "free data", "the set as it is", "the cache"

Alone = Mapping[str, Sequence[Round]]
"""Rounds of loaders."""

Together = Mapping[str, Sequence["Pace"]]
"""Rounds of the step, by what feeds it."""

Update = Callable[[torch.Tensor], object]
"""One step of training on a batch of the loader's."""


@dataclass(frozen=True)
class Pace:
    """How fast a round of steps was."""

    step_ms: float
    img_per_s: float
    data_wait_pct: float
    """Share of the time that the step spent waiting for a batch."""


def train_round(fed: Contender, update: Update, steps: int, device: torch.device) -> Pace:
    """Time some steps that a loader feeds, as the trainer does.

    Batches that the loader had ready are thrown away first, and a step is done untimed: what is
    timed is then the balance of loader and step, and not the emptying of a queue.
    """
    clock = Clock(device)

    def train(steps: int) -> None:
        for _ in range(steps):
            with clock.waiting():
                pixels = next(fed.batches)
            update(pixels)
        synchronise(device)

    for _ in range(fed.ahead):
        next(fed.batches)
    train(1)
    clock.restart()
    train(steps)
    spent = clock.lap()()
    step_ms = spent.step_ms(steps)
    return Pace(step_ms, 1e3 * fed.batch_size / step_ms, spent.data_wait_pct)


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

    return update, f"{step.prepare(mode.name, lambda line: None)}, {precision.name}"


def profile(options: MeasuringTraining) -> Report:
    """Measure the step on free data, each loader alone, and the step fed by each, in turn."""
    bench = Bench(options)
    config = TrainConfig(
        shards=str(options.shards),
        batch_size=options.batch_size,
        image_size=options.image_size,
        ngf=options.ngf,
        ndf=options.ndf,
        seed=options.seed,
    )
    update, how = training_step(config, bench.device)
    with ExitStack() as stack:
        pixels = replace(bench.conditions, dtype=torch.uint8)
        free = _free(pixels)
        loaders = [ours(AS_IT_IS, bench.shards, pixels), cached(CACHED, bench.shards, pixels)]
        for contender in (free, *loaders):
            stack.callback(contender.close)
        alone, together, steps = _measure(bench, free, loaders, update)
    return Report(
        "train",
        bench.facts()
        | {"step": f"{how}, ngf {config.ngf}, ndf {config.ndf}, {steps} steps in a round"},
        [_table(alone, together)],
        _conclusions(alone, together),
        [
            Bars("A step", "ms", {name: _step_ms(paces) for name, paces in together.items()}),
            Bars(
                "Loaders alone",
                "images a second",
                {name: Spread.of(rates(rounds)) for name, rounds in alone.items()},
            ),
        ],
        bench.data()
        | {
            "ngf": options.ngf,
            "ndf": options.ndf,
            "steps_per_round": steps,
            "loaders_alone": rounds_as_json(alone),
            "together": {
                name: [asdict(pace) for pace in paces] for name, paces in together.items()
            },
        },
    )


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

    turns: dict[tuple[str, str], Callable[[], Any]] = {
        ("alone", each.name): partial(take_round, each, lengths[each.name], clock, device)
        for each in loaders
    }
    turns |= {("together", fed.name): partial(train, fed) for fed in (free, *loaders)}
    taken = take_turns(turns, options.rounds)
    alone = {each.name: taken["alone", each.name] for each in loaders}
    together = {fed.name: taken["together", fed.name] for fed in (free, *loaders)}
    return alone, together, steps


def _step_ms(paces: Sequence[Pace]) -> Spread:
    return Spread.of([pace.step_ms for pace in paces])


def _waits(paces: Sequence[Pace]) -> Spread:
    return Spread.of([pace.data_wait_pct for pace in paces])


def _slower(together: Together, name: str) -> Spread:
    """A step's time, times that with free data."""
    ms = {each: [pace.step_ms for pace in together[each]] for each in (name, FREE)}
    return ratios(ms[name], ms[FREE])


def _faster(alone: Alone, together: Together, name: str) -> Spread:
    """The rate of a loader alone, times that of the step with free data."""
    return ratios(rates(alone[name]), [pace.img_per_s for pace in together[FREE]])


def _table(alone: Alone, together: Together) -> Table:
    columns = (
        "",
        "ms/step",
        "lowest – highest",
        "img/s",
        "data wait",
        "highest",
        "× time on free data",
    )
    table = Table("", columns)
    for name, paces in together.items():
        step, waits = _step_ms(paces), _waits(paces)
        table.rows.append(
            (
                f"step on {name}",
                f"{step.median:,.1f}",
                span(step, ",.1f"),
                f"{statistics.median(pace.img_per_s for pace in paces):,.0f}",
                f"{waits.median:.2f}%",
                f"{waits.high:.2f}%",
                f"{_slower(together, name).median:.3f} ({span(_slower(together, name), '.3f')})",
            )
        )
    for name, rounds in alone.items():
        rate = Spread.of(rates(rounds))
        table.rows.append((f"{name}, alone", "", "", f"{rate.median:,.0f}", "", "", ""))
    return table


def _conclusions(alone: Alone, together: Together) -> list[str]:
    lines = []
    for name in alone:
        faster, slower = _faster(alone, together, name).median, _slower(together, name).median
        if faster >= 1:
            bound = f"the step is the bottleneck, the loader alone is {short(faster)} as fast"
        else:
            bound = f"the loader is the bottleneck, the step alone is {short(1 / faster)} as fast"
        lines.append(
            f"{name}: {bound}; fed by it, a step takes {slower:.3f} times as long as with free"
            f" data, and waits for data {_waits(together[name]).median:.2f}% of the time."
        )
    return lines
