"""`dcgan-profile train`: the step with free data, the loader alone, and both together."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from itertools import cycle

import torch

from dcgan.options import MeasuringTraining, TrainConfig
from dcgan.profiling.bench import Bench, progress
from dcgan.profiling.contenders import cached, ours
from dcgan.profiling.measuring import (
    Contender,
    CpuClock,
    Round,
    Spread,
    ratios,
    synchronise,
    take_round,
    warm_up,
)
from dcgan.profiling.report import Bars, Report, Table, rounds_as_json, short, span
from dcgan.step.precision import choose_precision
from dcgan.step.statistics import StepRows
from dcgan.step.train_step import choose_step, keep_compiled_code
from dcgan.training.build import build_nets, build_step
from dcgan.training.stats import Clock
from pipeline.loading.options import LoaderOptions
from pipeline.loading.synthetic import BATCHES, SyntheticLoader

LEAST_STEPS = 4
"""In a round."""

ROWS = 1
"""Of statistics; each step writes the same one."""

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


@dataclass(frozen=True)
class Training:
    """The step, fed by a contender."""

    fed: Contender
    update: Update

    def round(self, steps: int, device: torch.device) -> Pace:
        """Time some steps, as the trainer does.

        Batches that the loader had ready are thrown away first, and a step is done untimed: what
        is timed is then the balance of loader and step, and not the emptying of a queue.
        """
        for _ in range(self.fed.ahead):
            next(self.fed.batches)
        clock = Clock(device)
        self._steps(1, clock)
        synchronise(device)
        clock.restart()
        self._steps(steps, clock)
        synchronise(device)
        spent = clock.lap()()
        step_ms = spent.step_ms(steps)
        return Pace(step_ms, 1e3 * self.fed.batch_size / step_ms, spent.data_wait_pct)

    def _steps(self, steps: int, clock: Clock) -> None:
        for _ in range(steps):
            with clock.waiting():
                pixels = next(self.fed.batches)
            self.update(pixels)


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

    return update, f"{step.prepare(mode.name, lambda said: None)}, {precision.name}"


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
        trainings = [Training(fed, update) for fed in (free, *loaders)]
        alone, together, steps = _measure(bench, loaders, trainings)
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
                {name: Spread.of([r.img_per_s for r in rounds]) for name, rounds in alone.items()},
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
    bench: Bench, loaders: Sequence[Contender], trainings: Sequence[Training]
) -> tuple[dict[str, list[Round]], dict[str, list[Pace]], int]:
    """Each loader alone and each training, in turn; and how many steps a training's round has."""
    options, device = bench.options, bench.device
    steps = _steps_of(trainings[0], options.seconds, device)
    lengths = {each.name: warm_up(each, options.seconds, device) for each in loaders}
    clock = CpuClock()
    clock.wait_until_quiet()
    alone: dict[str, list[Round]] = {each.name: [] for each in loaders}
    together: dict[str, list[Pace]] = {each.fed.name: [] for each in trainings}
    turns = options.rounds * len(trainings)
    with progress() as told:
        for number in range(options.rounds):
            for each in loaders:
                alone[each.name].append(take_round(each, lengths[each.name], clock, device))
            for place, training in enumerate(trainings, 1):
                together[training.fed.name].append(training.round(steps, device))
                clock.wait_until_quiet()
                told(number * len(trainings) + place, turns)
    return alone, together, steps


def _steps_of(training: Training, seconds: float, device: torch.device) -> int:
    """As many steps as fill a round."""
    training.round(1, device)
    pace = training.round(LEAST_STEPS // 2, device)
    return max(LEAST_STEPS, math.ceil(1e3 * seconds / pace.step_ms))


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
    return ratios(
        [each.img_per_s for each in alone[name]], [pace.img_per_s for pace in together[FREE]]
    )


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
        rate = Spread.of([each.img_per_s for each in rounds])
        table.rows.append((f"{name}, alone", "", "", f"{rate.median:,.0f}", "", "", ""))
    return table


def _conclusions(alone: Alone, together: Together) -> list[str]:
    said = []
    for name in alone:
        faster, slower = _faster(alone, together, name).median, _slower(together, name).median
        if faster >= 1:
            bound = f"the step is the bottleneck, the loader alone is {short(faster)} as fast"
        else:
            bound = f"the loader is the bottleneck, the step alone is {short(1 / faster)} as fast"
        said.append(
            f"{name}: {bound}; fed by it, a step takes {slower:.3f} times as long as with free"
            f" data, and waits for data {_waits(together[name]).median:.2f}% of the time."
        )
    return said
