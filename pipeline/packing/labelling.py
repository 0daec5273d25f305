"""What `--labels` says, turned into the labels of images."""

from __future__ import annotations

import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np

from pipeline.errors import UserError, plain
from pipeline.images.labels import MAX_CLASSES, Kind
from pipeline.packing.label_files import read_label_file
from pipeline.packing.selection import attributes_of
from pipeline.packing.sources.base import ImageFiles, Member
from pipeline.packing.sources.sieve import has_image_suffix
from pipeline.shards.labels import LabelTable, counts_of
from pipeline.shards.manifest import MAX_ATTRIBUTES, MAX_LABEL_NAME

FOLDERS, CELEBA, NONE = "folders", "celeba", "none"
"""Words that `--labels` knows; a file of such a name is written ./folders."""

SPLIT_FOLDERS = frozenset({"train", "training", "val", "valid", "validation", "test", "testing"})
"""Names of folders, in lower case, that hold parts of a set and no classes."""

BINARY = {"0": False, "-1": False, "1": True}
"""Values of attributes."""


class Labelling(NamedTuple):
    """Labels, and what is to be said of them."""

    table: LabelTable
    left_out: tuple[str, ...]
    """Classes that are known, but have no image."""


def label(source: ImageFiles, members: Sequence[Member], asked: str | None) -> Labelling | None:
    """Find the labels of some of a source's images, as `--labels` asks; None for its own, if any.

    Raises:
        UserError: an image has no label, or the labels are none that a set can have.
    """
    if asked == NONE:
        return None
    flag = f"--labels {asked}"
    word, _, names = (asked or "").partition(":")
    table: LabelTable | None
    if asked is None:
        flag, table = f"SOURCE {source.path}", source.labels(members)
    elif asked == FOLDERS:
        table = _by_folder(members, flag)
    elif word == CELEBA:
        chosen = [name.strip() for name in names.split(",")] if ":" in asked else []
        table = attributes_of(members, source.path, chosen, flag)
    else:
        table = _by_file(source, members, Path(asked), flag)
    return table and _checked(table, flag)


def _by_folder(members: Sequence[Member], flag: str) -> LabelTable:
    """Label images by the first folder in which their names differ, splits of a set passed over."""
    paths = [re.split(r"[/\\]", member.name) for member in members]
    folders = [[part for part in path[:-1] if part not in ("", ".")] for path in paths]
    depth = 0
    while True:
        level = {folder[depth] if depth < len(folder) else "" for folder in folders}
        if "" in level or not (
            len(level) == 1 or {each.lower() for each in level} <= SPLIT_FOLDERS
        ):
            break
        depth += 1
    outside = [
        member.name for member, folder in zip(members, folders, strict=True) if len(folder) <= depth
    ]
    if outside:
        others = sorted(level - {""})
        found = f"no folders that tell classes apart: {len(outside):,} images lie in one place"
        if others:
            found = f"{len(outside):,} images beside the folders {', '.join(others[:3])}"
        raise UserError(
            flag,
            f"{found}, the first {outside[0]}",
            "each image in the folder of its class, as in cats/1.jpg and dogs/2.jpg",
            "move the images, take some folders with --classes, or give --labels a file",
        )
    return _of_classes([folder[depth] for folder in folders], level)


def _of_classes(classes: Sequence[str], known: set[str]) -> LabelTable:
    """Number the known classes by their names; if all are numbers, in the order of those."""
    names = sorted(known)
    if all(re.fullmatch(r"-?\d{1,15}", name, re.ASCII) for name in names):
        names.sort(key=int)
    numbers = {name: number for number, name in enumerate(names)}
    values = np.array([numbers[name] for name in classes], np.int32)
    return LabelTable("classes", tuple(names), values)


def _by_file(source: ImageFiles, members: Sequence[Member], path: Path, flag: str) -> LabelTable:
    rows, columns = read_label_file(path, flag)
    everyone = source.members()
    found = _matched([row.name for row in rows], [member.name for member in everyone])
    if columns is None and found[0] is None and not has_image_suffix(rows[0].name):
        columns, rows, found = rows[0].values, rows[1:], found[1:]
    _require_once([row.name for row in rows], flag)
    by_member = {name: row.values for name, row in zip(found, rows, strict=True) if name}
    others = [row.name for row, name in zip(rows, found, strict=True) if name is None]
    missing = [member.name for member in members if member.name not in by_member]
    if others or missing:
        raise _not_covered(len(rows), len(everyone), others, missing, flag)
    values = [by_member[member.name] for member in members]
    if len(values[0]) == 1:
        known = {row.values[0] for row in rows}
        _require_no_measurement(known, flag)
        return _of_classes([value for (value,) in values], known)
    if columns is None:
        columns = tuple(f"attribute-{number}" for number in range(1, len(values[0]) + 1))
    return _of_attributes(columns, values, flag)


