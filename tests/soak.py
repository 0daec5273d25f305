"""A long run watched from outside: `python -m tests.soak`, or `make soak`.

So many small steps through `dcgan-train` in each of its ways: from the cache, from the stream, with
labels, from a store, and by two ranks. Pictures, checkpoints, nets of each epoch and events are
included. What should stay flat is held against a limit each, and the command ends with 1 where one
is broken.
"""

from __future__ import annotations

import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import psutil
import typer
from rich.console import Console
from rich.table import Table

from dcgan.rundir.folder import RunFolder
from pipeline.files import PARTIAL
from pipeline.shards.labels import LabelTable
from tests.pictures import numbered_pictures, pack_pictures
from tests.ranks import start
from tests.running import flags, read_losses, read_stats

LOG_EVERY, KEEP = 50, 2

WARM, WARM_STEPS = 0.1, 600
"""Share of the steps that is not judged, and the fewest: caches are filled, libraries loaded, and
the first curves drawn."""

LEAST_SAMPLES = 20
"""Of a run's process; fewer tell no trend."""

MEMORY_GROWTH = 8 << 20
"""Bytes between the warm-up and the end, by the fitted slope: 470 a step over 20,000. Twenty a step
are the losses that the curves are drawn from, and their room doubles now and then."""

SLOWER, MORE_CPU = 1.5, 1.25
"""Last quarter over first, of a step's time and of the CPU time that it takes. Of the former the
fastest tenth of the ticks counts: the others tell of other work on the machine."""

FOLDER_PER_STEP, FOLDER_AT_FIRST = 3_000, 10 << 20
"""Bytes; most of them are the nets of each epoch and the grids, whose numbers are chosen."""

Series = npt.NDArray[np.float64]

STEPS = 20_000
IMAGES = 403
"""An epoch is 100 steps of a batch of 4."""

SMALL: dict[str, Any] = {
    "batch_size": 4,
    "image_size": 32,
    "nz": 8,
    "ngf": 4,
    "ndf": 4,
    "lr": 1e-5,
    "device": "cpu",
    "workers": 1,
    "precision": "fp32",
    "log_every": LOG_EVERY,
    "sample_every": 500,
    "checkpoint_every": 0.1,
    "keep": KEEP,
}
"""A step of milliseconds, a checkpoint every six seconds, and nets that find no time to diverge."""

STORE, RANKS = "from a store", "by two ranks"

WAYS: dict[str, dict[str, Any]] = {
    "from the cache": {"cache": "host"},
    "from the stream": {},
    "with labels": {"conditional": True},
    STORE: {},
    RANKS: {},
}
"""Options, by what they are."""


@dataclass(frozen=True)
class Sample:
    """The process at one moment: memory in bytes, CPU time in seconds."""

    step: int
    resident: int
    files: int
    threads: int
    cpu: float


@dataclass(frozen=True)
class Soaked:
    """What a run did and left: `losses.csv` is (steps, 6), `folder` the bytes of all files."""

    steps: int
    seconds: float
    samples: list[Sample]
    ticks: list[dict[str, Any]]
    losses: Series
    folder: int
    checkpoints: int
    unfinished: int


class Line(NamedTuple):
    """One thing that should hold."""

    what: str
    found: str
    limit: str
    holds: bool


