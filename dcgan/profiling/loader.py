"""`dcgan-profile loader`: the loader by itself."""

from __future__ import annotations

import time
from contextlib import ExitStack

import psutil

from dcgan.options import MeasuringLoader
from dcgan.profiling.bench import Bench
from dcgan.profiling.cumulative import copy_ms
from dcgan.profiling.measuring import Contender, Spread, synchronise
from dcgan.profiling.report import Bars, Report, Table, rounds_as_json, span
from pipeline.loading.decoders import BATCHES_AHEAD
from pipeline.loading.loader import READY, Loader
from pipeline.shards.manifest import ShardSet

COPIES = 50
"""Batches whose copy is timed on CUDA."""


def profile(options: MeasuringLoader) -> Report:
    """Measure how soon the first batch comes, how fast the others do, and what they take."""
    bench = Bench(options)
    with ExitStack() as stack:
        started = time.perf_counter()
        ShardSet.open(options.shards)
        opened = time.perf_counter()
        loader = Loader(bench.shards, bench.conditions)
        stack.callback(loader.close)
        made = time.perf_counter()
        next(loader)
        synchronise(bench.device)
        first = time.perf_counter()
        ahead = READY + 1 + BATCHES_AHEAD
        contender = Contender("loader", loader, options.batch_size, ahead, loader.close)
        before = _resident()
        taken = bench.measure([contender])
        after = _resident()
    rounds = taken["loader"]
    rate = Spread.of([each.img_per_s for each in rounds])
    cpu = Spread.of([each.cpu_us_per_image for each in rounds])
    seconds = {
        "open the set": opened - started,
        "make the loader": made - opened,
        "first batch": first - made,
    }
    table = Table("", ("", "median", "lowest – highest"))
    table.rows += [
        ("images a second", f"{rate.median:,.0f}", span(rate)),
        ("CPU time an image", f"{cpu.median:,.1f} µs", span(cpu, ",.1f")),
        ("batches in a round", f"{rounds[0].batches}", ""),
    ]
    table.rows += [(name, f"{1e3 * value:,.0f} ms", "") for name, value in seconds.items()]
    table.rows.append(("resident memory", f"{after / 1e6:,.0f} MB", f"{_signed(after - before)}"))
    copies: list[float] = []
    if bench.device.type == "cuda":
        copies = copy_ms(bench.shards, bench.conditions, COPIES)
        copied = Spread.of(copies)
        table.rows.append(("copy a batch", f"{copied.median:.3f} ms", span(copied, ".3f")))
    return Report(
        "loader",
        bench.facts() | {"loader": loader.description},
        [table],
        [f"The first batch came {1e3 * (first - made):,.0f} ms after Loader() returned."],
        [Bars("The loader alone", "images a second", {"loader": rate})],
        bench.data()
        | {
            "rounds": rounds_as_json(taken),
            "seconds": {name.replace(" ", "_"): value for name, value in seconds.items()},
            "resident_bytes": {"before": before, "after": after},
            "copy_ms": copies,
        },
    )


def _resident() -> int:
    resident: int = psutil.Process().memory_info().rss
    return resident


def _signed(grown: int) -> str:
    return f"{grown / 1e6:+,.1f} MB since the first batch"
