"""One shard: a worker process reads, stores and writes it, and records what it has written.

The files appear in this order: `shard-000000.tar` and `.idx` in the set's folder; in `.packing/`
the rows for `samples.csv` and `rejects.csv` and the digests of the sources; and last
`shard-000000.json`, with which the shard is finished.
"""

from __future__ import annotations

import csv
import hashlib
import zlib
from collections import Counter
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from pipeline.errors import UserError
from pipeline.files import digest, file_digest, replacing, write_whole
from pipeline.images.decode import RejectedError
from pipeline.packing.plan import Entry, Packing
from pipeline.packing.sources.base import DamagedError, ImageFiles, Member
from pipeline.packing.store import store
from pipeline.shards.labels import LabelTable
from pipeline.shards.manifest import PROGRESS, REJECTS, SAMPLES, Count, Shard, Size
from pipeline.shards.tar import TarWriter

REPORT_EVERY = 32
"""Images between a worker's reports, at which it may be stopped."""

DIGESTS = "digests"
"""Suffix of the file with each sample's key and the SHA-256 of its source's bytes."""

RECORD = "json"
"""Suffix of a shard's record."""

ROWS = (SAMPLES, REJECTS, DIGESTS)
"""Suffixes of what a shard's job leaves beside its record, and what `merge` reads."""

DIGEST = np.dtype([("key", "<u8"), ("sha256", "S32")])

MAX_RECORD_BYTES = 1 << 16
"""A record has one row, and a count for each kind of fault: far less."""


class ShardRecord(BaseModel):
    """What a finished shard adds to the manifest."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    shard: Shard | None
    """None if every image of it was rejected: then there is no tar."""
    image_bytes: Count
    largest: Size | None
    smallest: Size | None
    converted: Count
    rejected: dict[str, Count]
    """Images by kind of fault."""

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        if {self.shard is None} != {self.largest is None, self.smallest is None}:
            raise ValueError("sizes of images without a shard of them, or the reverse")
        return self


class Progress(NamedTuple):
    """Images of a shard since the last report."""

    done: int
    rejected: int
    finished: int | None = None
    """The shard's number, once its record is written."""


@dataclass(frozen=True)
class Work:
    """What is the same for all shards of a set."""

    source: ImageFiles
    out: Path
    """Where they are written."""
    packing: Packing
    images: int
    """Of the set."""
    labels: LabelTable | None = None
    """By key: of all the set's members."""


@dataclass
class _Tally:
    """What a shard's images add up to while it is being written."""

    samples: list[tuple[str, str, str, str]] = field(default_factory=list)
    digests: list[tuple[int, bytes]] = field(default_factory=list)
    rejects: list[tuple[str, str, int]] = field(default_factory=list)
    kinds: Counter[str] = field(default_factory=Counter)
    widths: set[int] = field(default_factory=set)
    heights: set[int] = field(default_factory=set)
    converted: int = 0
    image_bytes: int = 0


def shard_name(number: int) -> str:
    """A shard's name without its suffix."""
    return f"shard-{number:06d}"


def parse_record(data: bytes, number: int) -> ShardRecord | None:
    """Read a shard's record; None if it is none, or another's."""
    try:
        record = ShardRecord.model_validate_json(data)
    except ValidationError:
        return None
    return record if record.shard is None or record.shard.name == shard_name(number) else None


def finished(target: Path, out: Path, number: int) -> ShardRecord | None:
    """The record of a shard that an earlier run finished, if the shard is still there.

    Args:
        target: where it was built.
        out: where it lies already, if that run was cut off while it swapped the sets.
        number: of the shard.
    """
    path = target / PROGRESS / f"{shard_name(number)}.{RECORD}"
    try:
        with path.open("rb") as file:
            record = parse_record(file.read(MAX_RECORD_BYTES), number)
    except OSError:
        return None
    if record is None or record.shard is None:
        return record
    shard = record.shard
    tar, index = (_either(target, out, f"{shard.name}.{suffix}") for suffix in ("tar", "idx"))
    whole = (
        tar.is_file()
        and index.is_file()
        and tar.stat().st_size == shard.bytes
        and digest(index.read_bytes()) == shard.index_sha256
        # shards of raw pixels may have the same names and sizes in the set before
        and (tar.parent == target or file_digest(tar) == shard.tar_sha256)
    )
    return record if whole else None


