"""A set on its way to a store: shards as they are finished, then the tables, the manifest last.

It is packed in a folder of the shard cache. What is up is noted there, so that the same command
goes on with the rest. While the set is unfinished, the store has one object more, the claim of
whoever packs it: without that, two who came at once would overwrite each other's shards.

The claim of a set in parts names the digest of its plan, so that every machine with the same plan
may add to it. Its progress lies in a folder of the store that is named by that digest:

    .packing-claim
    .packing/0123456789abcdef/plan.json
    .packing/0123456789abcdef/shard-000000.samples.csv, …rejects.csv, …digests; last, ….json
"""

from __future__ import annotations

import json
import re
import secrets
import threading
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from itertools import count
from pathlib import Path
from queue import Queue
from shutil import rmtree
from typing import Self

from pipeline.errors import UserError
from pipeline.files import digest, replacing, write_whole
from pipeline.packing.outdir import NOT_CONTENT, OURS, PLAN, empty_progress, kept_plan
from pipeline.packing.plan import Plan, differences, plan_digest, plan_json
from pipeline.packing.shard import (
    MAX_RECORD_BYTES,
    RECORD,
    ROWS,
    ShardRecord,
    finished,
    parse_record,
    shard_name,
)
from pipeline.remote.access import Access
from pipeline.remote.address import Address
from pipeline.remote.cache import ShardCache
from pipeline.remote.refusals import ExistsError, MissingError
from pipeline.remote.store import Store
from pipeline.remote.threads import call_each
from pipeline.shards.manifest import MANIFEST, MAX_MANIFEST_BYTES, PROGRESS, Manifest, Shard

CLAIM = ".packing-claim"
"""The object that says whose an unfinished set is, by a number that its folder here keeps, too."""

OWN_CLAIM = "claim"
"""In the progress folder: what this folder has put into the store, or was about to."""

NOTES = "uploaded"
"""In the progress folder: a line for each file that is up, in the format of sha256sum."""

MAX_CLAIM_BYTES = 1 << 10

CLAIMED = re.compile(r"([0-9a-f]{64}) in (\d{1,6}) parts")
"""What the claim of a set in parts says: the digest of the plan, and in how many parts it is."""

MAX_PLAN_BYTES = 1 << 16

AT_ONCE = 2
"""Shards on their way at the same time: the beginning of one hides the end of another. A large one
goes in several parts at once already."""


def staging(address: Address, access: Access, part: str = "") -> Path:
    """The folder of the shard cache in which a set for this address, or a part, is packed."""
    place = digest(f"{address.place}\n{part}".encode()) if part else address.place
    return access.folder / "packing" / place[:16]


