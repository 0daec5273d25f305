"""Figures for plotly's script, as plain values; colours are names of the page's own palette."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dcgan.reporting.read import Alarm, Metric, RunRecord
from dcgan.reporting.words import label
from dcgan.rundir.curves import Curve, running_mean, thin

Figure = dict[str, Any]

MOST_ALARMS = 100
"""Marked in a chart."""

DASHES = ("solid", "dash", "dot", "dashdot")

COLOURS = tuple(f"--series-{place}" for place in range(1, 7))
"""Style sheet variables: Okabe and Ito's colours (Color Universal Design, 2008), which
colour-blind readers tell apart; the page lightens them in dark mode."""

LOSS_PANELS = (("loss_d", "Loss_D"), ("loss_g", "Loss_G"))
"""Columns and titles of a comparison's panels."""
PROBABILITY_PANELS = (("d_x", "D(x)"), ("d_gz1", "D(G(z)) before D's update"))
PACE_PANELS = (("img_per_s", "images per second"), ("data_wait_pct", "data wait, %"))


@dataclass(frozen=True)
class Line:
    """One curve: its values, and how it looks."""

    x: Curve
    y: Curve
    name: str
    colour: str
    faint: bool = False
    dash: str = "solid"
    markers: bool = False


@dataclass(frozen=True)
class Panel:
    """Axes with a title, and the curves on them."""

    title: str
    lines: Sequence[Line]
    range: tuple[float, float] | None = None


def figure(
    panels: Sequence[Panel], x_title: str, alarms: Sequence[Alarm] = (), legend: bool = True
) -> Figure:
    """Draw panels one above the other on one horizontal axis; a legend has each name once."""
    gap = 0.11
    tall = (1 - gap * (len(panels) - 1)) / len(panels)
    layout: Figure = {
        "height": 150 + (250 if len(panels) == 1 else 150 * len(panels)),
        "xaxis": {
            "title": {"text": x_title},
            "anchor": f"y{len(panels)}" if len(panels) > 1 else "y",
        },
        "annotations": [],
        "shapes": [_mark(alarm) for alarm in alarms[:MOST_ALARMS]],
    }
    data: list[Figure] = []
    named = set[str]()
    for place, panel in enumerate(panels, start=1):
        top = 1 - (place - 1) * (tall + gap)
        axis = "" if place == 1 else str(place)
        layout[f"yaxis{axis}"] = {"domain": [max(0.0, top - tall), top], "rangemode": "tozero"}
        if panel.range is not None:
            layout[f"yaxis{axis}"]["range"] = list(panel.range)
        layout["annotations"].append(_title(panel.title, top))
        for line in panel.lines:
            in_legend = legend and not line.faint and line.name not in named
            data.append(_trace(line) | {"yaxis": f"y{axis}", "showlegend": in_legend})
            named |= {line.name} if in_legend else set()
    return {"data": data, "layout": layout}


def _trace(line: Line) -> Figure:
    """A curve for plotly, thinned."""
    kept = thin(line.y)
    return {
        "type": "scatter",
        "mode": "lines+markers" if line.markers else "lines",
        # Plotly takes text for HTML, and would draw a link
        "name": html.escape(label(line.name), quote=False),
        "legendgroup": line.name,
        "hoverinfo": "skip" if line.faint else "all",
        "opacity": 0.3 if line.faint else 1,
        "line": {"color": line.colour, "width": 1 if line.faint else 2, "dash": line.dash},
        "x": numbers(line.x[kept]),
        "y": numbers(line.y[kept]),
    }


def numbers(values: Curve) -> list[float | None]:
    """As JSON has them, five significant figures; None where not finite."""
    return [
        (int(value) if value == int(value) and abs(value) < 1e15 else float(f"{value:.5g}"))
        if np.isfinite(value)
        else None
        for value in values.tolist()
    ]


def _title(text: str, top: float) -> Figure:
    place = {"xref": "paper", "yref": "paper", "x": 0, "y": top}
    return {"text": text, "showarrow": False, "xanchor": "left", "yanchor": "bottom", **place}


def _mark(alarm: Alarm) -> Figure:
    place = {"xref": "x", "yref": "paper", "x0": alarm.step, "x1": alarm.step, "y0": 0, "y1": 1}
    return {"type": "line", "line": {"color": "--alarm", "width": 1, "dash": "dot"}, **place}


