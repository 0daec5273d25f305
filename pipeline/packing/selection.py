"""A choice of a source's images: by sub-folder, or by CelebA's lists of splits and attributes.

The lists are `list_eval_partition` and `list_attr_celeba`, as `.txt` from the authors or as `.csv`
from Kaggle, looked for beside the archive, or in and beside the folder of images.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath

import numpy as np

from pipeline.errors import UserError, the_first
from pipeline.packing.downloads import PAGE_BYTES, web_page
from pipeline.packing.sources.base import Member
from pipeline.shards.labels import LabelTable

SPLITS = {"train": "0", "valid": "1", "test": "2"}
"""As numbered in `list_eval_partition`."""

PARTITION, ATTRIBUTES = "list_eval_partition", "list_attr_celeba"

MAX_LIST_BYTES = 1 << 28
"""CelebA's longer list takes 27 MB."""

Rows = dict[str, dict[str, str]]
"""By image file name: value by column name."""


def in_classes(members: Sequence[Member], classes: Sequence[str], path: Path) -> list[Member]:
    """The members that lie in one of the named sub-folders, at any depth.

    Raises:
        UserError: a sub-folder has no images; the message lists those that have.
    """
    folders = [set(re.split(r"[/\\]", member.name)[:-1]) - {""} for member in members]
    known = sorted(set().union(*folders))
    for wanted in classes:
        if wanted not in known:
            raise UserError(
                f"--classes {wanted}",
                f"no images in a sub-folder of that name in {path}",
                f"some of: {the_first(known, 20)}" if known else "a source with sub-folders",
                "correct the name, or leave --classes out to take every image",
            )
    chosen = set(classes)
    return [member for member, parts in zip(members, folders, strict=True) if parts & chosen]


def in_split(members: list[Member], source: Path, split: str) -> list[Member]:
    """The members of a split, as `list_eval_partition` has it.

    Args:
        members: of the source; the list knows them by the last part of their names, whatever its
            suffix.
        source: the archive or folder; the list lies beside it, or in it.
        split: train, valid or test.

    Raises:
        UserError: the list is missing or damaged, a name is not in it, or no image is left.
    """
    flag = f"--split {split}"
    if split not in SPLITS:
        raise UserError(flag, "an unknown split", "one of " + ", ".join(SPLITS), "correct it")
    rows = _read_list(source, PARTITION, flag)
    return _keep(members, rows, lambda row: row["partition"] == SPLITS[split], flag)


def with_attributes(members: list[Member], source: Path, where: str) -> list[Member]:
    """The members whose attributes in `list_attr_celeba` are all as in "Smiling=1,Male=-1".

    Raises:
        UserError: as `in_split`.
    """
    flag = f"--where {where}"
    rows = _read_list(source, ATTRIBUTES, flag)
    wanted = _conditions(where, next(iter(rows.values())))
    return _keep(members, rows, lambda row: all(row[name] == value for name, value in wanted), flag)


def attributes_of(
    members: Sequence[Member], source: Path, names: Sequence[str], flag: str
) -> LabelTable:
    """The attributes of images, as `list_attr_celeba` has them; all of them, if none are named.

    Raises:
        UserError: as `in_split`.
    """
    rows = _read_list(source, ATTRIBUTES, flag)
    known = list(next(iter(rows.values())))
    for name in names:
        _require_attribute(name, known, flag)
    names = names or known
    found = _rows_of(members, rows, flag)
    others = {row[name] for row in found for name in names} - {"1", "-1"}
    if others:
        raise UserError(
            flag,
            f"the value {min(others)[:40]!r} in CelebA's list",
            "1 or -1",
            "download the list again",
        )
    values = np.array([[row[name] == "1" for name in names] for row in found])
    return LabelTable("attributes", tuple(names), values)


def _require_attribute(name: str, known: Sequence[str], flag: str) -> None:
    if name not in known:
        raise UserError(
            flag,
            f"an attribute {name!r} that the list does not have",
            "some of: " + ", ".join(known),
            "correct the name",
        )


