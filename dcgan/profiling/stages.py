"""`dcgan-profile stages`: where the loader's time goes, and what would save it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from dcgan.options import MeasuringSet
from dcgan.profiling.bench import Bench, say, temporary_folder
from dcgan.profiling.contenders import cached, ours
from dcgan.profiling.cumulative import cumulative
from dcgan.profiling.measuring import Contender, Round, Spread, ratios
from dcgan.profiling.report import Bars, Report, Table, rounds_as_json, span, times
from dcgan.profiling.variants import pack_as, write_images

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
    with temporary_folder() as folder, ExitStack() as stack:
        stages = cumulative(bench.shards, bench.conditions)
        remedies = _remedies(bench, folder)
        for contender in (*stages, *remedies):
            stack.callback(contender.close)
        taken = bench.measure([*stages, *remedies])
    names = [stage.name for stage in stages]
    on_cuda = bench.device.type == "cuda"
    costs = _costs(names, taken, on_cuda)
    gains = {
        each.name: ratios(_rates(taken[each.name]), _rates(taken[names[-1]])) for each in remedies
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


def _remedies(bench: Bench, folder: Path) -> list[Contender]:
    """What can be tried with this set: fewer threads, to see what they bring, and other stores."""
    shards, conditions = bench.shards, bench.conditions
    pixels = replace(conditions, dtype=torch.uint8)
    found = []
    recipe = shards.manifest.recipe
    if recipe.store != "raw":
        if bench.workers > 1:
            found.append(ours("--workers 1", shards, replace(conditions, workers=1)))
        say("packing the same images as raw pixels and as small JPEGs")
        images, size = write_images(shards, folder / "files"), conditions.image_size
        small = recipe.store == "jpeg" and recipe.size == size
        for store in ("raw",) if small else ("jpeg", "raw"):
            packed = pack_as(store, shards, images, size, folder / store, bench.workers)
            found.append(ours(f"--store {store}", packed, conditions))
            if store == "raw":
                found.append(ours("--store raw, uint8", packed, pixels))
    found.append(cached("--cache", shards, conditions))
    found.append(cached("--cache, uint8", shards, pixels))
    return found


def _rates(rounds: Sequence[Round]) -> list[float]:
    return [each.img_per_s for each in rounds]


def _costs(
    names: Sequence[str], taken: Mapping[str, Sequence[Round]], by_wall: bool
) -> dict[str, Cost]:
    """Differences between a stage and the one before, within each round."""
    before_cpu = before_wall = [0.0] * len(taken[names[0]])
    spreads = {}
    for name in names:
        cpu = [each.cpu_us_per_image for each in taken[name]]
        wall = [1e6 / each.img_per_s for each in taken[name]]
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
        rate = Spread.of(_rates(taken[name]))
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
        rate = Spread.of(_rates(taken[name]))
        cpu = Spread.of([each.cpu_us_per_image for each in taken[name]])
        gain = times(gains[name]) if name in gains else "1×"
        shown = AS_IT_IS if name == whole else name
        table.rows.append((shown, f"{rate.median:,.0f}", span(rate), f"{cpu.median:,.1f}", gain))
    return table


def _conclusions(costs: Mapping[str, Cost], gains: Mapping[str, Spread], bench: Bench) -> list[str]:
    by_wall = bench.device.type == "cuda"
    bound = max(costs, key=lambda name: costs[name].share)
    resource = "time" if by_wall else "CPU time"
    said = [f"{bound} bounds the loader: {costs[bound].share:.0%} of an image's {resource}."]
    if not by_wall:
        said.append(f"copy: nothing to copy, batches are made on the {bench.device.type}.")
    if "resize" not in costs and bench.shards.manifest.recipe.store != "raw":
        said.append("decode and resize are one stage of this machine's decoder.")
    for name, gain in gains.items():
        if name == "--workers 1":
            noise = "" if gain.high < 1 or gain.low > 1 else ", within the noise"
            said.append(
                f"threads: {bench.workers} give {1 / gain.median:.2f}× the rate of one{noise}."
            )
        elif gain.low > 1:
            said.append(f"{name}: {gain.median:.1f}× the rate, as measured.")
        else:
            said.append(f"{name}: no gain beyond the noise ({times(gain)}).")
    return said