def soak(folder: Path, steps: int, way: str) -> Soaked:
    """Train so many steps in a process of its own, and watch it; of two ranks, the first.

    Args:
        folder: for the set and the run.
        steps: of batches of 4.
        way: one of `WAYS`.

    Raises:
        RuntimeError: the run did not end well.
    """
    shards = folder / "set"
    if not shards.exists():
        kinds = np.arange(IMAGES, dtype=np.int32) % 3
        labels = LabelTable("classes", ("a", "b", "c"), kinds)
        pack_pictures(folder, numbered_pictures(IMAGES), labels, per_shard=64)
    run = RunFolder(folder / f"run-{way.replace(' ', '-')}")
    options: dict[str, Any] = {"shards": shards, "run": run.path, "max_steps": steps}
    options |= {"epochs": steps, "cache": "off", **SMALL, **WAYS[way]}
    if way == STORE:
        options |= {"shards": shards.as_uri(), "shard_cache": folder / "cache"}
    ranks = 2 if way == RANKS else 1
    began = time.monotonic()
    told = folder / f"told-{run.path.name}"
    with told.open("w") as said:
        words = ["-W", "error", "-m", "dcgan.train", *flags(**options)]
        processes = start(ranks, *words, output=said)
        try:
            samples = list(_watch(processes[0], run))
        finally:
            for process in processes:  # they have ended, unless we were interrupted
                process.kill()
            status = max(abs(process.wait()) for process in processes)
    if status != 0:
        raise RuntimeError(f"status {status}: {told.read_text()[-2000:]}")
    files = [path for path in run.path.rglob("*") if path.is_file()]
    return Soaked(
        steps,
        time.monotonic() - began,
        samples,
        read_stats(run),
        read_losses(run),
        sum(path.stat().st_size for path in files),
        len(list(run.checkpoints.glob("*.pt"))),
        sum(path.name.endswith(PARTIAL) for path in files),
    )


def _watch(process: subprocess.Popen[str], run: RunFolder) -> Iterator[Sample]:
    seen = psutil.Process(process.pid)
    while process.poll() is None:
        time.sleep(0.1)
        try:
            with seen.oneshot():
                resident, files = seen.memory_info().rss, seen.num_fds()
                threads, cpu = seen.num_threads(), seen.cpu_times()
        except psutil.Error:  # it has just ended, and nobody has asked how
            continue
        yield Sample(_last_step(run.stats), resident, files, threads, cpu.user + cpu.system)


def _last_step(stats: Path) -> int:
    """From the file's size: all its lines would be read again each time."""
    try:
        with stats.open("rb") as file:
            file.seek(-min(stats.stat().st_size, 1000), 2)
            lines = file.read().decode().splitlines()
        return int(lines[-1].partition('"step":')[2].partition(",")[0])
    except (OSError, IndexError, ValueError):  # not begun, or a line is being written
        return 0


def judged(soaked: Soaked) -> Iterator[Line]:
    """Hold a run against the limits."""
    # After the last step come the animation and other things that are done once
    begin = max(WARM * soaked.steps, WARM_STEPS)
    warm = [each for each in soaked.samples if begin <= each.step < soaked.steps]
    count = len(warm)
    yield Line("samples", f"{count:,}", f"at least {LEAST_SAMPLES}", count >= LEAST_SAMPLES)
    yield from _files(soaked)
    if count < LEAST_SAMPLES:
        return
    yield from _process(soaked, warm)
    yield from _pace(soaked, warm)


def _files(soaked: Soaked) -> Iterator[Line]:
    told = [tick["step"] for tick in soaked.ticks]
    due = list(range(LOG_EVERY, soaked.steps + 1, LOG_EVERY))
    values = [value for tick in soaked.ticks for value in tick.values()]
    finite = all(value is not None and np.isfinite(value) for value in values)
    found = f"{len(told):,}, " + ("finite" if finite else "not all finite")
    whole = told == due and finite
    yield Line("lines of stats.jsonl", found, f"{len(due):,} in order, finite", whole)
    losses = soaked.losses
    rows = np.array_equal(losses[:, 0], np.arange(1, soaked.steps + 1))
    finite = bool(np.isfinite(losses).all())
    found = f"{len(losses):,}, " + ("finite" if finite else "not all finite")
    yield Line("rows of losses.csv", found, f"{soaked.steps:,} in order, finite", rows and finite)
    room = FOLDER_AT_FIRST + FOLDER_PER_STEP * soaked.steps
    yield Line("run folder", _mb(soaked.folder), f"at most {_mb(room)}", soaked.folder <= room)
    kept = soaked.checkpoints
    yield Line("checkpoints at the end", str(kept), f"1 to {KEEP}", 1 <= kept <= KEEP)
    yield Line("unfinished files", str(soaked.unfinished), "none", soaked.unfinished == 0)


