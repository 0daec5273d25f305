"""What is to be packed: the options of a set, its plan, and which image goes into which shard."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from itertools import islice

from pipeline.files import digest
from pipeline.packing.sources.base import ImageFiles, Member
from pipeline.shards.labels import LabelTable
from pipeline.shards.manifest import Recipe
from pipeline.shards.order import permutation

PER_SHARD = 4096
"""About 30 MB of CelebA: long sequential reads, and still fifty shards to permute each epoch."""

MAX_REJECTS = 0.01
"""Share of the images that may be rejected before packing is an error."""

PARTS_FORMAT = 1
"""Of the plan and the records of a set that is packed in parts."""

DECODERS = ("pillow", "simplejpeg", "torch")
"""Packages that decode, resize and encode: another version may make other bytes of an image."""

PIECE = 1 << 14
"""Members whose digest is computed at once."""

Entry = tuple[int, Member]
"""A sample's key and where it comes from."""

Plan = dict[str, object]
"""What must be equal for an unfinished set to be resumed, by the names that messages use."""


@dataclass(frozen=True)
class Packing:
    """The options of a set, and how it is made.

    Its bytes depend on `recipe`, `seed` and `per_shard` alone.
    """

    recipe: Recipe = field(default_factory=Recipe)
    seed: int = 0
    per_shard: int = PER_SHARD
    strict: bool = False
    """The first reject is an error."""
    max_rejects: float = MAX_REJECTS
    overwrite: bool = False
    """Build beside a complete set, and replace it when the new one is complete too."""
    workers: int = 1


def plan_of(members: Sequence[Member], packing: Packing, labels: LabelTable | None) -> Plan:
    """All that decides the bytes of a set, as far as it is known before the images are read."""
    content, left = hashlib.sha256(), iter(members)
    while piece := list(islice(left, PIECE)):
        lines = "".join(f"{each.name}\0{each.size}\0{each.crc32}\n" for each in piece)
        content.update(lines.encode(errors="replace"))
    return {
        "images": len(members),
        "contents": content.hexdigest(),
        "recipe": packing.recipe.model_dump(mode="json"),
        "seed": packing.seed,
        "per_shard": packing.per_shard,
        "labels": labels and labels.digest(),
    }


def plan_for_one(plan: Plan, source: ImageFiles) -> Plan:
    """The plan of a set that one machine packs, which sees that the source is the same one."""
    return {"source": source.place(), **plan, "parts": None}


def plan_for_parts(plan: Plan, parts: int) -> Plan:
    """The plan of a set in so many parts. Each machine may have the source at another place."""
    packages = ", ".join(f"{name} {version(name).partition('+')[0]}" for name in DECODERS)
    return {**plan, "parts": parts, "format": PARTS_FORMAT, "packages": packages}


def plan_json(plan: Plan) -> bytes:
    """A plan as it is kept, the same bytes for the same plan."""
    return json.dumps(plan, indent=1).encode()


def plan_digest(plan: Plan) -> str:
    """The SHA-256 of a plan, in hexadecimal."""
    return digest(plan_json(plan))


def differences(before: Plan | None, plan: Plan) -> tuple[str, str] | None:
    """In which options an unfinished set is another than planned.

    Returns:
        What it has and what is planned, in words; None if they are the same, or there is no set.
    """
    if before is None:
        return None
    was, wanted = _single_options(before), _single_options(plan)
    differing = [name for name in wanted if was.get(name) != wanted[name]]
    if not differing:
        return None
    found = ", ".join(f"{name} {was.get(name)!s:.60}" for name in differing)
    return (
        f"an unfinished set with other options: {found}",
        ", ".join(f"{name} {wanted[name]!s:.60}" for name in differing),
    )


def _single_options(plan: Plan) -> Plan:
    """A plan with each of the recipe's options by itself."""
    recipe = plan.get("recipe")
    return {**plan, "recipe": None, **(recipe if isinstance(recipe, dict) else {})}


class Deal(Mapping[int, list[Entry]]):
    """All samples, shuffled and cut into shards: shard k owns places [k·m, (k+1)·m).

    A sample's key is its place among the members, which are sorted by name. A shard's entries are
    made when they are asked for: those of 10⁷ images would take a gigabyte.
    """

    def __init__(self, members: Sequence[Member], seed: int, per_shard: int) -> None:
        self._members, self._per_shard = members, per_shard
        self._order = permutation(len(members), seed)

    def __iter__(self) -> Iterator[int]:
        return iter(range(len(self)))

    def __len__(self) -> int:
        return math.ceil(len(self._members) / self._per_shard)

    def __getitem__(self, number: int) -> list[Entry]:
        first = number * self._per_shard
        ranks = self._order[first : first + self._per_shard].tolist()
        return [(rank, self._members[rank]) for rank in ranks]