class Upload:
    """A context manager, at whose end nothing more is sent.

    Args:
        access: its cache has the folder in which the set is packed, and gets the files in the end.
        progress: called by several threads with the shards that are up, and all there will be.
        part: what is packed, if not the whole set.

    Every method raises a `UserError` if the store cannot be reached, read or written, or the cache
    cannot be used.
    """

    folder: Path
    """To pack in."""

    def __init__(
        self,
        address: Address,
        access: Access,
        progress: Callable[[int, int], None] = lambda up, total: None,
        part: str = "",
    ) -> None:
        self.folder = staging(address, access, part)
        self._progress = progress
        self._where = f"--out {address}"
        self._cache = ShardCache(access.folder, access.cache_size)
        self._store = Store(address, "--out")
        self._noted: dict[str, str] = {}
        self._shards, self._sent = 0, count(1)
        self._queue: Queue[int | None] = Queue()
        self._over = threading.Event()
        self._error: Exception | None = None

    def __enter__(self) -> Self:
        for _ in range(AT_ONCE):
            # Daemons: after Ctrl-C nobody waits for what is on its way
            threading.Thread(target=self._send_shards, daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        for _ in range(AT_ONCE):
            self._queue.put(None)
        with suppress(OSError):  # with what the same command goes on with, it stays
            self.folder.rmdir()

    def begin(self, plan: Plan, shards: int) -> Path:
        """Find out whether a set of so many shards may be made there, and claim the place.

        Returns:
            The folder to pack in.

        Raises:
            UserError: there is a complete set, something else, or a set that somebody else packs.
        """
        self._shards = shards
        differing = differences(kept_plan(self.folder), plan)
        if differing and not self._there():
            empty_progress(self.folder)  # left here by a set that is in the store no more
            differing = None
        there = self._claimed()
        if self._store.read(CLAIM, MAX_CLAIM_BYTES) != self._own_claim():
            raise self._refusal(
                "an unfinished set that is packed elsewhere, or with another --shard-cache",
                "a place that nobody else packs into",
                "wait for its end, or if it was cut off, repeat that command",
            )
        if differing is not None:
            raise self._refusal(*differing, "repeat the command that was cut off")
        self._read_notes(there)
        return self.folder

    def add(self, number: int) -> None:
        """Send a finished shard when its turn comes."""
        self._require_no_error()
        self._queue.put(number)

    def wait(self) -> None:
        """Wait until all that was added is up."""
        self._queue.join()
        self._require_no_error()

    def finish(self, manifest: Manifest) -> None:
        """Send what is left, the manifest last of all; then give the files to the cache.

        Raises:
            UserError: there is another manifest by now.
        """
        self.wait()
        for name, sha256 in manifest.digests.items():
            self._send(name, sha256)  # the tables: the shards are noted
        data = (self.folder / MANIFEST).read_bytes()
        try:
            self._store.upload(MANIFEST, data, new=True)
        except ExistsError:
            # It may be ours, if the answer to a first attempt was lost
            if self._store.read(MANIFEST, MAX_MANIFEST_BYTES) != data:
                raise self._complete() from None
        self._drop_claim()
        self._hand_over(manifest)

    def _there(self) -> dict[str, int]:
        """The bytes of what is there, by name."""
        sizes = self._store.sizes()
        return {name: size for name, size in sizes.items() if name not in NOT_CONTENT}

    def _claimed(self) -> dict[str, int]:
        """What is there, once the place is claimed, and if it is no more than an unfinished set."""
        there = self._there()
        if not there:
            with suppress(ExistsError):  # whose it is, is looked at next
                self._store.upload(CLAIM, self._own_claim() or self._new_claim(), new=True)
            there = self._there()  # again, for somebody may have come and gone before the claim
        if MANIFEST in there:
            raise self._complete()
        foreign = sorted(name for name in there if name != CLAIM and not OURS.fullmatch(name))
        if foreign or CLAIM not in there:
            others = foreign or sorted(there)
            found = f"{len(others)} other entries: {', '.join(others[:5])}"
            raise self._refusal(found, "a place with nothing in it")
        return there

    def _new_claim(self) -> bytes:
        path, own = self.folder / PROGRESS / OWN_CLAIM, secrets.token_hex().encode()
        path.parent.mkdir(exist_ok=True)
        write_whole(path, own)
        return own

    def _own_claim(self) -> bytes | None:
        path = self.folder / PROGRESS / OWN_CLAIM
        return path.read_bytes() if path.exists() else None

    def _drop_claim(self) -> None:
        with suppress(UserError):  # without the right to delete, it stays, and is in nobody's way
            if self._store.read(CLAIM, MAX_CLAIM_BYTES) == self._own_claim():
                self._sweep()
                self._store.delete(CLAIM)

    def _sweep(self) -> None:
        """Delete what else an unfinished set has there."""

    def _send_shards(self) -> None:
        """What a thread runs."""
        while (number := self._queue.get()) is not None:
            try:
                if not self._over.is_set():
                    self._send_shard(number)
                    self._progress(next(self._sent), self._shards)
            except Exception as error:
                self._error = error
                self._over.set()
            finally:
                self._queue.task_done()

    def _send_shard(self, number: int) -> None:
        record = finished(self.folder, self.folder, number)
        if record is not None and record.shard is not None:  # else none of its images is good
            for name, sha256 in record.shard.digests.items():
                self._send(name, sha256)

    def _send(self, name: str, sha256: str) -> None:
        """Send a file, unless it is up, and note that it is."""
        if self._noted.get(name) == sha256:
            return
        self._store.upload(name, self.folder / name)
        with (self.folder / PROGRESS / NOTES).open("a") as notes:
            notes.write(f"{sha256}  {name}\n")
        self._noted[name] = sha256

    def _read_notes(self, there: Collection[str]) -> None:
        """Find out what of the objects that are there was sent from here."""
        path = self.folder / PROGRESS / NOTES
        for line in path.read_text().splitlines() if path.exists() else ():
            sha256, _, name = line.partition("  ")
            if name in there:
                self._noted[name] = sha256

    def _require_no_error(self) -> None:
        if self._error is not None:
            raise self._error

    def _complete(self) -> UserError:
        """The refusal of a place with a set; if that is ours, the files here go to the cache."""
        self._drop_claim()
        path, stays = self.folder / MANIFEST, ""
        if path.exists():
            data = path.read_bytes()
            if self._store.read(MANIFEST, MAX_MANIFEST_BYTES) == data:
                self._hand_over(Manifest.model_validate_json(data))
        if any(self.folder.glob("*.tar")):
            stays = f"; what was packed for it here is in {self.folder}, to be deleted"
        return UserError(
            self._where,
            "a complete shard set",
            "a place with nothing in it",
            f"use it as it is, choose another --out, or delete it with the store's own tool{stays}",
        )

    def _refusal(self, found: str, wanted: str, first: str = "") -> UserError:
        do = [first] * bool(first) + ["choose another --out"]
        remedy = ", ".join([*do, "or delete what is there with the store's own tool"])
        return UserError(self._where, found, wanted, remedy)

    def _hand_over(self, manifest: Manifest) -> None:
        """Make the files entries of the cache, and leave nothing here.

        The manifest goes last: killed before, this is done when the same command is given again.
        """
        rmtree(self.folder / PROGRESS, ignore_errors=True)
        for entry in sorted(self.folder.iterdir(), key=lambda entry: entry.name == MANIFEST):
            if entry.name in manifest.digests:
                self._cache.adopt(entry, manifest.digests[entry.name])
            elif OURS.fullmatch(entry.name):
                entry.unlink()


class PartUpload(Upload):
    """What a part, or the finish of a set in parts, does with the store."""

    _digest = ""
    """Of the plan."""
    _parts: object = None

    def parts_there(self) -> int | None:
        """In how many parts the unfinished set there is; None if there is none in parts."""
        claim = self._claim_there()
        return int(claim[2]) if claim else None

    def begin_part(self, plan: Plan, numbers: Sequence[int]) -> dict[int, ShardRecord]:
        """Find out whether shards of a set may be added there; claim the place for all its parts.

        Returns:
            The records of those that are up whole, by number.

        Raises:
            UserError: there is a complete set, something else, or a set of another plan.
        """
        self._digest, self._parts = plan_digest(plan), plan["parts"]
        if differences(kept_plan(self.folder), plan):
            empty_progress(self.folder)  # left here by a set that is in the store no more
        there = self._claimed()
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
        """Fetch what `merge` needs of these shards, and take the shards for sent."""
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
        if MANIFEST in self._there():
            raise self._complete()

    def sweep_if_complete(self) -> None:
        """Take back what was sent for a set that somebody else has finished meanwhile."""
        if MANIFEST in self._there():
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
