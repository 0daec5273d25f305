"""The tuner's tables in `dcgan-profile step`: the forms of the layers, the levers of the step."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from rich.table import Table

from dcgan.profiling.measuring import Spread
from dcgan.profiling.report import SPAN, cells, make_table, times
from dcgan.step.tuner import Found, Race

TAKEN = "←"
"""Marks a form or a lever that was taken."""


FORM_COLUMNS = ("layer", "product", "form", "ms", SPAN, "GFLOP/s", "")
LEVER_COLUMNS = ("lever", "ms/step", "without", "× as fast", "")


def tabulate(found: Found) -> list[Table]:
    """Make the tables of what the tuner found."""
    forms = [dict.fromkeys(FORM_COLUMNS, "") | row for race in found.forms for row in _forms(race)]
    levers = [dict.fromkeys(LEVER_COLUMNS, "") | _lever(race) for race in found.levers]
    return [make_table(forms, "Forms of the layers"), make_table(levers, "Levers of the step")]


def conclude(found: Found, device: torch.device) -> str:
    """Return the line about what was chosen, and whether a run takes it."""
    line = f"Tuned in {found.seconds:.0f} s: {found.describe()}."
    if device.type == "cpu":
        line += " On a CPU, runs take the forms of a fixed table, whatever was measured."
    return line


def _forms(race: Race) -> Iterator[dict[str, str]]:
    for each in race.candidates:
        known = {"layer": ", ".join(race.layers), "product": race.product, "form": each.name}
        if each.obstacle is not None:
            yield known | {"": each.obstacle}
            continue
        spread = Spread.of([1e3 * seconds for seconds in each.seconds])
        rate = race.flops / spread.median / 1e6
        yield {
            **known,
            **cells("ms", spread, ".3g" if spread.median < 100 else ",.0f"),
            "GFLOP/s": f"{rate:,.3g}" if rate < 100 else f"{rate:,.0f}",
            "": TAKEN if each.name == race.taken else "",
        }


def _lever(race: Race) -> dict[str, str]:
    without, lever = race.candidates
    if lever.obstacle is not None:
        return {"lever": lever.name, "": lever.obstacle}
    pairs = zip(without.seconds, lever.seconds, strict=True)
    return {
        "lever": lever.name,
        "ms/step": f"{1e3 * float(np.median(lever.seconds)):,.4g}",
        "without": f"{1e3 * float(np.median(without.seconds)):,.4g}",
        "× as fast": times(Spread.of([before / after for before, after in pairs])),
        "": TAKEN if lever.name == race.taken else "",
    }
