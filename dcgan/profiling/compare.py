"""`dcgan-profile compare`: the same images through every loader, in alternating rounds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from dcgan.cli import tell_progress
from dcgan.options import MeasuringSet
from dcgan.profiling.bench import TEMPORARY, Bench
from dcgan.profiling.contenders import (
    cached,
    ours,
    pack_as,
    plain_dali,
    shared_by_dataloader,
    torchvision_folder,
    webdataset_shards,
    write_images,
)
from dcgan.profiling.measuring import Contender, Round, Spread, cpu_times, rates, ratios
from dcgan.profiling.report import Bars, Report, Table, rounds_as_json, short, span
from pipeline.loading.loader import why_not_dali
from pipeline.machine import MIB, shared_memory_lack

TUTORIAL = "ImageFolder, DataLoader"
WEBDATASET = "webdataset, torchvision"
DALI = "plain DALI chain"
DTYPES = {"float": torch.float32, "uint8": torch.uint8}

Ratios = dict[str, dict[str, Spread]]
"""By contender and yardstick."""


def profile(options: MeasuringSet) -> Report:
    """Measure all loaders that the set and the machine allow."""
    bench = Bench(options)
    left_out: list[str] = []
    with TemporaryDirectory(prefix=TEMPORARY) as folder:
        taken = bench.measure(_contenders(bench, Path(folder), left_out))
    rate = {name: rates(rounds) for name, rounds in taken.items()}
    cpu = {name: cpu_times(rounds) for name, rounds in taken.items()}
    yardsticks = [name for name in (TUTORIAL, DALI) if name in taken]
    by_wall = {
        name: {other: ratios(rate[name], rate[other]) for other in yardsticks} for name in taken
    }
    by_cpu = {
        name: {other: ratios(cpu[other], cpu[name]) for other in yardsticks} for name in taken
    }
    rate_bars = {name: Spread.of(values) for name, values in rate.items()}
    cpu_bars = {name: Spread.of(values) for name, values in cpu.items()}
    return Report(
        "compare",
        bench.facts(),
        [_table(taken, by_wall, by_cpu)],
        [
            (
                "Ratios are medians over the rounds, of the rate (wall) and of the images made in a"
                " second of CPU time (CPU)."
            ),
            *left_out,
        ],
        [Bars("Rate", "images a second", rate_bars), Bars("CPU time", "µs an image", cpu_bars)],
        bench.data()
        | {
            "left_out": left_out,
            "wall_ratios": _as_json(by_wall),
            "cpu_ratios": _as_json(by_cpu),
            "rounds": rounds_as_json(taken),
        },
    )


def _contenders(bench: Bench, folder: Path, left_out: list[str]) -> Iterator[Contender]:
    """All that can take part, one after another; `left_out` gets a line about each that cannot."""
    shards, conditions = bench.shards, bench.conditions
    forms = {name: replace(conditions, dtype=dtype) for name, dtype in DTYPES.items()}
    store = shards.manifest.recipe.store
    stored = {"original": "our loader", "jpeg": "our loader, jpeg", "raw": "raw shards"}[store]
    if store == "raw":
        left_out.append(
            "Left out, because the set holds pixels and no image files: the tutorial's loader,"
            " webdataset and the plain DALI chain. Compare those on a set of --store original."
        )
    else:
        if store == "jpeg":
            left_out.append("All loaders read the set's small JPEGs, not the originals.")
        tell_progress("writing the images as files, and packing them as raw pixels")
        images = write_images(shards, folder / "files")
        wanted = 2 * shared_by_dataloader(conditions)
        if lack := shared_memory_lack(wanted):
            left_out.append(
                "Left out: the tutorial's loader and webdataset, whose processes need"
                f" {wanted / MIB:,.0f} MiB of shared memory ({lack})."
            )
        else:
            yield torchvision_folder(TUTORIAL, images, shards.manifest.recipe, conditions)
            yield webdataset_shards(WEBDATASET, shards, conditions)
        if obstacle := why_not_dali(conditions.device):
            left_out.append(f"Left out: the plain DALI chain ({obstacle}).")
        else:
            yield plain_dali(DALI, shards, conditions)
    for name, form in forms.items():
        yield ours(f"{stored}, {name}", shards, form)
    if store != "raw":
        size = conditions.image_size
        raw = pack_as("raw", shards, images, size, folder / "raw", conditions.threads)
        for name, form in forms.items():
            yield ours(f"raw shards, {name}", raw, form)
    tell_progress("filling the caches")
    for name, form in forms.items():
        yield cached(f"cache, {name}", shards, form)


def _as_json(found: Ratios) -> dict[str, dict[str, dict[str, float]]]:
    return {
        name: {other: vars(spread) for other, spread in row.items()} for name, row in found.items()
    }


def _table(taken: Mapping[str, Sequence[Round]], by_wall: Ratios, by_cpu: Ratios) -> Table:
    yardsticks = list(next(iter(by_wall.values())))
    headings = {TUTORIAL: "tutorial", DALI: "DALI"}
    columns = ["loader", "img/s", "lowest – highest", "CPU µs/image", "batches"]
    columns += [f"× {headings[other]}, wall" for other in yardsticks]
    columns += [f"× {headings[other]}, CPU" for other in yardsticks]
    table = Table("", columns)
    for name, rounds in taken.items():
        rate, cpu = Spread.of(rates(rounds)), Spread.of(cpu_times(rounds))
        row = [name, f"{rate.median:,.0f}", span(rate), f"{cpu.median:,.1f}"]
        row.append(str(rounds[0].batches))
        row += [short(by_wall[name][other].median) for other in yardsticks]
        row += [short(by_cpu[name][other].median) for other in yardsticks]
        table.rows.append(row)
    return table
