"""A webdataset as a source: its tars, and the labels that it keeps beside each image.

Webdataset itself reads tars from beginning to end; packing reads images in the order of a shuffle,
so the tars are listed once, and nothing in them is decoded or run.

Labels are files under an image's key: `000017.cls` has the class of `000017.jpg`, as an integer in
text; `000017.json` may have yes/no attributes, as in `{"Smiling": 1, "Male": 0}`. Other JSON, such
as captions, labels nothing.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np

from pipeline.errors import UserError
from pipeline.packing.sources.base import DamagedError, ImageFiles, Listing, Member, OpenedSource
from pipeline.packing.sources.sieve import is_litter
from pipeline.shards.labels import LabelTable
from pipeline.shards.shard_set import pack_command
from pipeline.shards.tar import MAX_FILE_BYTES

CLASS_NAMES = ("classnames.txt", "classes.txt")
"""Beside the tars, a line a class: the first is the name in the sets of the CLIP benchmark."""

MAX_LABEL_BYTES = 1 << 16

_INTEGER = re.compile(rb"\s*(\d{1,9})\s*")

WITHOUT = "put that right, or pack without labels: --labels none"


class TarsSource(ImageFiles):
    """The images of several tars, in which no name occurs twice."""

    def __init__(self, path: Path, tars: Sequence[OpenedSource]) -> None:
        """Join tars of a folder, or of a pattern of names.

        Raises:
            UserError: two have an image of one name.
        """
        self.path = path
        self._tars = tars
        members: list[Member] = []
        beside: dict[str, Member] = {}
        left_out, links = Counter[str](), Counter[str]()
        for part, tar in enumerate(tars):
            listing = tar.listing
            members += [member._replace(part=part) for member in listing.members]
            beside |= {name: file._replace(part=part) for name, file in listing.beside.items()}
            left_out.update(listing.left_out)
            links.update(listing.links)
        members.sort()
        self._require_own_names(members)
        self.listing = Listing(members, left_out, links, beside=beside)

    def _require_own_names(self, members: Sequence[Member]) -> None:
        for first, second in pairwise(members):
            if first.name == second.name and first.part != second.part:
                one, other = (self._tars[member.part].path for member in (first, second))
                raise UserError(
                    f"SOURCE {self.path}",
                    f"{first.name} in {one.name}, and in {other.name} too",
                    "tars in which every image has a name of its own",
                    "name each tar, and its name will stand before the images': "
                    f"{pack_command(one)} {other} …",
                )

    def labels(self, members: Sequence[Member]) -> LabelTable | None:
        return labels_beside(self, members, self._tars[0].path.parent)

    def where(self, member: Member) -> str:
        return self._tars[member.part].where(member)

    def read(self, member: Member) -> bytes:
        tar = self._tars[member.part]
        try:
            return tar.read(member)
        finally:
            tar.close()  # there may be more of them than a process may hold open


def key_and_extension(name: str) -> tuple[str, str]:
    """Split a name at the first dot behind its last slash, as webdataset does."""
    folder, slash, base = name.rpartition("/")
    stem, _, extension = base.partition(".")
    return f"{folder}{slash}{stem}", extension.lower()


def is_label(name: str) -> bool:
    """Whether a tar's file may label the image beside it."""
    in_litter = any(map(is_litter, name.split("/")))
    return not in_litter and key_and_extension(name)[1] in ("cls", "json")


def labels_beside(source: ImageFiles, members: Sequence[Member], folder: Path) -> LabelTable | None:
    """The labels of some members of a source; None if its files beside them are no labels.

    The folder may hold the classes' names.

    Raises:
        UserError: an image has no label, or a label no image, or a label cannot be read.
    """
    by_kind: dict[str, dict[str, Member]] = {"cls": {}, "json": {}}
    for name, file in source.listing.beside.items():
        key, kind = key_and_extension(name)
        by_kind[kind][key] = file
    if by_kind["cls"]:
        _require_each(source, members, by_kind["cls"], "cls")
        return _classes(source, members, by_kind["cls"], folder)
    found = (by_kind["json"].get(_key(member)) for member in members)
    first = next((file for file in found if file is not None), None)
    if first is None or _attributes(source, first) is None:
        return None
    _require_each(source, members, by_kind["json"], "json")
    return _table_of_attributes(source, members, by_kind["json"])


