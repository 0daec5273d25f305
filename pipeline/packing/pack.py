"""From a source to a shard set: deal, hand out to workers, gather; the manifest last.

Each shard is an independent job of a worker process. Its bytes depend only on the source, the
options and its number, so any number of workers makes the same set, and the shards that a killed
run finished are kept.
"""

from __future__ import annotations

import csv
import hashlib
import json
import math
import shutil
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pipeline.errors import UserError, counted
from pipeline.files import digest, file_digest, replacing, write_whole
from pipeline.images.decode import RejectedError
from pipeline.packing.labels import LabelTable
from pipeline.packing.outdir import PLAN, claim, held, require_space, swap_in
from pipeline.packing.shard import (
    DIGEST,
    DIGESTS,
    Entry,
    ShardRecord,
    Work,
    finished,
    names,
    write_shard,
)
from pipeline.packing.sources.base import ImageFiles, Member
from pipeline.packing.upload import Upload
from pipeline.processes import KilledError, Workers
from pipeline.shards.labels import counts_of, labels_file
from pipeline.shards.manifest import (
    LABELS,
    MANIFEST,
    PROGRESS,
    REJECTS,
    REJECTS_HEADER,
    SAMPLES,
    SAMPLES_HEADER,
    Labels,
    Manifest,
    Recipe,
)
from pipeline.shards.order import permutation

PER_SHARD = 4096
"""About 30 MB of CelebA: long sequential reads, and still fifty shards to permute each epoch."""

MAX_REJECTS = 0.01
"""Share of the images that may be rejected before packing is an error."""

REJECTS_SHOWN = 5
"""Rejects that the message lists; the others are in the table that it names."""


class Copies(NamedTuple):
    """Packed images whose file is byte for byte that of an image with an earlier name."""

    number: int
    first: str
    """The name of the first copy; empty if there is none."""
    original: str
    """The name of what it is a copy of."""


class _TooManyRejectsError(Exception):
    """More rejects than `max_rejects` allows: ends the workers, which then record theirs."""


@dataclass(frozen=True)
class Packed:
    """What `pack` made."""

    manifest: Manifest
    converted: int
    """Images under `original` that had to be encoded anew; the others went in untouched."""
    rejected: dict[str, int]
    """Images by kind of fault."""
    copies: Copies | None
    """None if a shard is from a version that did not look for copies."""
    written: int
    """Images that this run went through; the others were in shards that were finished before."""
    resumed: int
    """Shards that were finished before."""


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


def pack(
    source: ImageFiles,
    members: Sequence[Member],
    out: Path | Upload,
    packing: Packing,
    progress: Callable[[int, int], None] = lambda done, total: None,
    labels: LabelTable | None = None,
) -> Packed:
    """Pack images of a source into a shard set, or resume where an earlier run was cut off.

    Args:
        source: read by each worker through its own handle.
        members: sorted by name; a sample's key is its place among them, in 8 digits.
        out: new, empty, an unfinished set of the same source and options, or with `overwrite` a
            complete set; or an upload that has been entered: shards are sent as they are finished.
        packing: the options.
        progress: called a few times a second with the images that this call has gone through, and
            those that it has to go through.
        labels: of the members, if they have some.

    Raises:
        UserError: an occupied folder, another process in it, too many rejects, a full disk, a
            source that went away; from the upload.
    """
    plan = _plan(source, members, packing, labels)
    upload = out if isinstance(out, Upload) else None
    flag, out = ("--out", out) if isinstance(out, Path) else ("--shard-cache", out.folder)
    try:
        with held(out, flag):
            if upload is None:
                target = claim(out, plan, overwrite=packing.overwrite)
            else:
                target = upload.begin(plan, math.ceil(len(members) / packing.per_shard))
            (target / PROGRESS).mkdir(parents=True, exist_ok=True)
            write_whole(target / PROGRESS / PLAN, json.dumps(plan, indent=1).encode())
            dealt = deal(members, packing.seed, packing.per_shard)
            kept = {number: finished(target, out, number) for number in range(len(dealt))}
            left = {number: dealt[number] for number in kept if _is_left(kept[number], packing)}
            require_space(out, left.values(), packing.recipe, flag, labelled=labels is not None)
            if upload is not None:
                for number in kept.keys() - left.keys():
                    upload.add(number)
            work = Work(source, target, packing.recipe, packing.strict, labels)
            _write_left(work, left, len(members), packing, progress, upload)
            records = [_record(target, out, number) for number in range(len(dealt))]
            manifest = _gather(target, records, len(members), packing, labels)
            copies = _copies(target, records, members)
            if upload is None:
                swap_in(target, out, manifest)
            else:
                upload.finish(manifest)
    except _TooManyRejectsError:
        raise _too_many_rejects(target, len(members), packing.max_rejects) from None
    except OSError as error:
        place = error.filename or out
        raise UserError(
            place,
            error.strerror or str(error),
            "a source that can be read and a folder that can be written",
            "put that right; the same command goes on with the shards that are finished",
        ) from error
    return Packed(
        manifest,
        converted=sum(record.converted for record in records),
        rejected=_count(records),
        copies=copies,
        written=sum(map(len, left.values())),
        resumed=len(dealt) - len(left),
    )


