"""What people read on the terminal: each number beside that of real images, and what it means."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from dcgan.metrics import HIGHER_IS_BETTER, NAMES
from dcgan.metrics.by_label import OtherLabel
from dcgan.metrics.reals import Measured, Provenance
from dcgan.metrics.swd import Swd
from pipeline.errors import plain
from pipeline.images.size import shown_size

LEAST_COLUMNS = 140
"""Least width of a table in characters: figures must not be broken."""


def print_facts(facts: dict[str, str]) -> None:
    """Print a line each, the name first; facts may have names from a file in them."""
    console = Console(highlight=False, markup=False, soft_wrap=True)
    for name, fact in facts.items():
        console.print(f"{name:<9}{plain(fact)}")


def print_swd(swd: Swd) -> None:
    """Print the distances of a generator with a scale in each column, the floor below."""
    rows = {
        "generated against real": [*swd.scales.values(), swd.value],
        "real against real, the floor": [*swd.floor_scales.values(), swd.floor],
    }
    _print_table(
        f"Sliced Wasserstein distance × 10³, n = {swd.n:,}",
        ["", *map(shown_size, swd.scales), "mean"],
        [[name, *(f"{value:.2f}" for value in values)] for name, values in rows.items()],
    )


def print_rest(measured: list[Measured]) -> None:
    """Print the other numbers, each beside that of real images, and what it means."""
    rows = [
        [_name(each.metric), f"{each.value:.4g}", f"{each.floor:.4g}", f"{each.n:,}"]
        for each in measured
    ]
    if not rows:
        return
    _print_table("Other numbers", ["", "generated", "real", "n"], rows)
    notes: dict[str, list[str]] = {}
    for each in measured:
        notes.setdefault(_note(each.source), []).append(NAMES[each.metric])
    print_lines = Console(highlight=False, markup=False, soft_wrap=True).print
    for note, names in notes.items():
        print_lines(f"{', '.join(names)}: {note}")


def print_by_label(rows: list[list[Measured]]) -> None:
    """Print a line for each label: each number, and in brackets that of real images."""
    metrics = dict.fromkeys(each.metric for row in rows for each in row)
    head = ["", "n", *map(_name, metrics)]
    cells = []
    for row in rows:
        found = {each.metric: _of_label(each) for each in row}
        name, n = plain(row[0].label or ""), f"{row[0].n:,}"
        cells.append([name, n, *(found.get(metric, "") for metric in metrics)])
    if cells:
        _print_table("By label; in brackets, real against real", head, cells)


def _of_label(each: Measured) -> str:
    beside = f" {plain(each.other)}" if isinstance(each, OtherLabel) else ""
    return f"{each.value:.4g} ({each.floor:.4g}){beside}"


def _name(metric: str) -> str:
    return NAMES[metric] + (", higher is better" if metric in HIGHER_IS_BETTER else "")


def _note(source: Provenance) -> str:
    if source.digest is None:
        return "as a multiple of real images'; below 1: blur, near 0: copies"
    known = "published" if source.comparable else "unknown, not comparable with published numbers"
    net = source.extractor.partition(",")[0]
    return f"{net}, weights {source.digest[:8]}: {known}"


def _print_table(title: str, head: list[str], rows: list[list[str]]) -> None:
    table = Table(box=None, pad_edge=False)
    for name in head:
        table.add_column(name, justify="right" if name else "left", no_wrap=True)
    for cells in rows:
        table.add_row(*cells)
    console = Console(highlight=False, markup=False, soft_wrap=True)
    wide = Console(width=max(console.width, LEAST_COLUMNS), highlight=False, markup=False)
    console.print(f"\n{title}")
    wide.print(table)
