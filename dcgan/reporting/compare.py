"""Several runs on one page, beside and over each other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dcgan.metrics import NAMES
from dcgan.reporting import charts
from dcgan.reporting.images import Packed
from dcgan.reporting.page import metric_row, render, within_limit
from dcgan.reporting.read import Metric, RunRecord
from dcgan.reporting.words import (
    ABSENT,
    MOST_ROWS,
    count,
    duration,
    number,
    percent,
    plain,
    short,
)

MOST_RUNS = len(charts.COLOURS) * len(charts.DASHES)
"""More curves could not be told apart."""

WIDEST = 80
"""Characters of an option's value: it shares its line with the other runs'."""

DASH_ARRAYS = dict(zip(charts.DASHES, ("none", "9 5", "3 4", "9 4 3 4"), strict=True))


def comparison_page(records: Sequence[RunRecord]) -> str:
    """Write the comparison of 2 to `MOST_RUNS` runs, as HTML."""
    lasts = [next(reversed(record.folder.grids()), None) for record in records]
    values = {
        "summary": _summary(records),
        "options": differing(records),
        "figures": _figures(records),
        "provenance": _provenance(records),
    }
    notes = [f"{record.name}: {note}" for record in records for note in record.notes]

    def page(packed: Packed) -> str:
        runs = [
            {
                "name": short(record.name),
                "colour": place % len(charts.COLOURS) + 1,
                "dash": DASH_ARRAYS[charts.look(place)[1]],
                "picture": packed.pictures.get(last[1]) if last else None,
                "when": f"{last[0]:,} images" if last else "",
            }
            for place, (record, last) in enumerate(zip(records, lasts, strict=True))
        ]
        remarks = [short(note) for note in [*notes, *packed.notes]][:MOST_ROWS]
        return render("compare.html", {**values, "runs": runs, "notes": remarks})

    return within_limit(page, [last[1] for last in lasts if last])


def differing(records: Sequence[RunRecord]) -> list[tuple[str, ...]]:
    """Options in which the runs differ, with each run's value; the run folder itself aside."""
    options: list[dict[str, Any]] = [record.options for record in records]
    names = dict.fromkeys(name for option in options for name in option if name != "run")
    if len({str(each.get("shard_set")) for each in options}) == 1 and "shard_set" in names:
        names.pop("shards", None)  # one set, however it is spelled
    rows = []
    for name in names:
        cells = [short(plain(each[name]), WIDEST) if name in each else ABSENT for each in options]
        # Compared whole: long values may differ only behind the cut
        if any(each.get(name, ABSENT) != options[0].get(name, ABSENT) for each in options):
            rows.append((short(name), *cells))
    return rows[:MOST_ROWS]


def _summary(records: Sequence[RunRecord]) -> list[tuple[str, ...]]:
    rows = {
        "status": [short(record.status, WIDEST) for record in records],
        "images seen": [count(record.nimg) for record in records],
        "steps": [count(record.steps_done) for record in records],
        "time in steps": [duration(record.seconds) for record in records],
        "images a second, median": [number(r.median("img_per_s"), 3) for r in records],
        "data wait, median": [percent(r.median("data_wait_pct")) for r in records],
    }
    for metric in ("swd", "fid"):
        name = NAMES[metric]
        rows[f"last {name}"] = [
            _value(next(reversed(record.measured(metric)), None)) for record in records
        ]
        rows[f"best {name}"] = [_value(record.best(metric)) for record in records]
    return [(name, *cells) for name, cells in rows.items()]


def _value(metric: Metric | None) -> str:
    if metric is None:
        return ABSENT
    return number(metric.value) + ("" if metric.comparable else ", not comparable")


def _figures(records: Sequence[RunRecord]) -> dict[str, charts.Figure]:
    figures = {}
    if any(record.steps.size or record.ticks for record in records):
        figures["losses"] = charts.compared(records, charts.LOSS_PANELS)
        figures["probabilities"] = charts.compared(records, charts.PROBABILITY_PANELS)
    if any(record.ticks for record in records):
        figures["pace"] = charts.compared(records, charts.PACE_PANELS)
    if any(record.measured("swd") for record in records):
        figures["swd"] = charts.compared_swd(records)
    return figures


def _provenance(records: Sequence[RunRecord]) -> list[tuple[str, ...]]:
    """The last value of each metric of each run and label, and how it was made."""
    rows: list[tuple[str, ...]] = []
    for record in records:
        last = {(each.label, each.metric): each for each in record.metrics}
        for metric in sorted(last.values(), key=lambda each: each.label is not None):
            name, nimg, net, value, floor, n, _, *made = metric_row(metric)
            name += "" if metric.label is None else f", {short(metric.label)}"
            how = ", ".join(word for word in (net, *made) if word)
            rows.append((short(record.name), nimg, name, value, floor, n, how))
    return rows[:MOST_ROWS]