def _write_left(
    work: Work,
    left: Mapping[int, list[Entry]],
    images: int,
    packing: Packing,
    progress: Callable[[int, int], None],
    upload: Upload | None,
) -> None:
    to_write = sum(map(len, left.values()))

    def report(done: int, rejected: int) -> None:
        progress(done, to_write)
        if rejected > packing.max_rejects * images:
            raise _TooManyRejectsError

    written = (lambda number: None) if upload is None else upload.add
    write_shards(work, left, packing.workers, report, written)


def write_shards(
    work: Work,
    shards: Mapping[int, list[Entry]],
    workers: int,
    report: Callable[[int, int], None],
    written: Callable[[int], None],
) -> None:
    """Write shards in parallel.

    Args:
        work: what is the same for all of them.
        shards: entries by the shard's number.
        workers: processes.
        report: called with the images done and rejected, at the start and as they change; may
            raise.
        written: called with the number of each shard that is finished; may raise.

    Raises:
        UserError: from a worker, or because one was killed or cannot be started.
        OSError: from a worker.
    """
    if not shards:
        return
    count, done, rejected = min(workers, len(shards)), 0, 0
    report(done, rejected)
    try:
        with Workers(count, partial(write_shard, work), partial(_prepare, work)) as running:
            for progress in running.run(shards.items()):
                done += progress.done
                rejected += progress.rejected
                report(done, rejected)
                if progress.finished is not None:
                    written(progress.finished)
    except KilledError as error:
        goes_on = f"{error.remedy}; the same command goes on with the shards that are finished"
        raise UserError(error.where, error.found, error.wanted, goes_on) from None


def _prepare(work: Work) -> None:
    if work.recipe.store != "original":
        import torch  # here, so that its two seconds are not the first image's

        torch.set_num_threads(1)  # the cores have a worker each; copying a crop would start more


def _is_left(record: ShardRecord | None, packing: Packing) -> bool:
    """Whether a shard must be written: a finished one again, if `strict` is to name its reject."""
    return record is None or (packing.strict and bool(record.rejected))


def deal(members: Sequence[Member], seed: int, per_shard: int) -> list[list[Entry]]:
    """Shuffle all samples and cut them into shards: shard k owns places [k·m, (k+1)·m)."""
    order = permutation(len(members), seed).tolist()
    entries = [(rank, members[rank]) for rank in order]
    return [entries[first : first + per_shard] for first in range(0, len(entries), per_shard)]


def _plan(
    source: ImageFiles, members: Sequence[Member], packing: Packing, labels: LabelTable | None
) -> dict[str, object]:
    """What must be equal for an unfinished set to be resumed."""
    content = hashlib.sha256()
    for member in members:
        content.update(f"{member.name}\0{member.size}\0{member.crc32}\n".encode(errors="replace"))
    return {
        "source": source.place(),
        "images": len(members),
        "contents": content.hexdigest(),
        "recipe": packing.recipe.model_dump(mode="json"),
        "seed": packing.seed,
        "per_shard": packing.per_shard,
        "labels": labels and labels.digest(),
    }


