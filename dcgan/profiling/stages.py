"""`dcgan-profile stages`: where the loader's time goes, and what would save it."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from dcgan.cli import tell_progress
from dcgan.options import MeasuringSet
from dcgan.profiling.bench import TEMPORARY, Bench
from dcgan.profiling.contenders import (
    AHEAD,
    CACHE,
    JPEG,
    RAW,
    SET,
    cached,
    ours,
    pack_as,
    read_batches,
    write_images,
)
from dcgan.profiling.measuring import Contender, Round, Spread, figures
from dcgan.profiling.report import Bars, cells, make_table, times
from pipeline.loading.loader import (
    CLOSING_PATIENCE,
    READY,
    Prefetcher,
    open_decoder,
    why_not_dali,
)
from pipeline.loading.options import LoaderOptions
from pipeline.shards.shard_set import ShardSet


@dataclass(frozen=True)
class Cost:
    """What a stage adds to those before it, in microseconds an image."""

    cpu_us: Spread
    wall_us: Spread
    share: float


def profile(options: MeasuringSet) -> None:
    """Measure the stages and the remedies in the same rounds."""
    bench = Bench(options)
    with TemporaryDirectory(prefix=TEMPORARY) as folder:
        stages = cumulative(bench.shards, bench.conditions)
        taken = bench.measure(chain(stages, _remedies(bench, Path(folder))))
    on_cuda = bench.device.type == "cuda"
    costs = find_costs({stage.name: taken[stage.name] for stage in stages}, on_cuda)
    rate, cpu = figures(taken, "img_per_s"), figures(taken, "cpu_us_per_image")
    whole = stages[-1].name
    gains = {name: Spread.of(rate[name] / rate[whole]) for name in taken if name not in costs}
    stage_rows = [
        {
            "stage": name,
            **cells("CPU µs/image", cost.cpu_us, ",.1f"),
            "share": f"{cost.share:.0%}",
            "wall µs": f"{cost.wall_us.median:,.1f}",
            "img/s up to here": f"{np.median(rate[name]):,.0f}",
        }
        for name, cost in costs.items()
    ]
    remedy_rows = [
        {
            "loader": f"{SET}, float" if name == whole else name,
            **cells("img/s", Spread.of(rate[name])),
            "CPU µs/image": f"{np.median(cpu[name]):,.1f}",
            f"× {SET}, float": times(Spread.of(rate[name] / rate[whole])),
        }
        for name in (whole, *gains)
    ]
    bench.publish(
        "stages",
        [
            make_table(stage_rows, "Each stage, added to those before it"),
            make_table(remedy_rows, "What would change it"),
        ],
        _conclusions(costs, gains, bench),
        [
            Bars(
                f"{'Time' if on_cuda else 'CPU time'} of each stage",
                "µs an image",
                {name: cost.wall_us if on_cuda else cost.cpu_us for name, cost in costs.items()},
            ),
            Bars("What would change it", f"times the rate of {SET}", gains),
        ],
        {"stages": costs, "gains": gains, "rounds": taken},
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
        # What the loader's decoder makes, left where it is made
        undelivered = open_decoder(shards, form).decode(read_batches(shards, form))
        stages.append(_prefetched(name, undelivered, conditions))
    return [*stages, ours("copy", shards, conditions)]


def _prefetched(
    name: str, items: Generator[Any, None, None], conditions: LoaderOptions
) -> Contender:
    """Run a generator in a thread of its own, as the loader runs its decoder."""
    prefetcher = Prefetcher(items, READY, name)

    def batches() -> Generator[Any, None, None]:
        while True:
            yield prefetcher.take(conditions.data_timeout)

    return Contender(
        name, batches(), conditions.batch_size, AHEAD, lambda: prefetcher.close(CLOSING_PATIENCE)
    )


def _decoded(shards: ShardSet, conditions: LoaderOptions) -> Generator[Any, None, None]:
    """Decoded images of their own sizes, in DALI's memory."""
    from pipeline.loading.dali import build_graph

    encoded = read_batches(shards, conditions)
    graph = build_graph(shards, lambda: next(encoded), conditions, "decode")
    graph.build()
    while True:
        yield graph.run()


def _remedies(bench: Bench, folder: Path) -> Iterator[Contender]:
    """What can be tried with this set: fewer threads, to see what they bring, and other stores."""
    shards, conditions = bench.shards, bench.conditions
    pixels = replace(conditions, dtype=torch.uint8)
    recipe, size, workers = shards.manifest.recipe, conditions.image_size, conditions.threads
    if recipe.store != "raw":
        if workers > 1:
            yield ours(f"{SET}, float, --workers 1", shards, replace(conditions, workers=1))
        tell_progress("packing the same images as raw pixels and as small JPEGs")
        images = write_images(shards, folder / "files")
        if recipe.store != "jpeg" or recipe.size != size:
            small = pack_as("jpeg", shards, images, size, folder / "jpeg", workers)
            yield ours(f"{JPEG}, float", small, conditions)
        raw = pack_as("raw", shards, images, size, folder / "raw", workers)
        yield ours(f"{RAW}, float", raw, conditions)
        yield ours(f"{RAW}, uint8", raw, pixels)
    yield cached(f"{CACHE}, float", shards, conditions)
    yield cached(f"{CACHE}, uint8", shards, pixels)


def find_costs(stages: Mapping[str, Sequence[Round]], by_wall: bool) -> dict[str, Cost]:
    """Differences between each stage and the one before, within each round.

    Args:
        stages: the rounds of `cumulative`, in order.
        by_wall: shares are of wall time, not of CPU time.
    """
    rate, used = figures(stages, "img_per_s"), figures(stages, "cpu_us_per_image")
    cpu = np.diff(list(used.values()), axis=0, prepend=0)
    wall = np.diff([1e6 / each for each in rate.values()], axis=0, prepend=0)
    # Noise may make a stage cheaper than nothing
    counted = np.median(wall if by_wall else cpu, axis=1).clip(min=0)
    shares = counted / (counted.sum() or 1)
    return {
        name: Cost(Spread.of(cpu[place]), Spread.of(wall[place]), float(shares[place]))
        for place, name in enumerate(stages)
    }


def _conclusions(costs: Mapping[str, Cost], gains: Mapping[str, Spread], bench: Bench) -> list[str]:
    by_wall = bench.device.type == "cuda"
    bound = max(costs, key=lambda name: costs[name].share)
    resource = "time" if by_wall else "CPU time"
    lines = [f"{bound} bounds the loader: {costs[bound].share:.0%} of an image's {resource}."]
    if not by_wall:
        lines.append(f"copy: nothing to copy, batches are made on the {bench.device.type}.")
    if "resize" not in costs and bench.shards.manifest.recipe.store != "raw":
        lines.append("decode and resize are one stage of this machine's decoder.")
    idle = [name for name, gain in gains.items() if gain.low <= 1 <= gain.high]
    if idle:
        lines.append(f"No gain or loss beyond the noise: {'; '.join(idle)}.")
    return lines