def losses(record: RunRecord) -> Figure:
    """Both losses against the step; each step faint, running means strong."""
    lines = _both(record, "loss_d", "Loss_D", COLOURS[0])
    lines += _both(record, "loss_g", "Loss_G", COLOURS[1])
    return figure([Panel("loss", lines)], "step", record.alarms)


def probabilities(record: RunRecord) -> Figure:
    """D's probabilities for real and for generated images, against the step."""
    lines = _both(record, "d_x", "D(x)", COLOURS[2])
    lines += _both(record, "d_gz1", "D(G(z)) before", COLOURS[1])
    lines += _both(record, "d_gz2", "D(G(z)) after", COLOURS[3])
    panel = Panel("probability of being real", lines, (0.0, 1.02))
    return figure([panel], "step", record.alarms)


def _both(record: RunRecord, name: str, title: str, colour: str) -> list[Line]:
    steps, values = _curve(record, name)
    places, means = running_mean(values)
    raw = [Line(steps, values, title, colour, faint=True)] if len(values) > 50 else []
    return [*raw, Line(steps[places], means, title, colour)]


def _curve(record: RunRecord, name: str) -> tuple[Curve, Curve]:
    """Steps and values: of every step, or where those are lost, of the ticks."""
    if record.steps.size:
        return record.steps, record.curves[name]
    return record.of_ticks("step"), record.of_ticks(name)


def pace(record: RunRecord) -> Figure:
    """Throughput and data wait, a point a tick."""
    columns = (
        ("img_per_s", "images per second"),
        ("step_ms", "milliseconds per step"),
        ("data_wait_pct", "data wait, % of the time"),
    )
    steps = record.of_ticks("step")
    panels = [
        Panel(title, [Line(steps, record.of_ticks(name), title, colour)])
        for (name, title), colour in zip(columns, COLOURS, strict=False)
    ]
    return figure(panels, "step", legend=False)


def swd(measured: Sequence[Metric]) -> Figure:
    """Sliced Wasserstein distance against images seen, a curve a net, with its floor."""
    lines = []
    for place, net in enumerate(dict.fromkeys(each.net for each in measured)):
        rows = [each for each in measured if each.net == net]
        line = _swd_line(rows, net or "SWD", COLOURS[place % len(COLOURS)])
        floors = np.array([np.nan if row.floor is None else row.floor for row in rows])
        lines.append(line)
        if np.isfinite(floors).any():
            lines.append(Line(line.x, floors, f"{net} floor".strip(), line.colour, dash="dash"))
    return figure([Panel("SWD, less is better", lines)], "images seen")


def _swd_line(rows: Sequence[Metric], name: str, colour: str, dash: str = "solid") -> Line:
    nimg = np.array([row.nimg for row in rows], dtype=np.float64)
    values = np.array([row.value for row in rows])
    return Line(nimg, values, name, colour, dash=dash, markers=True)


def compared(records: Sequence[RunRecord], panels: Sequence[tuple[str, str]]) -> Figure:
    """Draw runs' curves over each other, against images seen: batch sizes may differ.

    Args:
        records: at most `len(COLOURS) * len(DASHES)`.
        panels: column and title of each; columns that stand in `stats.jsonl` alone are drawn as
            they are, the others as running means.
    """
    return figure(
        [
            Panel(
                title,
                [_compared_line(record, name, place) for place, record in enumerate(records)],
                (0.0, 1.02) if name.startswith("d_") else None,
            )
            for name, title in panels
        ],
        "images seen",
    )


def _compared_line(record: RunRecord, name: str, place: int) -> Line:
    colour, dash = look(place)
    if name not in record.curves:
        return Line(record.of_ticks("nimg"), record.of_ticks(name), record.name, colour, dash=dash)
    steps, values = _curve(record, name)
    places, means = running_mean(values)
    nimg = steps[places] * (record.images_per_step or np.nan)
    return Line(nimg, means, record.name, colour, dash=dash)


def compared_swd(records: Sequence[RunRecord]) -> Figure:
    """Draw each run's SWD against images seen."""
    lines = [
        _swd_line(record.measured("swd"), record.name, *look(place))
        for place, record in enumerate(records)
    ]
    return figure([Panel("SWD, less is better", lines)], "images seen")


def look(place: int) -> tuple[str, str]:
    """Colour and dashes of the run at this place; none two are alike."""
    return COLOURS[place % len(COLOURS)], DASHES[place // len(COLOURS)]
