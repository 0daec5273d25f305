"""Several runs on one page, beside and over each other."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dcgan.reporting import charts
from dcgan.reporting.images import Packed
from dcgan.reporting.page import (
    METRIC_NAMES,
    best_of,
    metric_row,
    percent,
    render,
    within_limit,
)
from dcgan.reporting.read import Metric, RunRecord
from dcgan.reporting.words import ABSENT, MOST_ROWS, count, duration, number, plain, short

MOST_RUNS = len(charts.COLOURS) * len(charts.DASHES)
"""Whose curves can still be told apart."""

WIDEST = 80
"""Characters of an option's value: it shares its line with the other runs'."""

SECTIONS = (
    *(("summary", "Summary"), ("options", "Options"), ("samples", "Samples")),
    *(("curves", "Curves"), ("throughput", "Throughput"), ("metrics", "Metrics")),
)

DASH_ARRAYS = dict(zip(charts.DASHES, ("none", "9 5", "3 4", "9 4 3 4"), strict=True))


def comparison_page(records: Sequence[RunRecord], version: str) -> str:
    """The comparison of runs.

    Args:
        records: of 2 to `MOST_RUNS` runs.
        version: of this program, to be named in the page.
    """
    names = [short(record.name) for record in records]
    lasts = [_last_grid(record) for record in records]
    fixed = {
        "title": f"{len(records)} runs compared · DCGAN report",
        "sections": SECTIONS,
        "head": ["", *names],
        "summary": _summary(records),
        "options": differing(records),
        "figures": _figures(records),
        "provenance": _provenance(records),
    }
    said = [f"{record.name}: {note}" for record in records for note in record.notes]

    def page(packed: Packed) -> str:
        runs = [
            _described(name, place, nimg, path, packed)
            for place, (name, (nimg, path)) in enumerate(zip(names, lasts, strict=True))
        ]
        notes = [short(note) for note in [*said, *packed.notes]][:MOST_ROWS]
        return render("compare.html", version, {**fixed, "runs": runs, "notes": notes})

    return within_limit(page, [path for _, path in lasts if path is not None])


def _last_grid(record: RunRecord) -> tuple[int | None, Path | None]:
    grids = record.folder.grids()
    return grids[-1] if grids else (None, None)


def _described(
    name: str, place: int, nimg: int | None, path: Path | None, packed: Packed
) -> dict[str, Any]:
    _, dash = charts.look(place)
    return {
        "name": name,
        "colour": place % len(charts.COLOURS) + 1,
        "dash": DASH_ARRAYS[dash],
        "picture": packed.pictures.get(path) if path is not None else None,
        "when": "" if nimg is None else f"{nimg:,} images",
    }


def differing(records: Sequence[RunRecord]) -> list[tuple[str, ...]]:
    """Options in which the runs differ, with each run's value; the run folder itself aside."""
    options = [record.config for record in records]
    names = dict.fromkeys(name for option in options for name in option if name != "run")
    if len({str(each.get("shard_set")) for each in options}) == 1 and "shard_set" in names:
        names.pop("shards", None)  # one set, however it is spelled
    rows = []
    for name in names:
        cells = [_cut(plain(each[name])) if name in each else ABSENT for each in options]
        # Compared whole: long values may differ only behind the cut
        if any(each.get(name, ABSENT) != options[0].get(name, ABSENT) for each in options):
            rows.append((short(name), *cells))
    return rows[:MOST_ROWS]


def _cut(text: str) -> str:
    return text if len(text) <= WIDEST else text[:WIDEST] + "…"


def _summary(records: Sequence[RunRecord]) -> list[tuple[str, ...]]:
    measures = {
        "status": [_cut(record.status) for record in records],
        "images seen": [count(record.nimg) for record in records],
        "steps": [count(record.steps_done) for record in records],
        "time in steps": [duration(record.seconds) for record in records],
        "images a second, median": [number(r.median("img_per_s"), 3) for r in records],
        "data wait, median": [percent(r.median("data_wait_pct")) for r in records],
    }
    for metric in ("swd", "fid"):
        name = METRIC_NAMES[metric]
        last = [record.measured(metric)[-1:] for record in records]
        measures[f"last {name}"] = [_value(each[0] if each else None) for each in last]
        measures[f"best {name}"] = [_value(best_of(record, metric)) for record in records]
    return [(name, *cells) for name, cells in measures.items()]


def _value(metric: Metric | None) -> str:
    if metric is None:
        return ABSENT
    return number(metric.value) + ("" if metric.comparable else ", not comparable")


def _figures(records: Sequence[RunRecord]) -> dict[str, charts.Figure]:
    figures = {}
    if any(record.steps.size or record.ticks for record in records):
        figures["losses"] = charts.compared(
            records, [("loss_d", "Loss_D"), ("loss_g", "Loss_G")], of_ticks=False
        )
        panels = [("d_x", "D(x)"), ("d_gz1", "D(G(z)) before D's update")]
        figures["judgements"] = charts.compared(records, panels, of_ticks=False)
    if any(record.ticks for record in records):
        panels = [("img_per_s", "images per second"), ("data_wait_pct", "data wait, %")]
        figures["pace"] = charts.compared(records, panels, of_ticks=True)
    if any(record.measured("swd") for record in records):
        figures["swd"] = charts.compared_swd(records)
    return figures


def _provenance(records: Sequence[RunRecord]) -> list[tuple[str, ...]]:
    """The last value of each metric of each run, and how it was made."""
    rows: list[tuple[str, ...]] = []
    for record in records:
        for metric in dict.fromkeys(each.metric for each in record.metrics):
            last = [each for each in record.metrics if each.metric == metric][-1]
            name, nimg, net, value, floor, n, _, *made = metric_row(last)
            how = ", ".join(word for word in (net, *made) if word)
            rows.append((short(record.name), nimg, name, value, floor, n, how))
    return rows[:MOST_ROWS]
