"""`dcgan-profile stages`: where the loader's time goes, and what would save it."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from dcgan.cli import tell_progress
from dcgan.options import MeasuringSet
from dcgan.profiling.bench import TEMPORARY, Bench
from dcgan.profiling.contenders import cached, ours, pack_as, read_batches, write_images
from dcgan.profiling.measuring import Contender, Round, Spread, cpu_times, rates, ratios
from dcgan.profiling.report import Bars, Report, Table, rounds_as_json, span, times
from pipeline.loading.decoders import BATCHES_AHEAD
from pipeline.loading.loader import (
    CLOSING_PATIENCE,
    READY,
    Prefetcher,
    open_decoder,
    why_not_dali,
)
from pipeline.loading.options import LoaderOptions
from pipeline.shards.manifest import ShardSet

AS_IT_IS = "as it is"


@dataclass(frozen=True)
class Cost:
    """What a stage adds to those before it, in microseconds an image."""

    cpu: Spread
    wall: Spread
    share: float


def profile(options: MeasuringSet) -> Report:
    """Measure the stages and the remedies in the same rounds."""
    bench = Bench(options)
    with TemporaryDirectory(prefix=TEMPORARY) as folder:
        stages = cumulative(bench.shards, bench.conditions)
        taken = bench.measure(chain(stages, _remedies(bench, Path(folder))))
    names = [stage.name for stage in stages]
    on_cuda = bench.device.type == "cuda"
    costs = _costs(names, taken, on_cuda)
    whole = rates(taken[names[-1]])
    gains = {
        name: ratios(rates(rounds), whole) for name, rounds in taken.items() if name not in names
    }
    return Report(
        "stages",
        bench.facts(),
        [_stage_table(taken, costs), _remedy_table(taken, names[-1], gains)],
        _conclusions(costs, gains, bench),
        [
            Bars(
                f"{'Time' if on_cuda else 'CPU time'} of each stage",
                "µs an image",
                {name: cost.wall if on_cuda else cost.cpu for name, cost in costs.items()},
            ),
            Bars("Remedies", "times the rate of the set as it is", gains),
        ],
        bench.data()
        | {
            "stages": {
                name: {"cpu_us": vars(cost.cpu), "wall_us": vars(cost.wall), "share": cost.share}
                for name, cost in costs.items()
            },
            "gains": {name: vars(gain) for name, gain in gains.items()},
            "rounds": rounds_as_json(taken),
        },
    )


def cumulative(shards: ShardSet, conditions: LoaderOptions) -> list[Contender]:
    """The loader taken apart: all stages in order, each with those before it.

    Each does what the one before does and one thing more, with the loader's own parts and in the
    loader's own threads; the last one is the loader. They are named `read`, `decode`, `resize`,
    `normalise` and, on CUDA, `copy`. Where one part of the loader decodes and resizes in one go,
    there is no `resize`.
    """
    stages = [_prefetched("read", read_batches(shards, conditions), conditions)]
    fit = "decode"
    if shards.manifest.recipe.store != "raw" and not why_not_dali(conditions.device):
        stages.append(_prefetched("decode", _decoded(shards, conditions), conditions))
        fit = "resize"
    pixels = replace(conditions, dtype=torch.uint8)
    if conditions.device.type != "cuda":  # nothing to copy: batches are made where they are used
        stages.append(ours(fit, shards, pixels))
        return [*stages, ours("normalise", shards, conditions)]
    for name, form in ((fit, pixels), ("normalise", conditions)):
        stages.append(_prefetched(name, _undelivered(shards, form), conditions))
    return [*stages, ours("copy", shards, conditions)]


def _prefetched(
    name: str, items: Generator[Any, None, None], conditions: LoaderOptions
) -> Contender:
    """Run a generator in a thread of its own, as the loader runs its decoder."""
    prefetcher = Prefetcher(items, READY, name)

    def batches() -> Generator[Any, None, None]:
        while True:
            yield prefetcher.take(conditions.data_timeout)

    ahead = READY + 1 + BATCHES_AHEAD
    return Contender(
        name, batches(), conditions.batch_size, ahead, lambda: prefetcher.close(CLOSING_PATIENCE)
    )


def _decoded(shards: ShardSet, conditions: LoaderOptions) -> Generator[Any, None, None]:
    """Decoded images of their own sizes, in DALI's memory."""
    from pipeline.loading.dali import build_graph

    encoded = read_batches(shards, conditions)
    graph = build_graph(shards, lambda: next(encoded), conditions, "decode")
    graph.build()
    while True:
        yield graph.run()