def _process(soaked: Soaked, warm: list[Sample]) -> Iterator[Line]:
    steps = np.array([sample.step for sample in warm], dtype=np.float64)
    resident = np.array([sample.resident for sample in warm], dtype=np.float64)
    slope = theil_sen(steps, resident)
    growth = slope * (steps[-1] - steps[0])
    yield Line(
        "memory's slope",
        f"{slope:+.0f} bytes a step",
        f"at most {MEMORY_GROWTH / (steps[-1] - steps[0]):.0f}",
        bool(growth <= MEMORY_GROWTH),
    )
    for what in ("files", "threads"):
        counts = np.array([getattr(sample, what) for sample in warm])
        # Some are open for a moment; those that nobody closes raise the floor
        early, late = (int(np.quantile(part, 0.1)) for part in _ends(counts))
        yield Line(f"open {what}", f"{early} → {late}", "no more than at first", late <= early)


def _pace(soaked: Soaked, warm: list[Sample]) -> Iterator[Line]:
    ticks = [tick for tick in soaked.ticks if tick["step"] > warm[0].step]
    times = np.array([tick["step_ms"] for tick in ticks])
    early, late = (float(np.quantile(part, 0.1)) for part in _ends(times))
    ratio = late / early
    found = f"{early:.2f} → {late:.2f} ms: × {ratio:.2f}"
    yield Line("a step's time", found, f"at most × {SLOWER}", ratio <= SLOWER)
    # With pictures and files
    early, late = (_cpu_a_step(part) for part in _ends(warm))
    ratio = late / early
    found = f"{1e3 * early:.2f} → {1e3 * late:.2f} ms: × {ratio:.2f}"
    yield Line("CPU time a step, all told", found, f"at most × {MORE_CPU}", ratio <= MORE_CPU)


def _cpu_a_step(samples: list[Sample]) -> float:
    first, last = samples[0], samples[-1]
    return (last.cpu - first.cpu) / max(1, last.step - first.step)


def _ends(series: Any) -> tuple[Any, Any]:
    quarter = max(2, len(series) // 4)
    return series[:quarter], series[-quarter:]


def theil_sen(x: Series, y: Series) -> float:
    """The median slope over pairs of points (Sen 1968): a few outliers do not move it."""
    some = np.unique(np.linspace(0, len(x) - 1, 400).astype(int))
    x, y = x[some], y[some]
    one, other = np.triu_indices(len(x), 1)
    apart = x[other] - x[one]
    slopes = (y[other] - y[one])[apart > 0] / apart[apart > 0]
    return float(np.median(slopes))


def _mb(count: float) -> str:
    return f"{count / 1e6:,.0f} MB"


def show(name: str, soaked: Soaked) -> bool:
    """Print a table.

    Returns:
        Whether every limit holds.
    """
    lines = list(judged(soaked))
    title = f"{soaked.steps:,} steps {name}, {soaked.seconds / 60:.1f} minutes"
    table = Table("", "found", "limit", "", title=title)
    for line in lines:
        table.add_row(line.what, line.found, line.limit, "ok" if line.holds else "BROKEN")
    Console(width=100).print(table)
    return all(line.holds for line in lines)


def main(steps: int = STEPS, way: list[str] = [*WAYS]) -> None:  # noqa: B006  # typer's
    """Soak in each way, one after the other."""
    with tempfile.TemporaryDirectory() as folder:
        held = [show(each, soak(Path(folder), steps, each)) for each in way]
    raise typer.Exit(0 if all(held) else 1)


if __name__ == "__main__":
    typer.run(main)
