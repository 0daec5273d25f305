"""Files of labels, as tables: CSV, or JSON as StyleGAN's `dataset.json` is."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from pipeline.errors import UserError, first_line
from pipeline.packing.downloads import PAGE_BYTES, is_archive, stand_in

MAX_FILE_BYTES = 1 << 28
"""A million images with forty attributes each take 110 MB."""

DELIMITERS = ",;\t"
"""Of CSV, as spreadsheets write it in different countries."""


class Row(NamedTuple):
    """An image of the file."""

    name: str
    values: tuple[str, ...]


class Table(NamedTuple):
    """What a file of labels holds."""

    rows: list[Row]
    """Each has as many values; the first may be a header."""
    columns: tuple[str, ...] | None = None
    """Names of the values, where the file has them apart."""


class _Object(list[tuple[str, Any]]):
    """An object of JSON, with keys that come twice."""


def read_label_file(path: Path, flag: str) -> Table:
    """Read a file of labels: JSON, if its name ends so, or else CSV.

    Raises:
        UserError: it is not there, too large, or no table.
    """
    wanted = "a CSV or JSON with each image's name and class, or name and several 0/1 columns"
    if not path.is_file():  # a pipe would block, a device never end
        found = "no such file" if not path.exists() else "a folder" if path.is_dir() else "no file"
        remedy = "check the spelling, or see --help for what else --labels takes"
        raise UserError(flag, found, wanted, remedy)
    try:
        size = path.stat().st_size
        if size > MAX_FILE_BYTES:
            found = f"a file of {size:,} bytes"
            remedy = "see whether it is the right file: labels of a million images are smaller"
            raise UserError(flag, found, f"at most {MAX_FILE_BYTES:,} bytes", remedy)
        data = path.read_bytes()
    except OSError as error:
        remedy = "see whose it is with ls -l"
        raise UserError(flag, error.strerror or str(error), wanted, remedy) from None
    of_json = path.suffix.lower() == ".json"
    as_json = of_json and data.lstrip()[:1] in (b"{", b"[")
    if not as_json and (instead := stand_in(data[:PAGE_BYTES], len(data))):
        raise UserError(flag, instead[0], wanted, instead[1])
    try:
        text = data.decode("utf-8-sig")
        table = _from_json(text) if of_json else _from_csv(text)
        if not table.rows:
            raise ValueError("it has no rows")
    except (ValueError, RecursionError, csv.Error) as error:
        found = f"no table of labels ({first_line(error)})"
        remedy = "correct the file"
        if b"\0" in data[:PAGE_BYTES]:
            found, remedy = "no text in UTF-8", "name the file of labels, saved as UTF-8"
            if is_archive(path.name) or data.startswith(b"PK"):
                found, remedy = "an archive", "unpack it, and name the file of labels in it"
        raise UserError(flag, found, wanted, remedy) from None
    return table


def _from_csv(text: str) -> Table:
    first = text.lstrip().partition("\n")[0]
    delimiter = max(DELIMITERS, key=first.count)
    lines = io.StringIO(text, newline="")
    rows: list[Row] = []
    for number, cells in enumerate(csv.reader(lines, delimiter=delimiter, strict=True), 1):
        if not cells:
            continue
        name, *values = map(str.strip, cells)
        if not values:
            raise ValueError(f"line {number:,} has a name alone")
        if rows and len(values) != len(rows[0].values):
            raise ValueError(
                f"line {number:,} has {len(cells):,} cells, where the first has"
                f" {1 + len(rows[0].values):,}"
            )
        rows.append(Row(name, tuple(values)))
    return Table(rows)


def _from_json(text: str) -> Table:
    whole = json.loads(text, object_pairs_hook=_Object, parse_constant=_no_number)
    pairs = whole
    if isinstance(whole, _Object) and "labels" in dict(whole):
        pairs = dict(whole)["labels"]
        if pairs is None:  # as StyleGAN's dataset_tool.py writes of images without
            raise ValueError("its labels are null: the images have none")
    rows: list[Row] = []
    columns: tuple[str, ...] | None = None
    kinds = set()
    for number, pair in enumerate(pairs if isinstance(pairs, list) else (), 1):
        if not isinstance(pair, list | tuple) or len(pair) != 2 or not isinstance(pair[0], str):
            raise ValueError(f"entry {number:,} is no name with a label")
        name, value = pair
        kinds.add(type(value))
        if isinstance(value, _Object):
            columns = columns or tuple(key for key, _ in value)
            value = _in_order(value, columns, number)
        values = tuple(map(_text, value)) if isinstance(value, list) else (_text(value),)
        if len(kinds) > 1 or not values or (rows and len(values) != len(rows[0].values)):
            raise ValueError(f"entry {number:,} has a label of another kind than the first")
        rows.append(Row(name, values))
    return Table(rows, columns)


def _no_number(word: str) -> NoReturn:
    raise ValueError(f"{word} is no label")


def _in_order(value: _Object, columns: tuple[str, ...], number: int) -> list[Any]:
    by_name = dict(value)
    if len(by_name) != len(value) or by_name.keys() != set(columns):
        raise ValueError(f"entry {number:,} has other attributes than the first, or one twice")
    return [by_name[name] for name in columns]


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return str(int(value))
    if isinstance(value, int | str):
        return str(value)
    if isinstance(value, float):
        return str(int(value)) if value in (-1, 0, 1) else str(value)
    raise ValueError(f"a label of type {type(value).__name__}")
