"""Seeds as people write them: lists and ranges, stops of a walk, cells of a grid."""

from __future__ import annotations

import re
from collections.abc import Sequence

from dcgan.sampling.pictures import COLUMNS, ROWS
from pipeline.errors import UserError

MAX_SEED = 2**63 - 1
"""As of `dcgan-train --seed`; torch's generators take no more than twice that."""


def parse_seeds(text: str) -> list[range]:
    """Read `3,7,10-12`.

    Returns:
        Ranges in the order given, none of them empty, however long.

    Raises:
        UserError: it is not of that form.
    """
    return [_range(part.strip(), text) for part in text.split(",")]


def told(seeds: Sequence[range]) -> str:
    """As `parse_seeds` reads them."""
    return ",".join(
        f"{run[0]}-{run[-1]}" if run.stop - run.start > 1 else f"{run[0]}" for run in seeds
    )


def count(seeds: Sequence[range]) -> int:
    """How many; `len` is too small for the longest."""
    return sum(run.stop - run.start for run in seeds)


def parse_stops(text: str) -> list[int]:
    """Read `12:34:56`.

    Raises:
        UserError: it is not of that form.
    """
    parts = text.split(":")
    seeds = [int(part) for part in parts if re.fullmatch(r"\s*\d{1,19}\s*", part, re.ASCII)]
    if len(seeds) < max(2, len(parts)) or max(seeds) > MAX_SEED:
        raise UserError(
            f"--interpolate {text}",
            "no walk from seed to seed",
            "two seeds or more, below 2^63, with colons between",
            "for example --interpolate 12:34",
        )
    return seeds


def seed_in(cell: str) -> int:
    """Name the seed in `row,column` of a training grid, both from 0.

    Raises:
        UserError: there is no such cell.
    """
    found = re.fullmatch(r"\s*(\d+)\s*,\s*(\d+)\s*", cell, re.ASCII)
    row, column = (int(found[1]), int(found[2])) if found else (ROWS, COLUMNS)
    if row >= ROWS or column >= COLUMNS:
        raise UserError(
            f"--cell {cell}",
            "no cell of a training grid",
            f"row,column from 0,0 to {ROWS - 1},{COLUMNS - 1}",
            "count both from 0: --cell 1,2 is the third image of the second row",
        )
    return row * COLUMNS + column


def _range(part: str, text: str) -> range:
    found = re.fullmatch(r"(\d{1,19})(?:-(\d{1,19}))?", part, re.ASCII)
    first, last = (int(found[1]), int(found[2] or found[1])) if found else (1, 0)
    if first > last or last > MAX_SEED:
        raise UserError(
            f"--seeds {text}",
            f"{part!r} among them",
            "seeds and ranges from low to high, from 0 and below 2^63, with commas between",
            "for example --seeds 0-63 or --seeds 3,7,10-12",
        )
    return range(first, last + 1)