def _gather(
    target: Path,
    records: list[ShardRecord],
    images: int,
    packing: Packing,
    labels: LabelTable | None,
) -> Manifest:
    """Join the shards' records; write the tables, then the manifest."""
    rejected = _count(records)
    if sum(rejected.values()) > packing.max_rejects * images:
        raise _TooManyRejectsError
    kept = [record for record in records if record.shard is not None]
    if not kept:
        raise UserError(
            target,
            f"every image was rejected: {counted(rejected)}",
            "images that decode",
            f"see {target / PROGRESS}/*.rejects.csv for each one",
        )
    _join(target, "samples", SAMPLES, SAMPLES_HEADER, len(records))
    if rejected:
        _join(target, "rejects", REJECTS, REJECTS_HEADER, len(records))
    largest = [record.largest for record in kept if record.largest]
    smallest = [record.smallest for record in kept if record.smallest]
    manifest = Manifest(
        format=packing.recipe.format if labels is None else 2,
        recipe=packing.recipe,
        seed=packing.seed,
        samples=sum(record.shard.samples for record in kept if record.shard),
        rejected=sum(rejected.values()),
        image_bytes=sum(record.image_bytes for record in kept),
        largest_image=(max(w for w, _ in largest), max(h for _, h in largest)),
        smallest_image=(min(w for w, _ in smallest), min(h for _, h in smallest)),
        shards=tuple(record.shard for record in kept if record.shard),
        labels=None if labels is None else _write_labels(target, labels),
        samples_sha256=file_digest(target / SAMPLES),
        rejects_sha256=file_digest(target / REJECTS) if rejected else None,
    )
    write_whole(target / MANIFEST, manifest.model_dump_json(indent=1).encode() + b"\n")
    return manifest


def _write_labels(target: Path, labels: LabelTable) -> Labels:
    """Write the labels of the images that are in the set, which its table names.

    Raises:
        UserError: every image of a class was rejected: nothing could learn to draw it.
    """
    with (target / SAMPLES).open(newline="", encoding="utf-8", errors="surrogateescape") as table:
        keys = sorted(int(row[0]) for row in islice(csv.reader(table), 1, None))
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


def _count(records: list[ShardRecord]) -> dict[str, int]:
    return dict(sum((Counter(record.rejected) for record in records), Counter[str]()))


def _record(target: Path, out: Path, number: int) -> ShardRecord:
    record = finished(target, out, number)
    if record is None:
        raise UserError(
            target / f"{names(number)}.tar",
            "a shard that vanished after it was written",
            "a folder that nobody else works in",
            "run the same command again",
        )
    return record


def _join(target: Path, kind: str, name: str, header: str, shards: int) -> None:
    with replacing(target / name) as partial, partial.open("wb") as table:
        table.write(header.encode() + b"\r\n")
        for number in range(shards):
            with (target / PROGRESS / f"{names(number)}.{kind}.csv").open("rb") as rows:
                shutil.copyfileobj(rows, table)


def _copies(target: Path, records: list[ShardRecord], members: Sequence[Member]) -> Copies | None:
    """Find equal sources by the digests that the shards' jobs left."""
    parts = []
    for number, record in enumerate(records):
        if record.shard is None:
            continue
        path = target / PROGRESS / f"{names(number)}.{DIGESTS}"
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


def _too_many_rejects(target: Path, images: int, share: float) -> UserError:
    rows = []
    for path in sorted((target / PROGRESS).glob(f"*.{REJECTS}")):
        with path.open(newline="", encoding="utf-8", errors="surrogateescape") as table:
            rows += [(name, reason) for name, reason, _ in csv.reader(table)]
    kinds = Counter(RejectedError(reason).kind for _, reason in rows)
    return UserError(
        f"--max-rejects {share}",
        f"{len(rows):,} of {images:,} images are rejected already: {counted(kinds)}",
        f"at most {int(share * images):,}",
        f"see all so far in {target / PROGRESS}/*.{REJECTS}, and repair or remove them, or allow"
        " more; the same command goes on with what is finished",
        listed=[f"{name}: {reason}" for name, reason in sorted(rows)[:REJECTS_SHOWN]],
    )