def _keep(
    members: list[Member], rows: Rows, matches: Callable[[dict[str, str]], bool], flag: str
) -> list[Member]:
    found = _rows_of(members, rows, flag)
    kept = [member for member, row in zip(members, found, strict=True) if matches(row)]
    if not kept:
        raise UserError(
            flag,
            f"none of {len(members):,} images",
            "a selection with images in it",
            "loosen it, or leave the option out",
        )
    return kept


def _rows_of(members: Sequence[Member], rows: Rows, flag: str) -> list[dict[str, str]]:
    """The list's row for each image."""
    # CelebA's PNG edition has the numbers of the list, which says .jpg
    stems = {PurePosixPath(name).stem: row for name, row in rows.items()}
    paths = [PurePosixPath(member.name) for member in members]
    found = [rows.get(path.name) or stems.get(path.stem) for path in paths]
    missing = [member.name for member, row in zip(members, found, strict=True) if row is None]
    if missing:
        raise UserError(
            flag,
            f"{len(missing):,} images that the list does not name, the first {missing[0]}",
            "a list that names every image",
            "use the list that came with these images, or leave the option out",
        )
    return [row for row in found if row is not None]


def _conditions(where: str, columns: dict[str, str]) -> list[tuple[str, str]]:
    conditions = []
    for part in where.split(","):
        name, equals, value = (piece.strip() for piece in part.partition("="))
        if not equals or value not in ("1", "-1"):
            raise UserError(
                f"--where {where}",
                f"the condition {part.strip()!r}",
                "conditions of the form Name=1 or Name=-1",
                'for example --where "Smiling=1,Male=-1"',
            )
        _require_attribute(name, list(columns), f"--where {where}")
        conditions.append((name, value))
    return conditions


def _read_list(source: Path, stem: str, flag: str) -> Rows:
    # The name "." does not say which folder it lies in
    folders = list(
        dict.fromkeys(
            [source.parent, source.resolve().parent, *([source] if source.is_dir() else [])]
        )
    )
    tried = [folder / (stem + suffix) for folder in folders for suffix in (".txt", ".csv")]
    path = next((path for path in tried if path.is_file()), None)
    if path is None:
        raise UserError(
            flag,
            f"no {stem}.txt or {stem}.csv",
            "CelebA's list in " + " or ".join(map(str, folders)),
            "put the list there; it is published next to the images",
        )
    try:
        size = path.stat().st_size
        if size > MAX_LIST_BYTES:
            raise ValueError(f"over {MAX_LIST_BYTES:,} bytes")
        data = path.read_bytes()
        if page := web_page(data[:PAGE_BYTES], size):
            raise UserError(path, page[0], "the list as published", page[1])
        lines = data.decode("utf-8-sig").splitlines()
        rows = _from_csv(lines) if path.suffix == ".csv" else _from_txt(lines)
        if not rows:
            raise ValueError("no rows")
        if stem == PARTITION and "partition" not in next(iter(rows.values())):
            raise ValueError("no column named partition")
    except UserError:
        raise
    except (ValueError, StopIteration, csv.Error) as error:
        raise UserError(
            path, f"not CelebA's format ({error})", "the list as published", "download it again"
        ) from None
    return rows


def _from_csv(lines: list[str]) -> Rows:
    table = csv.reader(lines)
    columns = next(table)[1:]
    return dict(_row(columns, row) for row in table if row)


def _from_txt(lines: list[str]) -> Rows:
    """The authors' format; the attributes' has a count and a line of names first."""
    rows = [line.split() for line in lines if line.strip()]
    columns = ["partition"]
    if len(rows) > 1 and len(rows[0]) == 1:
        columns, rows = rows[1], rows[2:]
    return dict(_row(columns, row) for row in rows)


def _row(columns: list[str], row: list[str]) -> tuple[str, dict[str, str]]:
    name, *values = row
    if len(values) != len(columns):
        raise ValueError(f"{len(values)} values for {name:.40}, where {len(columns)} are wanted")
    return name, dict(zip(columns, values, strict=True))
