"""The tuner's tables in `dcgan-profile step`: the forms of the layers, the levers of the step."""

from __future__ import annotations

import numpy as np
import torch
from rich.table import Table

from dcgan.profiling.measuring import Spread
from dcgan.profiling.report import SPAN, cells, make_table, times
from dcgan.step.tuner import FormTimes, Found, Lever

TAKEN = "←"
"""Marks a form or a lever that was taken."""


FORM_COLUMNS = ("layer", "product", "form", "ms", SPAN, "GFLOP/s", "")
LEVER_COLUMNS = ("lever", "ms/step", "without", "× as fast", "")


def tabulate(found: Found) -> list[Table]:
    """Make the tables of what the tuner found."""
    forms, levers = map(_form, found.forms), map(_lever, found.levers)
    return [
        make_table([dict.fromkeys(FORM_COLUMNS, "") | row for row in forms], "Forms of the layers"),
        make_table(
            [dict.fromkeys(LEVER_COLUMNS, "") | row for row in levers], "Levers of the step"
        ),
    ]


def conclude(found: Found, device: torch.device) -> str:
    """Return the line about what was chosen, and whether a run takes it."""
    line = f"Tuned in {found.seconds:.0f} s: {found.describe()}."
    if device.type == "cpu":
        line += " On a CPU, runs take the forms of a fixed table, whatever was measured."
    return line


def _form(row: FormTimes) -> dict[str, str]:
    known = {"layer": ", ".join(row.layers), "product": row.product, "form": row.form}
    if row.obstacle is not None:
        return known | {"": row.obstacle}
    spread = Spread.of([1e3 * seconds for seconds in row.seconds])
    rate = row.flops / spread.median / 1e6
    return {
        **known,
        **cells("ms", spread, ".3g" if spread.median < 100 else ",.0f"),
        "GFLOP/s": f"{rate:,.3g}" if rate < 100 else f"{rate:,.0f}",
        "": TAKEN if row.taken else "",
    }


def _lever(lever: Lever) -> dict[str, str]:
    if lever.obstacle is not None:
        return {"lever": lever.name, "": lever.obstacle}
    return {
        "lever": lever.name,
        "ms/step": f"{1e3 * float(np.median(lever.seconds)):,.4g}",
        "without": f"{1e3 * float(np.median(lever.without)):,.4g}",
        "× as fast": times(Spread.of(np.divide(lever.without, lever.seconds))),
        "": TAKEN if lever.taken else "",
    }
