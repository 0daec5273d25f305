"""The tables of a shard set: which samples are in it, and which images are not."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

from pipeline.errors import UserError

MAX_LINE = 1 << 17
"""Characters in a line of a table; file names have at most a few thousand."""


def read_table(path: Path, header: str) -> Iterator[tuple[str, list[str]]]:
    """The first column and the others of `samples.csv` or `rejects.csv`, row by row.

    Raises:
        UserError: it cannot be read, or is another table.
    """
    try:
        with path.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
            rows = csv.reader(iter(lambda: file.readline(MAX_LINE), ""))
            if next(rows, None) != header.split(","):
                raise csv.Error(f"its first line is not {header}")
            for row in rows:
                if row:
                    yield row[0], row[1:]
    except (OSError, csv.Error) as error:
        raise UserError(
            path, f"cannot be read ({error})", "the table that was written", "pack the set again"
        ) from None
