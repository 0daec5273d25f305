"""Several sources as one: each one's name stands before those of its images."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from pipeline.errors import UserError, the_first
from pipeline.images.size import sides
from pipeline.packing.sources.base import ImageFiles, Listing, Member
from pipeline.shards.labels import LabelTable
from pipeline.shards.shard_set import ShardSet


class SeveralSources(ImageFiles):
    """Sources by name: the image `1.jpg` of the source `cats` is called `cats/1.jpg`."""

    def __init__(self, sources: Mapping[str, ImageFiles]) -> None:
        """Join sources.

        Raises:
            UserError: two are shard sets of different recipes.
        """
        self.path = Path(os.path.commonpath([s.path.absolute() for s in sources.values()]))
        self._sources = dict(sources)
        self.shards = self._first_set()
        sizes = [source.pixels for source in sources.values() if source.pixels is not None]
        if len(sizes) == len(sources):  # none is enlarged
            self.pixels = min(sizes, key=lambda size: math.prod(sides(size)))
        members: list[Member] = []
        left_out, links = Counter[str](), Counter[str]()
        for name, source in sources.items():
            members += [m._replace(name=f"{name}/{m.name}") for m in source.members()]
            left_out.update(source.listing.left_out)
            links.update(source.listing.links)
        self.listing = Listing(sorted(members), left_out, links)

    def _first_set(self) -> ShardSet | None:
        """The first of the sources that are shard sets, all of one recipe."""
        sets = [source.shards for source in self._sources.values() if source.shards is not None]
        recipes = {shards.manifest.recipe.describe(): shards.name for shards in sets}
        if len(recipes) > 1:
            (one, first), (other, second), *_ = recipes.items()
            raise UserError(
                f"SOURCE {first} {second}",
                f"shard sets of different recipes: {one}; {other}",
                "sets of one recipe",
                "pack each by itself, or pack the original images instead",
            )
        return sets[0] if sets else None

    def _of(self, member: Member) -> tuple[str, Member]:
        """The name of the source that a member is of, and the member as that source knows it."""
        source, _, name = member.name.partition("/")
        return source, member._replace(name=name)

    def parts(self, members: Sequence[Member]) -> list[tuple[Path, list[Member]]]:
        parts: dict[str, list[Member]] = {name: [] for name in self._sources}
        for member in members:
            parts[self._of(member)[0]].append(member)
        return [(self._sources[name].path, part) for name, part in parts.items()]

    def place(self) -> str:
        return ", ".join(source.place() for source in self._sources.values())

    def where(self, member: Member) -> str:
        name, own = self._of(member)
        return self._sources[name].where(own)

    def read(self, member: Member) -> bytes:
        name, own = self._of(member)
        return self._sources[name].read(own)

    def labels(self, members: Sequence[Member]) -> LabelTable | None:
        """Join the sources' own labels, or call each source a class where all are categories.

        Raises:
            UserError: also if only some sources have labels, or labels of another kind.
        """
        rows: dict[str, list[int]] = {}
        for row, member in enumerate(members):
            rows.setdefault(self._of(member)[0], []).append(row)
        tables = {}
        for name, own in rows.items():
            source = self._sources[name]
            if all(other.category for other in self._sources.values()):
                zeros = np.zeros(len(own), np.int32)
                tables[name] = LabelTable("classes", (str(source.category),), zeros)
            elif table := source.labels([self._of(members[row])[1] for row in own]):
                tables[name] = table
        if not tables:
            return None
        self._require_alike(tables, rows)
        return _joined([(tables[name], own) for name, own in rows.items()], len(members))

    def _require_alike(
        self, tables: Mapping[str, LabelTable], wanted: Mapping[str, object]
    ) -> None:
        first, table = next(iter(tables.items()))
        first_has = f"{first} has {_described(table)}"
        for name in wanted:
            other = tables.get(name)
            if other is None or not _alike(other, table):
                found = _described(other) if other else "no labels"
                raise UserError(
                    f"SOURCE {self._sources[name].path}",
                    f"{name} has {found}, but {first_has}",
                    "the same kind of labels in each source",
                    "pack without labels (--labels none), or label them otherwise",
                )


def _alike(one: LabelTable, other: LabelTable) -> bool:
    """Whether they can be joined: classes may be others, attributes may not."""
    return one.kind == other.kind and (one.kind == "classes" or one.names == other.names)


def _described(table: LabelTable) -> str:
    return f"{len(table.names):,} {table.kind} ({the_first(table.names, 5)})"


def _joined(parts: Sequence[tuple[LabelTable, list[int]]], rows: int) -> LabelTable:
    """One table of all rows; classes of the same name are the same."""
    first = parts[0][0]
    if first.kind == "attributes":
        bits = np.zeros((rows, len(first.names)), bool)
        for table, own in parts:
            bits[own] = table.values
        return LabelTable("attributes", first.names, bits)
    names = list(dict.fromkeys(name for table, _ in parts for name in table.names))
    if all(name.isdecimal() for name in names):
        names.sort(key=int)
    numbers = {name: number for number, name in enumerate(names)}
    values = np.zeros(rows, np.int32)
    for table, own in parts:
        values[own] = np.array([numbers[name] for name in table.names], np.int32)[table.values]
    return LabelTable("classes", tuple(names), values)