def _undelivered(shards: ShardSet, conditions: LoaderOptions) -> Generator[Any, None, None]:
    """What the loader's decoder makes, left where it is made."""
    yield from open_decoder(shards, conditions).decode(read_batches(shards, conditions))


def _remedies(bench: Bench, folder: Path) -> Iterator[Contender]:
    """What can be tried with this set: fewer threads, to see what they bring, and other stores."""
    shards, conditions = bench.shards, bench.conditions
    pixels = replace(conditions, dtype=torch.uint8)
    recipe, size, workers = shards.manifest.recipe, conditions.image_size, conditions.threads
    if recipe.store != "raw":
        if workers > 1:
            yield ours("--workers 1", shards, replace(conditions, workers=1))
        tell_progress("packing the same images as raw pixels and as small JPEGs")
        images = write_images(shards, folder / "files")
        if recipe.store != "jpeg" or recipe.size != size:
            small = pack_as("jpeg", shards, images, size, folder / "jpeg", workers)
            yield ours("--store jpeg", small, conditions)
        raw = pack_as("raw", shards, images, size, folder / "raw", workers)
        yield ours("--store raw", raw, conditions)
        yield ours("--store raw, uint8", raw, pixels)
    yield cached("--cache", shards, conditions)
    yield cached("--cache, uint8", shards, pixels)


def _costs(
    names: Sequence[str], taken: Mapping[str, Sequence[Round]], by_wall: bool
) -> dict[str, Cost]:
    """Differences between a stage and the one before, within each round."""
    before_cpu = before_wall = [0.0] * len(taken[names[0]])
    spreads = {}
    for name in names:
        cpu = cpu_times(taken[name])
        wall = [1e6 / rate for rate in rates(taken[name])]
        spreads[name] = (_difference(cpu, before_cpu), _difference(wall, before_wall))
        before_cpu, before_wall = cpu, wall
    counted = {name: max(0.0, pair[by_wall].median) for name, pair in spreads.items()}
    total = sum(counted.values()) or 1.0
    return {name: Cost(*spreads[name], counted[name] / total) for name in names}


def _difference(values: Sequence[float], before: Sequence[float]) -> Spread:
    return Spread.of([a - b for a, b in zip(values, before, strict=True)])


def _stage_table(taken: Mapping[str, Sequence[Round]], costs: Mapping[str, Cost]) -> Table:
    columns = ("stage", "CPU µs/image", "lowest – highest", "share", "wall µs", "img/s up to here")
    table = Table("Each stage, added to those before it", columns)
    for name, cost in costs.items():
        rate = Spread.of(rates(taken[name]))
        table.rows.append(
            (
                name,
                f"{cost.cpu.median:,.1f}",
                span(cost.cpu, ",.1f"),
                f"{cost.share:.0%}",
                f"{cost.wall.median:,.1f}",
                f"{rate.median:,.0f}",
            )
        )
    return table


def _remedy_table(
    taken: Mapping[str, Sequence[Round]], whole: str, gains: Mapping[str, Spread]
) -> Table:
    table = Table(
        "What would change it", ("loader", "img/s", "lowest – highest", "CPU µs/image", "rate")
    )
    for name in (whole, *gains):
        rate = Spread.of(rates(taken[name]))
        cpu = Spread.of(cpu_times(taken[name]))
        gain = times(gains[name]) if name in gains else "1×"
        shown = AS_IT_IS if name == whole else name
        table.rows.append((shown, f"{rate.median:,.0f}", span(rate), f"{cpu.median:,.1f}", gain))
    return table


def _conclusions(costs: Mapping[str, Cost], gains: Mapping[str, Spread], bench: Bench) -> list[str]:
    by_wall = bench.device.type == "cuda"
    bound = max(costs, key=lambda name: costs[name].share)
    resource = "time" if by_wall else "CPU time"
    lines = [f"{bound} bounds the loader: {costs[bound].share:.0%} of an image's {resource}."]
    if not by_wall:
        lines.append(f"copy: nothing to copy, batches are made on the {bench.device.type}.")
    if "resize" not in costs and bench.shards.manifest.recipe.store != "raw":
        lines.append("decode and resize are one stage of this machine's decoder.")
    for name, gain in gains.items():
        if name == "--workers 1":
            noise = "" if gain.high < 1 or gain.low > 1 else ", within the noise"
            threads, rate = bench.conditions.threads, 1 / gain.median
            lines.append(f"threads: {threads} give {rate:.2f}× the rate of one{noise}.")
        elif gain.low > 1:
            lines.append(f"{name}: {gain.median:.1f}× the rate, as measured.")
        else:
            lines.append(f"{name}: no gain beyond the noise ({times(gain)}).")
    return lines
