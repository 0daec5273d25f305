"""`dcgan-profile compare`: the same images through every loader, in alternating rounds."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from dcgan.cli import tell_progress
from dcgan.options import MeasuringSet
from dcgan.profiling.bench import TEMPORARY, Bench
from dcgan.profiling.contenders import (
    CACHE,
    RAW,
    SET,
    cached,
    decoded_on_host,
    ours,
    pack_as,
    plain_dali,
    shared_by_dataloader,
    torchvision_folder,
    webdataset_shards,
    write_images,
)
from dcgan.profiling.measuring import Contender, Spread, figures, spreads
from dcgan.profiling.report import Bars, cells, make_table, short
from pipeline.loading.loader import why_not_dali
from pipeline.machine import MIB, shared_memory_lack

TUTORIAL, WEBDATASET, DALI = "tutorial", "webdataset", "plain DALI"

DTYPES = {"float": torch.float32, "uint8": torch.uint8}


def profile(options: MeasuringSet) -> None:
    """Measure all loaders that the set and the machine allow."""
    bench = Bench(options)
    left_out: list[str] = []
    with TemporaryDirectory(prefix=TEMPORARY) as folder:
        taken = bench.measure(_contenders(bench, Path(folder), left_out))
    rate, cpu = figures(taken, "img_per_s"), figures(taken, "cpu_us_per_image")
    others = [name for name in (TUTORIAL, DALI) if name in taken]
    by_wall, by_cpu = (
        {name: {each: Spread.of(of[name] / of[each]) for each in others} for name in taken}
        for of in (rate, {name: 1e6 / used for name, used in cpu.items()})
    )
    rates, cpu_times = spreads(rate), spreads(cpu)
    rows = [
        {
            "loader": name,
            **cells("img/s", rates[name]),
            "CPU µs/image": f"{cpu_times[name].median:,.1f}",
            "batches": str(rounds[0].batches),
            **{f"× {other}, wall": short(by_wall[name][other].median) for other in others},
            **{f"× {other}, CPU": short(by_cpu[name][other].median) for other in others},
        }
        for name, rounds in taken.items()
    ]
    ratios = (
        "Ratios are medians over the rounds, of the rate (wall) and of the images made in a second"
        " of CPU time (CPU)."
    )
    bench.publish(
        "compare",
        [make_table(rows)],
        [ratios, *left_out],
        [Bars("Rate", "images a second", rates), Bars("CPU time", "µs an image", cpu_times)],
        {"left_out": left_out, "wall_ratios": by_wall, "cpu_ratios": by_cpu, "rounds": taken},
    )


def _contenders(bench: Bench, folder: Path, left_out: list[str]) -> Iterator[Contender]:
    """All that can take part, one after another; `left_out` gets a line about each that cannot."""
    shards, conditions = bench.shards, bench.conditions
    forms = {name: replace(conditions, dtype=dtype) for name, dtype in DTYPES.items()}
    store = shards.manifest.recipe.store
    if store == "raw":
        left_out.append(
            f"Left out, because the set holds pixels and no image files: {TUTORIAL}, {WEBDATASET}"
            f" and {DALI}. Compare those on a set of --store original."
        )
    else:
        if store == "jpeg":
            left_out.append("All loaders read the set's small JPEGs, not the originals.")
        tell_progress("writing the images as files, and packing them as raw pixels")
        images = write_images(shards, folder / "files")
        wanted = 2 * shared_by_dataloader(conditions)
        if lack := shared_memory_lack(wanted):
            left_out.append(
                f"Left out: {TUTORIAL} and {WEBDATASET}, whose processes need"
                f" {wanted / MIB:,.0f} MiB of shared memory ({lack})."
            )
        else:
            yield torchvision_folder(TUTORIAL, images, shards.manifest.recipe, conditions)
            yield webdataset_shards(WEBDATASET, shards, conditions)
        if obstacle := why_not_dali(conditions.device):
            left_out.append(f"Left out: {DALI} ({obstacle}).")
        else:
            yield plain_dali(DALI, shards, conditions)
    for name, form in forms.items():
        yield ours(f"{SET}, {name}", shards, form)
    if store != "raw" and conditions.device.type == "cuda":
        yield from decoded_on_host(shards, conditions)
    if store != "raw":
        size = conditions.image_size
        raw = pack_as("raw", shards, images, size, folder / "raw", conditions.threads)
        for name, form in forms.items():
            yield ours(f"{RAW}, {name}", raw, form)
    tell_progress("filling the caches")
    for name, form in forms.items():
        yield cached(f"{CACHE}, {name}", shards, form)
