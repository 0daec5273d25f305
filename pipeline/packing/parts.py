"""A set in parts: each packs some of the shards, anywhere and in any order; the finish joins them.

Part k of n has the shards k, k + n, k + 2n, …: so all parts have about as much to do. All compare
their plans, through the folder or the store in which the set is made. A shard and its record are a
function of the plan, so that a part may be repeated, by whomever.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Self

from pipeline.errors import KINDS_SHOWN, UserError, the_first
from pipeline.packing.merge import Packed, merge
from pipeline.packing.outdir import (
    claim,
    empty_progress,
    held_part,
    keep_plan,
    kept_plan,
    swap_in,
)
from pipeline.packing.pack import holding, is_left, plain_faults, write_left
from pipeline.packing.plan import Deal, Entry, Packing, Plan, plan_for_parts, plan_of
from pipeline.packing.shard import ShardRecord, Work, finished
from pipeline.packing.sources.base import ImageFiles, Member
from pipeline.packing.upload import PartUpload
from pipeline.remote.access import Access
from pipeline.remote.address import Address
from pipeline.shards.labels import LabelTable
from pipeline.shards.manifest import MANIFEST

MAX_PARTS = 100_000
"""More are a mistake: a set has no more than a million shards."""


class Part(NamedTuple):
    """One of the parts of a set."""

    number: int
    """From 0, as array jobs count."""
    parts: int

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read K/N.

        Raises:
            UserError: it is none, or K is not below N.
        """
        found = re.fullmatch(r"([0-9]{1,6})/([0-9]{1,6})", text)
        number, parts = map(int, found.groups()) if found else (0, 0)
        if not 0 <= number < parts <= MAX_PARTS:
            raise UserError(
                f"--part {text}",
                "no part of a set",
                f"K/N, with K from 0 to N − 1, and N up to {MAX_PARTS:,}",
                "for the first of three parts, write --part 0/3",
            )
        return cls(number, parts)

    def __str__(self) -> str:
        return f"{self.number}/{self.parts}"


class PartDone(NamedTuple):
    """What came of a part."""

    shards: int
    resumed: int
    """Shards that were finished before."""
    written: int
    """Images that were gone through now."""


