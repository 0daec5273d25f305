"""`dcgan-profile loader`: the loader by itself."""

from __future__ import annotations

import time

import psutil
import torch

from dcgan.options import MeasuringLoader
from dcgan.profiling.bench import Bench
from dcgan.profiling.contenders import ours, read_batches
from dcgan.profiling.measuring import Spread, cpu_times, rates, synchronise
from dcgan.profiling.report import Bars, Report, Table, rounds_as_json, span
from pipeline.loading.loader import deliver, open_decoder
from pipeline.loading.options import LoaderOptions
from pipeline.shards.manifest import ShardSet

COPIES = 50
"""Batches whose copy is timed on CUDA."""


def profile(options: MeasuringLoader) -> Report:
    """Measure how soon the first batch comes, how fast the others do, and what they take."""
    bench = Bench(options)
    started = time.perf_counter()
    ShardSet.open(options.shards)
    opened = time.perf_counter()
    loader = ours("loader", bench.shards, bench.conditions)
    made = time.perf_counter()
    next(loader.batches)
    synchronise(bench.device)
    first = time.perf_counter()
    before = _resident()
    taken = bench.measure([loader])
    after = _resident()
    rounds = taken["loader"]
    rate, cpu = Spread.of(rates(rounds)), Spread.of(cpu_times(rounds))
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
    grown = f"{(after - before) / 1e6:+,.1f} MB since the first batch"
    table.rows.append(("resident memory", f"{after / 1e6:,.0f} MB", grown))
    copies: list[float] = []
    if bench.device.type == "cuda":
        copies = _copy_ms(bench.shards, bench.conditions, COPIES)
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


def _copy_ms(shards: ShardSet, conditions: LoaderOptions, batches: int) -> list[float]:
    """Milliseconds that the device takes to copy a float batch, by its own clock; CUDA only."""
    decoder = open_decoder(shards, conditions)
    decoded = decoder.decode(read_batches(shards, conditions))
    pairs = []
    for _ in range(batches):
        batch = next(decoded)
        # The stream has nothing else to do: between the two is the copy alone
        began, ended = (_event() for _ in range(2))
        began.record()
        deliver(batch, conditions.device, None)
        ended.record()
        pairs.append((began, ended))
    torch.cuda.synchronize(conditions.device)
    decoded.close()
    return [began.elapsed_time(ended) for began, ended in pairs]


def _event() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
