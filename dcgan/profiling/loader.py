"""`dcgan-profile loader`: the loader by itself."""

from __future__ import annotations

import time
from contextlib import closing

import psutil
import torch

from dcgan.options import MeasuringSet
from dcgan.profiling.bench import Bench
from dcgan.profiling.contenders import SET, ours, read_batches
from dcgan.profiling.measuring import Spread, figures, spreads, synchronise
from dcgan.profiling.report import SPAN, Bars, cells, make_table, span
from dcgan.training.clock import Clock
from pipeline.loading.loader import deliver, open_decoder
from pipeline.loading.options import LoaderOptions
from pipeline.remote.open import open_set
from pipeline.shards.shard_set import ShardSet

COPIES = 50
"""Batches whose copy is timed on CUDA."""


def profile(options: MeasuringSet) -> None:
    """Measure how soon the first batch comes, how fast the others do, and what they take."""
    bench = Bench(options)
    started = time.perf_counter()
    open_set(options.shards, options.access)
    opened = time.perf_counter()
    loader = ours(SET, bench.shards, bench.conditions)
    made = time.perf_counter()
    next(loader.batches)
    synchronise(bench.device)
    first = time.perf_counter()
    seconds = {
        "open the set": opened - started,
        "make the loader": made - opened,
        "first batch": first - made,
    }
    before = psutil.Process().memory_info().rss
    taken = bench.measure([loader])
    after = psutil.Process().memory_info().rss
    copies = _copy_ms(bench.shards, bench.conditions) if bench.device.type == "cuda" else []
    rate = spreads(figures(taken, "img_per_s"))
    cpu = Spread.of(figures(taken, "cpu_us_per_image")[SET])
    grown = f"{(after - before) / 1e6:+,.1f} MB since the first batch"
    rows = [
        {"": "img/s", **cells("median", rate[SET])},
        {"": "CPU µs/image", **cells("median", cpu, ",.1f")},
        {"": "batches", "median": f"{taken[SET][0].batches}"},
        *({"": name, "median": f"{1e3 * value:,.0f} ms"} for name, value in seconds.items()),
        {"": "resident memory", "median": f"{after / 1e6:,.0f} MB", SPAN: grown},
    ]
    if copies:
        copied = Spread.of(copies)
        found = {"median": f"{copied.median:.3f} ms", SPAN: span(copied, ".3f")}
        rows.append({"": "copy a batch", **found})
    bench.publish(
        "loader",
        [make_table(rows)],
        [],
        [Bars("The loader alone", "images a second", rate)],
        {
            "rounds": taken,
            "seconds": {name.replace(" ", "_"): value for name, value in seconds.items()},
            "resident_bytes": {"before": before, "after": after},
            "copy_ms": copies,
        },
        loader=loader.description,
    )


def _copy_ms(shards: ShardSet, conditions: LoaderOptions) -> list[float]:
    """Milliseconds that the device takes to copy a float batch, by its own clock; CUDA only."""
    decoder = open_decoder(shards, conditions)
    clock, laps = Clock(conditions.device), []
    with closing(decoder.decode(read_batches(shards, conditions))) as decoded:
        for _ in range(COPIES):
            batch = next(decoded)
            # The stream has nothing else to do: the copy alone is in a lap
            clock.restart()
            deliver(batch, conditions.device, None)
            laps.append(clock.lap())
        torch.cuda.synchronize(conditions.device)
    return [lap().step_ms(1) for lap in laps]
