"""A part of a set on its way to a store: its shards, and records for whoever finishes the set.

While the set is unfinished, its claim names the digest of its plan, so that every machine with the
same plan may add to it. Its progress lies in a folder of the store that is named by that digest:

    .packing-claim
    .packing/0123456789abcdef/plan.json
    .packing/0123456789abcdef/shard-000000.samples.csv, …rejects.csv, …digests; last, ….json
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from shutil import rmtree

from pipeline.files import replacing
from pipeline.packing.outdir import NOT_CONTENT, OURS, PLAN, empty_progress, kept_plan
from pipeline.packing.plan import Plan, differences, plan_digest, plan_json
from pipeline.packing.shard import (
    MAX_RECORD_BYTES,
    RECORD,
    ROWS,
    ShardRecord,
    parse_record,
    shard_name,
)
from pipeline.packing.upload import CLAIM, MAX_CLAIM_BYTES, Upload
from pipeline.remote.store import MissingError
from pipeline.remote.threads import call_each
from pipeline.shards.manifest import MANIFEST, PROGRESS, Shard

MAX_PLAN_BYTES = 1 << 16

CLAIMED = re.compile(r"([0-9a-f]{64}) in (\d{1,6}) parts")
"""What the claim says: the digest of the plan, and in how many parts the set is packed."""


class PartUpload(Upload):
    """What a part, or the finish of a set in parts, does with the store."""

    _digest = ""
    """Of the plan."""
    _parts: object = None

    def parts_there(self) -> int | None:
        """In how many parts the unfinished set there is; None if there is none in parts.

        Raises:
            UserError: the store cannot be reached or read.
        """
        claim = self._claim_there()
        return int(claim[2]) if claim else None

    def begin_part(self, plan: Plan, numbers: Sequence[int]) -> dict[int, ShardRecord]:
        """Find out whether shards of a set may be added there; claim the place for all its parts.

        Returns:
            The records of those that are up whole, by number.

        Raises:
            UserError: there is a complete set, something else, or a set of another plan; or the
                store cannot be reached or written.
        """
        self._digest, self._parts = plan_digest(plan), plan["parts"]
        if differences(kept_plan(self.folder), plan):
            empty_progress(self.folder)  # left here by a set that is in the store no more
        there = self._store.sizes()
        if not there.keys() - NOT_CONTENT:
            self._claim()
            there = self._store.sizes()
        self._require_unfinished(there.keys() - NOT_CONTENT)
        if self._store.read(CLAIM, MAX_CLAIM_BYTES) != self._own_claim():
            found, wanted = differences(self._plan_there(), plan) or (
                "an unfinished set that one machine packs",
                "a place for a set in parts",
            )
            raise self._refusal(found, wanted, "give all parts the same source and options")
        kept = self._store.sizes(self._progress_there)
        if PLAN not in kept:
            self._store.upload(f"{self._progress_there}/{PLAN}", plan_json(plan))
        self._read_notes(there)
        records = self._records([n for n in numbers if f"{shard_name(n)}.{RECORD}" in kept], there)
        self._shards = len(numbers) - len(records)
        return records

    def _records(self, numbers: Iterable[int], there: Mapping[str, int]) -> dict[int, ShardRecord]:
        """Read records; those whose shard is not there whole are left out."""
        found: dict[int, ShardRecord] = {}

        def read(number: int) -> None:
            name = f"{self._progress_there}/{shard_name(number)}.{RECORD}"
            record = parse_record(self._store.read(name, MAX_RECORD_BYTES), number)
            if record is not None and (record.shard is None or _is_whole(record.shard, there)):
                found[number] = record

        call_each(read, numbers)
        return found

    def fetch_rows(self, records: Mapping[int, ShardRecord]) -> None:
        """Fetch what `merge` needs of these shards, and take the shards for sent.

        Raises:
            UserError: the store cannot be reached or read.
        """
        (self.folder / PROGRESS).mkdir(exist_ok=True)

        def fetch(name: str) -> None:
            with replacing(self.folder / PROGRESS / name) as partial, partial.open("wb") as file:
                self._store.download(f"{self._progress_there}/{name}", file)

        call_each(
            fetch, [f"{shard_name(number)}.{suffix}" for number in records for suffix in ROWS]
        )
        for record in records.values():
            if record.shard is not None:
                self._noted |= record.shard.digests

    def refuse_complete(self) -> None:
        """Look whether somebody else has finished the set.

        Raises:
            UserError: so it is.
        """
        if MANIFEST in self._names():
            raise self._complete()

    def sweep_if_complete(self) -> None:
        """Take back what was sent for a set that somebody else has finished meanwhile."""
        if MANIFEST in self._names():
            self._sweep()

    def clear(self) -> None:
        """Leave nothing here: all is up."""
        rmtree(self.folder / PROGRESS, ignore_errors=True)
        for entry in self.folder.iterdir():
            if OURS.fullmatch(entry.name):
                entry.unlink()

    @property
    def _progress_there(self) -> str:
        return _progress(self._digest)

    def _own_claim(self) -> bytes | None:
        return f"{self._digest} in {self._parts} parts".encode() if self._digest else None

    def _claim_there(self) -> re.Match[str] | None:
        with suppress(MissingError):
            return CLAIMED.fullmatch(
                self._store.read(CLAIM, MAX_CLAIM_BYTES).decode(errors="replace")
            )
        return None

    def _plan_there(self) -> Plan | None:
        if (claim := self._claim_there()) is None:
            return None
        with suppress(MissingError, ValueError):
            plan = json.loads(self._store.read(f"{_progress(claim[1])}/{PLAN}", MAX_PLAN_BYTES))
            return plan if isinstance(plan, dict) else None
        return None

    def _send_shard(self, number: int) -> None:
        super()._send_shard(number)
        for suffix in (*ROWS, RECORD):
            name = f"{shard_name(number)}.{suffix}"
            self._store.upload(f"{self._progress_there}/{name}", self.folder / PROGRESS / name)

    def _sweep(self) -> None:
        def delete(name: str) -> None:
            with suppress(MissingError):  # another one that finishes the set did
                self._store.delete(f"{self._progress_there}/{name}")

        call_each(delete, self._store.sizes(self._progress_there))


def _progress(digest: str) -> str:
    """The folder of the store that has the progress of a plan with this digest."""
    return f"{PROGRESS}/{digest[:16]}"


def _is_whole(shard: Shard, there: Mapping[str, int]) -> bool:
    return there.get(f"{shard.name}.tar") == shard.bytes and f"{shard.name}.idx" in there
