"""The report of a profiling command: on the terminal, as JSON and as a picture."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from rich.console import Console
from rich.table import Table

from dcgan.options import Measuring
from dcgan.rundir.environment import describe_environment
from pipeline.files import replacing, write_whole, writing

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from dcgan.profiling.measuring import Spread

SHOWN_PACKAGES = (
    "torch",
    "torchvision",
    "nvidia-dali-cuda120",
    "nvidia-dali-cuda130",
    "webdataset",
)

LEAST_COLUMNS = 160
"""Columns that tables get at least: a screen of 80 would break their figures."""

SPAN = "lowest – highest"
"""Heading of the column of spreads."""

WIDE = 50
"""Bars that differ by more than this factor are drawn on a logarithmic scale."""


class Bars(NamedTuple):
    """One figure of several things, for the picture."""

    title: str
    unit: str
    values: Mapping[str, Spread]


@dataclass
class Report:
    """What a command found."""

    command: str
    device: torch.device
    facts: dict[str, str]
    """What was measured: a line each, by name. Lines on device and versions come before them."""
    tables: list[Table]
    conclusions: list[str]
    bars: list[Bars]
    data: dict[str, Any]
    """For programs: all rounds are in it, dataclasses too."""


def publish(report: Report, options: Measuring) -> None:
    """Print a report, and write it where the options say.

    Raises:
        UserError: a file cannot be written.
    """
    console = Console(highlight=False, markup=False, soft_wrap=True)
    wide = Console(width=max(console.width, LEAST_COLUMNS), highlight=False, markup=False)
    environment = describe_environment(report.device)
    facts = _describe_machine(environment) | report.facts
    for name, value in facts.items():
        console.print(f"{name:<9}{value}")
    for table in report.tables:
        console.print()
        wide.print(table)
    for place, conclusion in enumerate(report.conclusions):
        console.print(conclusion if place else f"\n{conclusion}")
    if options.json_file is not None:
        found = {
            "command": report.command,
            "facts": facts,
            "conclusions": report.conclusions,
            "options": options.to_json(),
            "environment": environment | {"torch_threads": torch.get_num_threads()},
            **report.data,
        }
        text = json.dumps(found, indent=1, allow_nan=False, default=vars)
        with writing(options.json_file):
            write_whole(options.json_file, text.encode() + b"\n")
        console.print(f"json     {options.json_file}")
    if options.plot_file is not None:
        title = f"dcgan-profile {report.command}: {facts['device']}"
        with writing(options.plot_file):
            plot(title, report.bars, options.plot_file)
        console.print(f"plot     {options.plot_file}")


def _describe_machine(environment: Mapping[str, Any]) -> dict[str, str]:
    packages = environment["packages"]
    versions = [f"{name} {packages[name]}" for name in SHOWN_PACKAGES if name in packages]
    return {
        "device": f"{environment['device']}: {environment['device_name']},"
        f" {environment['cpus']} CPUs",
        "versions": ", ".join([f"Python {environment['python']}", *versions]),
    }


def plot(title: str, panels: Sequence[Bars], path: Path) -> None:
    """Draw horizontal bars with their spread, one panel for each figure."""
    from matplotlib.figure import Figure  # not pyplot: no global state, no display

    heights = [0.9 + 0.32 * len(bars.values) for bars in panels]
    figure = Figure(figsize=(9, sum(heights) + 0.6), layout="constrained")
    figure.suptitle(title, fontsize=9)
    drawn = figure.subplots(len(heights), squeeze=False, height_ratios=heights)[:, 0]
    for axes, bars in zip(drawn, panels, strict=True):
        _draw_bars(axes, bars)
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=130)


def _draw_bars(axes: Axes, bars: Bars) -> None:
    spreads = list(bars.values.values())
    middles = [spread.median for spread in spreads]
    below = [spread.median - spread.low for spread in spreads]
    above = [spread.high - spread.median for spread in spreads]
    drawn = axes.barh(list(bars.values), middles, xerr=(below, above), ecolor="0.3")
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


def make_table(rows: Sequence[Mapping[str, str]], title: str = "") -> Table:
    """Make a table of rows of text by column; the first row has all columns, in order."""
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for place, column in enumerate(rows[0]):
        table.add_column(column, justify="left" if place == 0 else "right", no_wrap=True)
    for row in rows:
        table.add_row(*(row.get(column, "") for column in rows[0]))
    return table


def cells(column: str, spread: Spread, form: str = ",.0f") -> dict[str, str]:
    """Two cells of a row: the median, and the lowest and the highest round."""
    return {column: f"{spread.median:{form}}", SPAN: span(spread, form)}


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