@dataclass(frozen=True)
class PartedSet:
    """What all parts of a set have in common; it can be sent to another machine."""

    source: ImageFiles
    out: Path | Address
    packing: Packing
    plan: Plan
    images: int
    """Of all parts."""
    labels: LabelTable | None
    access: Access

    def pack(
        self,
        number: int,
        shards: Mapping[int, list[Entry]],
        progress: Callable[[int, int], None] = lambda done, total: None,
        sent: Callable[[int, int], None] = lambda up, total: None,
    ) -> PartDone:
        """Do what is left of a part; `shards` has its shards, at least.

        Raises:
            HeldError: another process on this machine, or in this folder, packs it.
            UserError: as `pack` does; or the parts' plans differ.
        """
        mine = [each for each in shards if each % self.parts == number]
        if isinstance(self.out, Path):
            with plain_faults(self.out), held_part(self.out, self.plan, number):
                left = self._left(mine, _finished(self.out, mine))
                images = write_left(self._work(self.out), shards, left, "--out", progress)
        else:
            upload = PartUpload(self.out, self.access, sent, f"part {number} of {self.parts}")
            with upload, holding(upload.folder, "--shard-cache"):
                left, images = self._pack_and_send(upload, shards, mine, progress)
        return PartDone(len(mine), len(mine) - len(left), images)

    def _pack_and_send(
        self,
        upload: PartUpload,
        shards: Mapping[int, list[Entry]],
        mine: Sequence[int],
        progress: Callable[[int, int], None],
    ) -> tuple[list[int], int]:
        folder, up = upload.folder, upload.begin_part(self.plan, mine)
        keep_plan(folder, self.plan)
        here = _finished(folder, [each for each in mine if each not in up])
        left = self._left(mine, up | here)
        for each in here.keys() - {*left}:
            upload.add(each)
        work = self._work(folder)
        images = write_left(work, shards, left, "--shard-cache", progress, upload.add)
        upload.wait()
        upload.sweep_if_complete()
        upload.clear()
        return left, images

    def finish(self, members: Sequence[Member], command: str) -> Packed:
        """Join the parts: check that all shards are there, merge their records, write the manifest.

        `command` is that of the parts, without `--part`: the message about missing ones repeats it.

        Raises:
            UserError: a part is not done; the set is complete already; or as `pack` does.
        """
        if isinstance(self.out, Path):
            with holding(self.out, "--out"):
                return self._finish_in_folder(self.out, members, command)
        upload = PartUpload(self.out, self.access, part="finish")
        with upload, holding(upload.folder, "--shard-cache"):
            return self._finish_in_store(upload, members, command)

    def _finish_in_folder(self, out: Path, members: Sequence[Member], command: str) -> Packed:
        claim(out, self.plan, overwrite=False)
        if (out / MANIFEST).exists():  # killed while it swept up
            empty_progress(out)
            claim(out, self.plan, overwrite=False)
        records = _finished(out, self._shards)
        self._require_all(records, command)
        packed = merge(self._work(out), [*records.values()], members)
        swap_in(out, out, packed.manifest)
        return packed

    def _finish_in_store(
        self, upload: PartUpload, members: Sequence[Member], command: str
    ) -> Packed:
        records = upload.begin_part(self.plan, self._shards)
        try:
            self._require_all(records, command)
            keep_plan(upload.folder, self.plan)
            upload.fetch_rows(records)
        except UserError:
            upload.refuse_complete()  # another one that finishes the set has swept up
            raise
        ordered = [records[number] for number in self._shards]
        packed = merge(self._work(upload.folder), ordered, members)
        upload.finish(packed.manifest)
        return packed

    def _require_all(self, records: Mapping[int, ShardRecord], command: str) -> None:
        missing = sorted({each % self.parts for each in self._left(self._shards, records)})
        if not missing:
            return
        lack = "not there, or have rejects" if self.packing.strict else "not there"
        raise UserError(
            f"--out {self.out}",
            f"{len(missing)} of {self.parts} parts with shards that are {lack}:"
            f" {the_first([str(number) for number in missing])}",
            "all parts of the set",
            "give the commands that are listed, and then this one again",
            listed=[f"{command} --part {number}/{self.parts}" for number in missing[:KINDS_SHOWN]],
        )

    @property
    def parts(self) -> int:
        """How many there are."""
        parts = self.plan["parts"]
        assert isinstance(parts, int)
        return parts

    @property
    def _shards(self) -> range:
        return range(math.ceil(self.images / self.packing.per_shard))

    def _work(self, folder: Path) -> Work:
        return Work(self.source, folder, self.packing, self.images, self.labels)

    def _left(self, numbers: Iterable[int], records: Mapping[int, ShardRecord]) -> list[int]:
        return [each for each in numbers if is_left(records.get(each), self.packing)]


def parts_there(out: Path | Address, access: Access) -> int:
    """In how many parts the unfinished set in a folder or a store is packed.

    Raises:
        UserError: there is none, or it is complete.
    """
    if isinstance(out, Path):
        parts = (kept_plan(out) or {}).get("parts")
        if parts is None and (out / MANIFEST).exists():
            claim(out, {}, overwrite=False)
    else:
        upload = PartUpload(out, access, part="finish")
        parts = upload.parts_there()
        if parts is None:
            upload.refuse_complete()
    if isinstance(parts, int) and parts:
        return parts
    raise UserError(
        f"--out {out}",
        "no set that is packed in parts",
        "one whose parts are done",
        "pack them first, with --part 0/N and so on, or leave --finish out to pack all at once",
    )


def in_parts(
    source: ImageFiles,
    members: Sequence[Member],
    out: Path | Address,
    packing: Packing,
    labels: LabelTable | None,
    access: Access,
    parts: int,
) -> tuple[PartedSet, Deal]:
    """A set in so many parts, and all its shards; the arguments are as for `pack`."""
    plan = plan_for_parts(plan_of(members, packing, labels), parts)
    parted = PartedSet(source, out, packing, plan, len(members), labels, access)
    return parted, Deal(members, packing.seed, packing.per_shard)


def _finished(folder: Path, numbers: Sequence[int]) -> dict[int, ShardRecord]:
    """The records of the shards that are finished there, in order."""
    found = ((number, finished(folder, folder, number)) for number in numbers)
    return {number: record for number, record in found if record is not None}
