"""CelebA's own lists: which image belongs to which split, and what it shows.

`list_eval_partition` and `list_attr_celeba`, as `.txt` from the authors or as `.csv` from Kaggle,
looked for beside the archive, or in and beside the folder of images.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath

from pipeline.errors import UserError
from pipeline.packing.archives import Member
from pipeline.packing.downloads import PAGE_BYTES, web_page

SPLITS = {"train": "0", "valid": "1", "test": "2"}
"""As numbered in `list_eval_partition`."""

PARTITION, ATTRIBUTES = "list_eval_partition", "list_attr_celeba"

MAX_LIST_BYTES = 1 << 28
"""CelebA's longer list takes 27 MB."""

Rows = dict[str, dict[str, str]]
"""By image file name: value by column name."""


def select(
    members: Sequence[Member], source: Path, split: str | None, where: str | None
) -> list[Member]:
    """Keep the images of a split, and those whose attributes are as asked.

    Args:
        members: of the source; the lists know them by the last part of their names, whatever its
            suffix.
        source: the archive or folder; the lists lie beside it, or in it.
        split: train, valid or test; None for all.
        where: for example "Smiling=1,Male=-1": all must hold. None for no condition.

    Raises:
        UserError: a list is missing or damaged, a name is not in it, or no image is left.
    """
    kept = list(members)
    if split is not None:
        if split not in SPLITS:
            raise UserError(
                f"--split {split}", "an unknown split", "one of " + ", ".join(SPLITS), "correct it"
            )
        rows = _read(source, PARTITION, f"--split {split}")
        kept = _keep(kept, rows, lambda row: row["partition"] == SPLITS[split], f"--split {split}")
    if where is not None:
        rows = _read(source, ATTRIBUTES, f"--where {where}")
        wanted = _conditions(where, next(iter(rows.values())))
        matches = lambda row: all(row[name] == value for name, value in wanted)  # noqa: E731
        kept = _keep(kept, rows, matches, f"--where {where}")
    return kept


def _keep(
    members: list[Member], rows: Rows, matches: Callable[[dict[str, str]], bool], flag: str
) -> list[Member]:
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
    kept = [member for member, row in zip(members, found, strict=True) if row and matches(row)]
    if not kept:
        raise UserError(
            flag,
            f"none of {len(members):,} images",
            "a selection with images in it",
            "loosen it, or leave the option out",
        )
    return kept


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
        if name not in columns:
            raise UserError(
                f"--where {where}",
                f"an attribute {name!r} that the list does not have",
                "some of: " + ", ".join(columns),
                "correct the name",
            )
        conditions.append((name, value))
    return conditions


def _read(source: Path, stem: str, flag: str) -> Rows:
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
