"""The report of a profiling command: on the terminal, as JSON and as a picture."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table as RichTable

from dcgan.options import Measuring
from pipeline.files import replacing, write_whole, writing

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from dcgan.profiling.measuring import Round, Spread

LEAST_COLUMNS = 160
"""Columns that tables get at least: a screen of 80 would break their figures."""

WIDE = 50
"""Bars that differ by more than this factor are drawn on a logarithmic scale."""


@dataclass
class Table:
    """A heading and rows of text; the first column is the name of what stands in the row."""

    title: str
    columns: Sequence[str]
    rows: list[Sequence[str]] = field(default_factory=list)


@dataclass
class Bars:
    """One figure of several things, for the picture."""

    title: str
    unit: str
    values: Mapping[str, Spread]


@dataclass
class Report:
    """Everything that a command found."""

    command: str
    facts: dict[str, str]
    """What was measured on what: a line each, by name."""
    tables: list[Table]
    conclusions: list[str]
    bars: list[Bars]
    data: dict[str, Any]
    """For programs; all rounds are in it."""


def publish(report: Report, options: Measuring) -> None:
    """Print a report, and write it where the options say.

    Raises:
        UserError: a file cannot be written.
    """
    json_file, plot_file = options.json_file, options.plot_file
    console = Console(highlight=False, markup=False, soft_wrap=True)
    wide = Console(width=max(console.width, LEAST_COLUMNS), highlight=False, markup=False)
    for name, value in report.facts.items():
        console.print(f"{name:<9}{value}")
    for table in report.tables:
        console.print()
        wide.print(_drawn(table))
    console.print()
    for conclusion in report.conclusions:
        console.print(conclusion)
    if json_file is not None:
        text = json.dumps(as_json(report), indent=1, allow_nan=False)
        with writing(json_file):
            write_whole(json_file, text.encode() + b"\n")
        console.print(f"json     {json_file}")
    if plot_file is not None:
        with writing(plot_file):
            plot(report, plot_file)
        console.print(f"plot     {plot_file}")


def as_json(report: Report) -> dict[str, Any]:
    """Plain values: command, facts, conclusions, and the figures."""
    return {
        "command": report.command,
        "facts": report.facts,
        "conclusions": report.conclusions,
        **report.data,
    }


def rounds_as_json(taken: Mapping[str, Sequence[Round]]) -> dict[str, Any]:
    """Every round of every contender, by name."""
    return {name: [asdict(each) for each in rounds] for name, rounds in taken.items()}


def plot(report: Report, path: Path) -> None:
    """Draw horizontal bars with their spread, one panel for each of the report's figures."""
    from matplotlib.figure import Figure  # not pyplot: no global state, no display

    heights = [0.9 + 0.32 * len(bars.values) for bars in report.bars]
    figure = Figure(figsize=(9, sum(heights) + 0.6), layout="constrained")
    panels = figure.subplots(len(heights), squeeze=False, height_ratios=heights)[:, 0]
    figure.suptitle(f"dcgan-profile {report.command}: {report.facts['device']}", fontsize=9)
    for axes, bars in zip(panels, report.bars, strict=True):
        _draw_bars(axes, bars)
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=130)


def _draw_bars(axes: Axes, bars: Bars) -> None:
    names, spreads = list(bars.values), list(bars.values.values())
    middles = [spread.median for spread in spreads]
    below = [spread.median - spread.low for spread in spreads]
    above = [spread.high - spread.median for spread in spreads]
    drawn = axes.barh(names, middles, xerr=(below, above), color="tab:blue", ecolor="0.3")
    labels = [f"{middle:,.0f}" if middle >= 100 else f"{middle:.3g}" for middle in middles]
    axes.bar_label(drawn, labels, padding=4, fontsize=8)
    axes.invert_yaxis()
    lowest = min(spread.low for spread in spreads)
    wide = lowest > 0 and max(middles) > WIDE * min(middles)
    if wide:
        axes.set_xscale("log")
    axes.margins(x=0.12)
    axes.xaxis.set_major_formatter("{x:,.4g}" if max(middles) < 1000 else "{x:,.0f}")
    axes.set_title(bars.title, fontsize=10, loc="left")
    axes.set_xlabel(bars.unit + (", logarithmic" if wide else ""), fontsize=8)
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)


def span(spread: Spread, form: str = ",.0f") -> str:
    """The lowest and the highest round."""
    return f"{spread.low:{form}}–{spread.high:{form}}"


def short(ratio: float) -> str:
    """A ratio, to three figures or so."""
    return f"{ratio:{_form(ratio)}}×"


def times(spread: Spread) -> str:
    """A ratio with its spread."""
    return f"{short(spread.median)} ({span(spread, _form(spread.median))})"


def _form(ratio: float) -> str:
    return ",.2f" if ratio < 10 else ",.1f" if ratio < 100 else ",.0f"


def _drawn(table: Table) -> RichTable:
    drawn = RichTable(title=table.title, title_justify="left", box=None, pad_edge=False)
    for place, column in enumerate(table.columns):
        drawn.add_column(column, justify="left" if place == 0 else "right", no_wrap=True)
    for row in table.rows:
        drawn.add_row(*row)
    return drawn
