"""What a long run is held against: memory, file handles, threads, pace and files."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

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


@dataclass(frozen=True)
class Sample:
    """The process at one moment."""

    step: int
    """Of the last tick that it has told."""
    resident: int
    """Bytes."""
    files: int
    threads: int
    cpu: float
    """Seconds so far."""


@dataclass(frozen=True)
class Soaked:
    """What a run did and left."""

    steps: int
    """Asked for."""
    seconds: float
    samples: list[Sample]
    ticks: list[dict[str, Any]]
    """Of `stats.jsonl`."""
    losses: Series
    """`losses.csv`, (steps, 6)."""
    folder: int
    """Bytes in the run folder."""
    checkpoints: int
    remains: int
    """Files that were never finished."""


@dataclass(frozen=True)
class Line:
    """One thing that should hold."""

    what: str
    found: str
    limit: str
    holds: bool


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
    yield Line("unfinished files", str(soaked.remains), "none", soaked.remains == 0)


def _process(soaked: Soaked, warm: list[Sample]) -> Iterator[Line]:
    steps = np.array([sample.step for sample in warm], dtype=np.float64)
    resident = np.array([sample.resident for sample in warm], dtype=np.float64)
    at = [resident[0], resident[np.searchsorted(steps, steps[-1] / 2)], resident[-1]]
    slope = theil_sen(steps, resident)
    growth = slope * (steps[-1] - steps[0])
    yield Line(
        "memory when warm, half-way, at the end", ", ".join(_mb(value) for value in at), "", True
    )
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