def _key(member: Member) -> str:
    return key_and_extension(member.name)[0]


def _require_each(
    source: ImageFiles, members: Sequence[Member], files: Mapping[str, Member], kind: str
) -> None:
    """Refuse images without a label, and labels without an image."""
    where, wanted = f"SOURCE {source.path}", f"one .{kind} for each image, under the same key"
    if missing := [member.name for member in members if _key(member) not in files]:
        found = f"{len(missing):,} of {len(members):,} images without a .{kind} beside them"
        raise UserError(where, f"{found}, the first {missing[0]}", wanted, WITHOUT)
    keys = set(map(_key, source.members()))
    if orphans := sorted(file.name for key, file in files.items() if key not in keys):
        found = f"{len(orphans):,} .{kind} without an image beside them, the first {orphans[0]}"
        raise UserError(where, found, wanted, WITHOUT)


def _classes(
    source: ImageFiles, members: Sequence[Member], files: Mapping[str, Member], folder: Path
) -> LabelTable:
    numbers = np.array([_class(source, files[_key(member)]) for member in members], np.int32)
    names = _class_names(folder)
    if names is None:  # those that occur
        present, values = np.unique(numbers, return_inverse=True)
        return LabelTable("classes", tuple(map(str, present)), values.astype(np.int32))
    if len(numbers) and numbers.max() >= len(names):
        raise UserError(
            f"SOURCE {source.path}",
            f"images of class {numbers.max()}, and {len(names)} names of classes beside the tars",
            "a line for each class, the first for class 0",
            "complete or remove " + " or ".join(str(folder / name) for name in CLASS_NAMES),
        )
    return LabelTable("classes", names, numbers)


def _class(source: ImageFiles, file: Member) -> int:
    data = _read(source, file)
    match = _INTEGER.fullmatch(data)
    if match is None:
        found = f"{data[:20]!r}"
        raise UserError(source.where(file), found, "a class: an integer from 0, as text", WITHOUT)
    return int(match[1])


def _class_names(folder: Path) -> tuple[str, ...] | None:
    for path in (folder / name for name in CLASS_NAMES):
        if path.is_file() and path.stat().st_size <= MAX_FILE_BYTES:
            lines = path.read_text(encoding="utf-8-sig", errors="replace").splitlines()
            return tuple(line.strip() for line in lines if line.strip())
    return None


def _table_of_attributes(
    source: ImageFiles, members: Sequence[Member], files: Mapping[str, Member]
) -> LabelTable:
    names: tuple[str, ...] = ()
    rows = []
    for member in members:
        file = files[_key(member)]
        attributes = _attributes(source, file)
        names = names or tuple(attributes or ())
        if attributes is None or attributes.keys() != set(names):
            raise UserError(
                source.where(file),
                "not the attributes that the image before it has",
                f"0 or 1 for each of {', '.join(names):.200}",
                WITHOUT,
            )
        rows.append([attributes[name] for name in names])
    return LabelTable("attributes", names, np.array(rows, bool))


def _attributes(source: ImageFiles, file: Member) -> dict[str, int] | None:
    """What a JSON says, if that is an object of zeros and ones."""
    try:
        found = json.loads(_read(source, file))
    except (ValueError, RecursionError):
        return None
    if not isinstance(found, dict) or not found:
        return None
    are_bits = all(isinstance(value, int) and value in (0, 1) for value in found.values())
    return found if are_bits else None


def _read(source: ImageFiles, file: Member) -> bytes:
    if file.size > MAX_LABEL_BYTES:
        found = f"{file.size:,} bytes"
        raise UserError(source.where(file), found, f"at most {MAX_LABEL_BYTES:,}", WITHOUT)
    try:
        return source.read(file)
    except DamagedError as damage:
        raise UserError(source.where(file), str(damage), "a whole archive", WITHOUT) from None