def _matched(names: Sequence[str], files: Iterable[str]) -> list[str | None]:
    """The file that each name of a table means, if any.

    It is the file of that very name, or of that name below the folders in which all files lie; or
    else the only one with its last part, or that without a suffix, among those that no other name
    means. Different spellings of one Unicode text are equal.
    """
    found: dict[int, str] = {}
    left = set(files)
    shared = os.path.commonprefix([*map(_whole, left)]).rpartition("/")[0]  # noqa: RUF071  # cut

    def below(file: str) -> str:
        return _whole(file).removeprefix(f"{shared}/")

    for of_name, key in ((_whole, _whole), (_whole, below), (_last, _last), (_stem, _stem)):
        rows: dict[str, list[int]] = {}
        for place, name in enumerate(names):
            if place not in found:
                rows.setdefault(of_name(name), []).append(place)
        if not rows:
            break
        theirs: dict[str, list[str]] = {}
        for file in left:
            theirs.setdefault(key(file), []).append(file)
        for text, places in rows.items():
            if len(places) == len(theirs.get(text, ())) == 1:
                found[places[0]] = theirs[text][0]
        left -= set(found.values())
    return [found.get(place) for place in range(len(names))]


def _whole(name: str) -> str:
    path = name.replace("\\", "/").removeprefix("./")
    return path if path.isascii() else unicodedata.normalize("NFC", path)


def _last(name: str) -> str:
    return _whole(name).rpartition("/")[2]


def _stem(name: str) -> str:
    return PurePosixPath(_last(name)).stem


def _require_once(names: Sequence[str], flag: str) -> None:
    twice = [name for name, count in Counter(map(_whole, names)).items() if count > 1]
    if twice:
        raise UserError(
            flag,
            f"{len(twice):,} images that are named more than once, the first {twice[0]:.200}",
            "one row for each image, with its name in the first column",
            "remove the others; several labels of an image are columns of 0 and 1",
        )


def _not_covered(
    rows: int, images: int, others: list[str], missing: list[str], flag: str
) -> UserError:
    found = []
    if missing:
        found.append(f"{len(missing):,} images without a label, the first {missing[0]:.200}")
    if others:
        found.append(f"{len(others):,} labels without an image, the first {others[0]:.200}")
    return UserError(
        flag,
        f"{rows:,} labels for {images:,} images: {'; '.join(found)}",
        "a label for each image and no others, by names relative to the source, or their last"
        " parts where those are unique",
        "use the file that belongs to these images, or correct the names in it; images without a"
        " label may have a class of their own",
    )


def _require_no_measurement(classes: Iterable[str], flag: str) -> None:
    """Refuse numbers with fractions as classes: each would be one of its own."""
    try:
        numbers = {text: float(text) for text in classes}
    except ValueError:  # some are no numbers: these are names
        return
    fraction = next((text for text, number in numbers.items() if number % 1 != 0), None)
    if fraction is not None:
        raise UserError(
            flag,
            f"numbers that are no classes, for example {fraction:.40}",
            "a name or a whole number for each class",
            "choose the column that holds the class, or sort the numbers into classes",
        )


def _of_attributes(
    names: tuple[str, ...], values: Sequence[tuple[str, ...]], flag: str
) -> LabelTable:
    known = set().union(*values)
    others = known - BINARY.keys()
    if others or {"0", "-1"} <= known:
        found = "both 0 and -1" if not others else f"the value {min(others)[:40]!r}"
        raise UserError(
            flag,
            f"{len(names):,} columns, with {found}",
            "yes/no attributes, each 1 or 0, or each 1 or -1; or one column, the class",
            "leave the name and those columns in the file",
        )
    return LabelTable("attributes", names, np.array([[BINARY[v] for v in row] for row in values]))


def _checked(table: LabelTable, flag: str) -> Labelling:
    """Leave classes without an image out, and refuse names that a set cannot have."""
    counts = counts_of(table.values, len(table.names))
    left_out: tuple[str, ...] = ()
    if table.kind == "classes" and not all(counts):
        left_out = tuple(name for name, count in zip(table.names, counts, strict=True) if not count)
        numbers = (np.cumsum(np.array(counts) > 0) - 1).astype(np.int32)
        names = tuple(name for name, count in zip(table.names, counts, strict=True) if count)
        table = LabelTable(table.kind, names, numbers[table.values])
    _require_few(table, flag)
    for name in table.names:
        if fault := _fault(name, table.kind):
            raise UserError(
                flag,
                f"a name of {'a class' if table.kind == 'classes' else 'an attribute'} {fault}:"
                f" {name[:60]!r}",
                f"a name of 1 to {MAX_LABEL_NAME} characters that can be typed and shown",
                "rename it",
            )
    if len(set(table.names)) != len(table.names):
        twice = next(name for name, count in Counter(table.names).items() if count > 1)
        raise UserError(flag, f"{twice!r} twice", "a name for each label", "rename one of them")
    return Labelling(table, left_out)


def _require_few(table: LabelTable, flag: str) -> None:
    most = MAX_CLASSES if table.kind == "classes" else MAX_ATTRIBUTES
    if len(table.names) > most:
        raise UserError(
            flag,
            f"{len(table.names):,} {table.kind} for {len(table.values):,} images",
            f"at most {most:,}: no net learns so many, and a column of numbers has as many",
            "see whether it is the column that you meant",
        )


def _fault(name: str, kind: Kind) -> str | None:
    """What is wrong with a label's name."""
    if not name.strip():
        return "that is empty"
    if len(name) > MAX_LABEL_NAME:
        return f"of {len(name):,} characters"
    if plain(name) != name:
        return "with characters that cannot be shown"
    if kind == "attributes" and re.search(r"[,=]|^\s|\s$", name):
        return "with a comma, = or space at its ends, which Name=1,Other=0 could not hold"
    return None
