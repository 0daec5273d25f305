"""From the records of all shards to the tables and the manifest, which is written last."""

from __future__ import annotations

import csv
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pipeline.errors import UserError, counted
from pipeline.files import digest, file_digest, replacing, write_whole
from pipeline.images.decode import RejectedError
from pipeline.packing.shard import DIGEST, DIGESTS, ShardRecord, Work, shard_name
from pipeline.packing.sources.base import Member
from pipeline.shards.labels import LabelTable, counts_of, labels_file
from pipeline.shards.manifest import (
    HEADERS,
    LABELS,
    MANIFEST,
    PROGRESS,
    REJECTS,
    SAMPLES,
    Labels,
    Manifest,
)
from pipeline.shards.shard_set import read_table

REJECTS_SHOWN = 5
"""Rejects that the message lists; the others are in the table that it names."""


class Copies(NamedTuple):
    """Packed images whose file is byte for byte that of an image with an earlier name."""

    number: int
    first: str
    """The name of the first copy; empty if there is none."""
    original: str
    """The name of what it is a copy of."""


@dataclass(frozen=True)
class Packed:
    """A set that is complete."""

    manifest: Manifest
    converted: int
    """Images under `original` that had to be encoded anew; the others went in untouched."""
    rejected: dict[str, int]
    """Images by kind of fault."""
    copies: Copies | None
    """None if a shard is from a version that did not look for copies."""
    resumed: int = 0
    """Shards that were finished before this command began."""
    written: int = 0
    """Images that this command went through; the others were in those shards."""


def merge(work: Work, records: Sequence[ShardRecord], members: Sequence[Member]) -> Packed:
    """Write the tables and the manifest of a set; `records` has all its shards, in order.

    Raises:
        UserError: more rejects than the options allow; no image is left, or none of a class.
    """
    target = work.out
    rejected = dict(sum((Counter(record.rejected) for record in records), Counter[str]()))
    if sum(rejected.values()) > work.packing.max_rejects * work.images:
        raise too_many_rejects(work)
    if not any(record.shard for record in records):
        raise UserError(
            target,
            f"every image was rejected: {counted(rejected)}",
            "images that decode",
            f"see {target / PROGRESS}/*.{REJECTS} for each one",
        )
    _join(target, SAMPLES, len(records))
    if rejected:
        _join(target, REJECTS, len(records))
    manifest = _manifest(work, records)
    write_whole(target / MANIFEST, manifest.model_dump_json(indent=1).encode() + b"\n")
    return Packed(
        manifest,
        converted=sum(record.converted for record in records),
        rejected=rejected,
        copies=_find_copies(target, records, members),
    )


def _manifest(work: Work, records: Sequence[ShardRecord]) -> Manifest:
    kept = [record for record in records if record.shard is not None]
    rejected = sum(sum(record.rejected.values()) for record in records)
    largest = [record.largest for record in kept if record.largest]
    smallest = [record.smallest for record in kept if record.smallest]
    recipe, labels = work.packing.recipe, work.labels
    return Manifest(
        format=recipe.format if labels is None else 2,
        recipe=recipe,
        seed=work.packing.seed,
        samples=sum(record.shard.samples for record in kept if record.shard),
        rejected=rejected,
        image_bytes=sum(record.image_bytes for record in kept),
        largest_image=(max(w for w, _ in largest), max(h for _, h in largest)),
        smallest_image=(min(w for w, _ in smallest), min(h for _, h in smallest)),
        shards=tuple(record.shard for record in kept if record.shard),
        labels=None if labels is None else _write_labels(work.out, labels),
        samples_sha256=file_digest(work.out / SAMPLES),
        rejects_sha256=file_digest(work.out / REJECTS) if rejected else None,
    )


def _write_labels(target: Path, labels: LabelTable) -> Labels:
    """Write the labels of the images that are in the set, which its table names.

    Raises:
        UserError: every image of a class was rejected: nothing could learn to draw it.
    """
    keys = sorted(int(key) for key, _ in read_table(target / SAMPLES, SAMPLES))
    values = labels.values[keys]
    data = labels_file(values)
    write_whole(target / LABELS, data)
    counts = counts_of(values, len(labels.names))
    empty = [name for name, count in zip(labels.names, counts, strict=True) if not count]
    if empty and labels.kind == "classes":
        raise UserError(
            "--labels",
            f"no image left of {len(empty):,} of {len(counts):,} classes, the first {empty[0]}: all"
            " were rejected",
            "an image of each class, at least",
            f"repair them, or take them out of the source; {target / REJECTS} has the reasons",
        )
    return Labels(kind=labels.kind, names=labels.names, counts=counts, sha256=digest(data))


def _join(target: Path, name: str, shards: int) -> None:
    with replacing(target / name) as partial, partial.open("wb") as table:
        table.write(HEADERS[name].encode() + b"\r\n")
        for number in range(shards):
            with (target / PROGRESS / f"{shard_name(number)}.{name}").open("rb") as rows:
                shutil.copyfileobj(rows, table)


def _find_copies(
    target: Path, records: Sequence[ShardRecord], members: Sequence[Member]
) -> Copies | None:
    """Find equal sources by the digests that the shards' jobs left."""
    parts = []
    for number, record in enumerate(records):
        if record.shard is None:
            continue
        path = target / PROGRESS / f"{shard_name(number)}.{DIGESTS}"
        part = np.fromfile(path, DIGEST) if path.exists() else np.empty(0, DIGEST)
        if len(part) != record.shard.samples:
            return None
        parts.append(part)
    every = np.concatenate(parts)
    every = every[np.lexsort((every["key"], every["sha256"]))]
    again = np.flatnonzero(every["sha256"][1:] == every["sha256"][:-1]) + 1
    if not len(again):
        return Copies(0, "", "")
    first = again[every["key"][again].argmin()]
    copy, original = (members[every["key"][place]].name for place in (first, first - 1))
    return Copies(len(again), copy, original)


def too_many_rejects(work: Work) -> UserError:
    """The error that lists the rejects so far."""
    rows = []
    for path in sorted((work.out / PROGRESS).glob(f"*.{REJECTS}")):
        with path.open(newline="", encoding="utf-8", errors="surrogateescape") as table:
            rows += [(name, reason) for name, reason, _ in csv.reader(table)]
    kinds = Counter(RejectedError(reason).kind for _, reason in rows)
    share = work.packing.max_rejects
    return UserError(
        f"--max-rejects {share}",
        f"{len(rows):,} of {work.images:,} images are rejected already: {counted(kinds)}",
        f"at most {int(share * work.images):,}",
        f"see all so far in {work.out / PROGRESS}/*.{REJECTS}, and repair or remove them, or allow"
        " more; the same command goes on with what is finished",
        listed=[f"{name}: {reason}" for name, reason in sorted(rows)[:REJECTS_SHOWN]],
    )