def _either(first: Path, second: Path, name: str) -> Path:
    return first / name if (first / name).exists() else second / name


def write_shard(work: Work, shard: tuple[int, list[Entry]]) -> Generator[Progress, None, None]:
    """Write one shard and its record; closed before its end, it leaves nothing half-written.

    Raises:
        UserError: `strict`, and an image was rejected.
        OSError: the disk is full, or the source is gone.
    """
    number, entries = shard
    name, tally, written = shard_name(number), _Tally(), None
    with replacing(work.out / f"{name}.tar") as partial:
        with partial.open("wb") as file:
            tar = TarWriter(file)
            yield from _fill(tar, work, name, entries, tally)
            tar.finish()
        if tally.samples:
            index = tar.index().encode()
            write_whole(work.out / f"{name}.idx", index)
            written = Shard(
                name=name,
                samples=len(tally.samples),
                bytes=tar.size,
                tar_sha256=tar.sha256.hexdigest(),
                index_sha256=digest(index),
            )
    if written is None:
        (work.out / f"{name}.tar").unlink()
    _write_record(work.out / PROGRESS, name, written, tally)
    yield Progress(0, 0, number)


def _fill(
    tar: TarWriter, work: Work, name: str, entries: list[Entry], tally: _Tally
) -> Generator[Progress, None, None]:
    extension = work.packing.recipe.extension
    reported = rejected = 0
    for count, (key, member) in enumerate(entries, 1):
        try:
            data = work.source.read(member)
            stored = store(data, work.packing.recipe)
        except DamagedError as damage:
            _reject(work, member, RejectedError(f"unreadable ({damage})"), tally)
        except RejectedError as reject:
            _reject(work, member, reject, tally)
        else:
            tar.add(f"{key:08d}", extension, stored.data)
            if work.labels is not None:
                tar.add(f"{key:08d}", *work.labels.component(key))
            tally.samples.append(
                (f"{key:08d}", name, member.name, f"{zlib.crc32(stored.data):08x}")
            )
            tally.digests.append((key, hashlib.sha256(data).digest()))
            tally.image_bytes += len(stored.data)
            tally.widths.add(stored.width)
            tally.heights.add(stored.height)
            tally.converted += stored.converted
        if count % REPORT_EVERY == 0 or count == len(entries):
            try:
                yield Progress(count - reported, len(tally.rejects) - rejected)
            except GeneratorExit:  # the rejects may be why it is stopped: they are listed
                _write_rejects(work.out / PROGRESS, name, tally)
                raise
            reported, rejected = count, len(tally.rejects)


def _reject(work: Work, member: Member, reject: RejectedError, tally: _Tally) -> None:
    if work.packing.strict:
        raise UserError(
            work.source.where(member),
            str(reject),
            "an image that decodes, since --strict is given",
            "repair or remove it, or leave --strict out to have it listed in rejects.csv",
        )
    tally.rejects.append((member.name, str(reject), max(member.size, 0)))
    tally.kinds[reject.kind] += 1


def _write_record(folder: Path, name: str, shard: Shard | None, tally: _Tally) -> None:
    _write_csv(folder / f"{name}.{SAMPLES}", tally.samples)
    _write_rejects(folder, name, tally)
    write_whole(folder / f"{name}.{DIGESTS}", np.array(tally.digests, DIGEST).tobytes())
    seen = bool(tally.widths)
    record = ShardRecord(
        shard=shard,
        image_bytes=tally.image_bytes,
        largest=(max(tally.widths), max(tally.heights)) if seen else None,
        smallest=(min(tally.widths), min(tally.heights)) if seen else None,
        converted=tally.converted,
        rejected=dict(tally.kinds),
    )
    write_whole(folder / f"{name}.{RECORD}", record.model_dump_json().encode())


def _write_rejects(folder: Path, name: str, tally: _Tally) -> None:
    _write_csv(folder / f"{name}.{REJECTS}", tally.rejects)


def _write_csv(path: Path, rows: Sequence[Sequence[object]]) -> None:
    # surrogateescape: a folder's file names are bytes, and need not be UTF-8
    with (
        replacing(path) as partial,
        partial.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file,
    ):
        csv.writer(file).writerows(rows)
