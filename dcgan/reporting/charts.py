"""Figures for plotly's script, as plain values; colours are names of the page's own palette."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from dcgan.reporting.read import Alarm, Curve, Metric, RunRecord
from dcgan.reporting.words import label

Figure = dict[str, Any]
Trace = dict[str, Any]

MOST_POINTS = 2_000
"""Of one curve: more than a screen has columns."""

MOST_ALARMS = 100
"""Marked in a chart."""

DASHES = ("solid", "dash", "dot", "dashdot")

COLOURS = tuple(f"--series-{place}" for place in range(1, 7))
"""Style sheet variables: Okabe and Ito's colours (Color Universal Design, 2008), which
colour-blind readers tell apart; the page lightens them in dark mode."""


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
    in_legend: bool = True

    def trace(self, panel: int) -> Trace:
        """For plotly, thinned."""
        kept = thin(self.y, MOST_POINTS)
        width = 1 if self.faint else 2
        # Plotly takes text for HTML, and would draw a link
        name = html.escape(label(self.name), quote=False)
        return {
            "type": "scatter",
            "mode": "lines+markers" if self.markers else "lines",
            "name": name,
            "legendgroup": self.name,
            "showlegend": self.in_legend and not self.faint,
            "hoverinfo": "skip" if self.faint else "all",
            "opacity": 0.3 if self.faint else 1,
            "line": {"color": self.colour, "width": width, "dash": self.dash},
            "x": numbers(self.x[kept]),
            "y": numbers(self.y[kept]),
            "yaxis": "y" if panel == 1 else f"y{panel}",
        }


@dataclass(frozen=True)
class Panel:
    """Axes with a title, and the curves on them."""

    title: str
    lines: Sequence[Line]
    range: tuple[float, float] | None = None


def thin(values: Curve, most: int) -> npt.NDArray[np.intp]:
    """Choose which points of a long curve to draw: of each stretch the lowest and the highest.

    Args:
        values: (N,); those that are not finite count only where a stretch has no others.
        most: points to keep, even and at least 4.

    Returns:
        (M,) indices, increasing, M ≤ `most`; the first and the last point are among them.
    """
    if len(values) <= most:
        return np.arange(len(values))
    stretches = np.array_split(np.arange(1, len(values) - 1), most // 2 - 1)
    kept = [0, len(values) - 1]
    for stretch in stretches:
        finite = stretch[np.isfinite(values[stretch])]
        of = finite if finite.size else stretch[:1]
        kept += [int(of[values[of].argmin()]), int(of[values[of].argmax()])]
    return np.unique(kept)


def running_mean(values: Curve, window: int) -> Curve:
    """Means over windows centred on each point, shorter at both ends.

    Args:
        values: (N,); those that are not finite are left out, and a window of nothing else is nan.
        window: points, odd.
    """
    finite = np.isfinite(values)
    half = window // 2
    sums, counts = (
        np.concatenate([[0.0], np.cumsum(each)]) for each in (np.where(finite, values, 0), finite)
    )
    places = np.arange(len(values))
    first, last = np.maximum(places - half, 0), np.minimum(places + half + 1, len(values))
    held = counts[last] - counts[first]
    means = (sums[last] - sums[first]) / np.maximum(held, 1)
    return np.where(held > 0, means, np.nan)


def numbers(values: Curve) -> list[float | None]:
    """As JSON has them, five significant figures; None where not finite."""
    return [
        (int(value) if value == int(value) and abs(value) < 1e15 else float(f"{value:.5g}"))
        if np.isfinite(value)
        else None
        for value in values.tolist()
    ]


def figure(panels: Sequence[Panel], x_title: str, alarms: Sequence[Alarm] = ()) -> Figure:
    """Panels one above the other on one horizontal axis."""
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
    data = []
    for place, panel in enumerate(panels, start=1):
        top = 1 - (place - 1) * (tall + gap)
        name = "yaxis" if place == 1 else f"yaxis{place}"
        layout[name] = {"domain": [max(0.0, top - tall), top], "rangemode": "tozero"}
        if panel.range is not None:
            layout[name]["range"] = list(panel.range)
        layout["annotations"].append(_title(panel.title, top))
        data += [line.trace(place) for line in panel.lines]
    return {"data": data, "layout": layout}


def _title(text: str, top: float) -> Figure:
    return {
        "text": text,
        "showarrow": False,
        "xref": "paper",
        "yref": "paper",
        "x": 0,
        "y": top,
        "xanchor": "left",
        "yanchor": "bottom",
    }


def _mark(alarm: Alarm) -> Figure:
    return {
        "type": "line",
        "xref": "x",
        "yref": "paper",
        "y0": 0,
        "y1": 1,
        "x0": alarm.step,
        "x1": alarm.step,
        "line": {"color": "--alarm", "width": 1, "dash": "dot"},
    }


def _window(length: int) -> int:
    """A fiftieth of the run, odd, as in `losses.png`: so that the trend shows."""
    return length // 50 // 2 * 2 + 1


def curve(record: RunRecord, name: str) -> tuple[Curve, Curve]:
    """Steps and values: of every step, or where those are lost, of the ticks."""
    if record.steps.size:
        return record.steps, record.curves[name]
    return record.of_ticks("step"), record.of_ticks(name)


def _both(record: RunRecord, name: str, label: str, colour: str) -> list[Line]:
    steps, values = curve(record, name)
    mean = running_mean(values, _window(len(values)))
    raw = [Line(steps, values, label, colour, faint=True)] if len(values) > 50 else []
    return [*raw, Line(steps, mean, label, colour)]


def losses(record: RunRecord) -> Figure:
    """Both losses against the step; each step faint, running means strong."""
    lines = _both(record, "loss_d", "Loss_D", COLOURS[0])
    lines += _both(record, "loss_g", "Loss_G", COLOURS[1])
    return figure([Panel("loss", lines)], "step", record.alarms)


def judgements(record: RunRecord) -> Figure:
    """What D makes of real and of generated images, against the step."""
    lines = _both(record, "d_x", "D(x)", COLOURS[2])
    lines += _both(record, "d_gz1", "D(G(z)) before", COLOURS[1])
    lines += _both(record, "d_gz2", "D(G(z)) after", COLOURS[3])
    panel = Panel("probability of being real", lines, (0.0, 1.02))
    return figure([panel], "step", record.alarms)


PACE = (
    ("img_per_s", "images per second"),
    ("step_ms", "milliseconds per step"),
    ("data_wait_pct", "data wait, % of the time"),
)


def pace(record: RunRecord) -> Figure:
    """Throughput and data wait, a point a tick."""
    steps = record.of_ticks("step")
    panels = [
        Panel(title, [Line(steps, record.of_ticks(name), title, colour, in_legend=False)])
        for (name, title), colour in zip(PACE, COLOURS, strict=False)
    ]
    return figure(panels, "step")


def swd(measured: Sequence[Metric]) -> Figure:
    """Sliced Wasserstein distance against images seen, a curve a net, with its floor."""
    lines = []
    for place, net in enumerate(dict.fromkeys(each.net for each in measured)):
        rows = [each for each in measured if each.net == net]
        nimg = np.array([row.nimg for row in rows], dtype=np.float64)
        values = np.array([row.value for row in rows])
        floors = np.array([np.nan if row.floor is None else row.floor for row in rows])
        colour = COLOURS[place % len(COLOURS)]
        lines.append(Line(nimg, values, net or "SWD", colour, markers=True))
        if np.isfinite(floors).any():
            name = f"{net} floor".strip()
            lines.append(Line(nimg, floors, name, colour, dash="dash"))
    return figure([Panel("SWD, less is better", lines)], "images seen")


def compared(
    records: Sequence[RunRecord], panels: Sequence[tuple[str, str]], of_ticks: bool
) -> Figure:
    """Runs' curves over each other, against images seen: batch sizes may differ.

    Args:
        records: at most `len(COLOURS) * len(DASHES)`.
        panels: column and title of each.
        of_ticks: take them as they stand in `stats.jsonl`, and not as running means.
    """
    drawn = [_panel(records, name, title, of_ticks) for name, title in panels]
    first, *others = drawn
    quiet = [Panel(p.title, [_unnamed(line) for line in p.lines], p.range) for p in others]
    return figure([first, *quiet], "images seen")


def _unnamed(line: Line) -> Line:
    return Line(line.x, line.y, line.name, line.colour, dash=line.dash, in_legend=False)


def _panel(records: Sequence[RunRecord], name: str, title: str, of_ticks: bool) -> Panel:
    lines = []
    for place, record in enumerate(records):
        colour, dash = look(place)
        if of_ticks:
            x, y = record.of_ticks("nimg"), record.of_ticks(name)
        else:
            x, y = curve(record, name)
            x, y = x * (record.images_per_step or np.nan), running_mean(y, _window(len(y)))
        lines.append(Line(x, y, record.name, colour, dash=dash))
    return Panel(title, lines, (0.0, 1.02) if name.startswith("d_") else None)


def compared_swd(records: Sequence[RunRecord]) -> Figure:
    """Each run's SWD against images seen."""
    lines = []
    for place, record in enumerate(records):
        colour, dash = look(place)
        rows = record.measured("swd")
        nimg = np.array([row.nimg for row in rows], dtype=np.float64)
        values = np.array([row.value for row in rows])
        lines.append(Line(nimg, values, record.name, colour, dash=dash, markers=True))
    return figure([Panel("SWD, less is better", lines)], "images seen")


def look(place: int) -> tuple[str, str]:
    """Colour and dashes of the run at this place; none two are alike."""
    return COLOURS[place % len(COLOURS)], DASHES[place // len(COLOURS)]
