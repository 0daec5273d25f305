"""From a source to a shard set: deal, hand out to workers, gather; the manifest last.

Each shard is an independent job of a worker process. Its bytes depend only on the source, the
options and its number, so any number of workers makes the same set, and the shards that a killed
run finished are kept.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

from pipeline.errors import UserError
from pipeline.packing.merge import Packed, merge, too_many_rejects
from pipeline.packing.outdir import claim, held, keep_plan, require_space, swap_in
from pipeline.packing.plan import Deal, Entry, Packing, Plan, plan_for_one, plan_of
from pipeline.packing.shard import Progress, ShardRecord, Work, finished, shard_name, write_shard
from pipeline.packing.sources.base import ImageFiles, Member
from pipeline.packing.upload import Upload
from pipeline.processes import KilledError, Workers
from pipeline.remote.access import Access
from pipeline.remote.address import Address
from pipeline.shards.labels import LabelTable

__all__ = ["Packed", "Packing", "pack"]


def pack(
    source: ImageFiles,
    members: Sequence[Member],
    out: Path | Address,
    packing: Packing,
    progress: Callable[[int, int], None] = lambda done, total: None,
    labels: LabelTable | None = None,
    access: Access | None = None,
    sent: Callable[[int, int], None] = lambda up, total: None,
) -> Packed:
    """Pack images of a source into a shard set, or resume where an earlier run was cut off.

    Args:
        source: read by each worker through its own handle.
        members: sorted by name; a sample's key is its place among them, in 8 digits.
        out: new, empty, an unfinished set of the same source and options, or with `overwrite` a
            complete set; or a place in a store, to which shards are sent as they are finished.
        packing: the options.
        progress: called a few times a second with the images that this call has gone through, and
            those that it has to go through.
        labels: of the members, if they have some.
        access: of the store.
        sent: as for `Upload`.

    Raises:
        UserError: an occupied folder, another process in it, too many rejects, a full disk, a
            source that went away; from the store.
    """
    plan = plan_for_one(plan_of(members, packing, labels), source)
    if isinstance(out, Path):
        with holding(out, "--out"):
            target = claim(out, plan, overwrite=packing.overwrite)
            work = Work(source, target, packing, len(members), labels)
            packed = _pack(work, plan, members, out, "--out", progress)
            swap_in(target, out, packed.manifest)
            return packed
    with Upload(out, access or Access(), sent) as upload, holding(upload.folder, "--shard-cache"):
        folder = upload.begin(plan, math.ceil(len(members) / packing.per_shard))
        work = Work(source, folder, packing, len(members), labels)
        packed = _pack(work, plan, members, folder, "--shard-cache", progress, upload.add)
        upload.finish(packed.manifest)
        return packed


def _pack(
    work: Work,
    plan: Plan,
    members: Sequence[Member],
    out: Path,
    flag: str,
    progress: Callable[[int, int], None],
    finish: Callable[[int], None] = lambda number: None,
) -> Packed:
    """Write the shards that are left, call `finish` with the number of each, and merge all."""
    keep_plan(work.out, plan)
    dealt = Deal(members, work.packing.seed, work.packing.per_shard)
    kept = {number: finished(work.out, out, number) for number in dealt}
    left = [number for number in kept if is_left(kept[number], work.packing)]
    for number in kept.keys() - {*left}:
        finish(number)
    written = write_left(work, dealt, left, flag, progress, finish)
    packed = merge(work, [_record(work.out, out, number) for number in dealt], members)
    return replace(packed, written=written, resumed=len(dealt) - len(left))


@contextmanager
def holding(folder: Path, flag: str) -> Iterator[None]:
    """Hold a folder, and turn what ends packing into it into a `UserError`."""
    with plain_faults(folder), held(folder, flag):
        yield


@contextmanager
def plain_faults(out: Path) -> Iterator[None]:
    """Turn what ends packing into a `UserError` that says how to go on."""
    goes_on = "the same command goes on with the shards that are finished"
    try:
        yield
    except KilledError as error:
        remedy = f"{error.remedy}; {goes_on}"
        raise UserError(error.where, error.found, error.wanted, remedy) from None
    except OSError as error:
        raise UserError(
            error.filename or out,
            error.strerror or str(error),
            "a source that can be read and a folder that can be written",
            f"put that right; {goes_on}",
        ) from error


def write_left(
    work: Work,
    shards: Mapping[int, list[Entry]],
    left: Sequence[int],
    flag: str,
    progress: Callable[[int, int], None],
    written: Callable[[int], None] = lambda number: None,
) -> int:
    """Write what is left of a set's shards, in parallel.

    `progress` is called with the images done and all there are to do, at the start and as they
    change; `written`, which may raise, with the number of each shard that is finished.

    Returns:
        The images that were gone through.

    Raises:
        UserError: a disk too small, more rejects than the whole set may have, or from a worker.
        KilledError: a worker was killed.
        OSError: from a worker.
    """
    require_space(work, (shards[number] for number in left), flag)
    if not left:
        return 0
    to_write = sum(len(shards[number]) for number in left)
    most, done, rejected = work.packing.max_rejects * work.images, 0, 0
    progress(done, to_write)
    with closing(_written(work, shards, left)) as reports:
        for report in reports:
            done += report.done
            rejected += report.rejected
            progress(done, to_write)
            if rejected > most:
                break
            if report.finished is not None:
                written(report.finished)
    if rejected > most:  # the workers have ended, and recorded theirs
        raise too_many_rejects(work)
    return to_write


def _written(
    work: Work, shards: Mapping[int, list[Entry]], left: Sequence[int]
) -> Generator[Progress, None, None]:
    """Write shards, and yield what comes of it meanwhile; without workers, in this process."""
    tasks = ((number, shards[number]) for number in left)
    count = min(work.packing.workers, len(left))
    if count == 0:
        _prepare(work)
        for task in tasks:
            yield from write_shard(work, task)
        return
    with Workers(count, partial(write_shard, work), partial(_prepare, work)) as running:
        yield from running.run(tasks)


def _prepare(work: Work) -> None:
    if work.packing.recipe.store != "original":
        import torch  # here, so that its two seconds are not the first image's

        torch.set_num_threads(1)  # the cores have a worker each; copying a crop would start more


def is_left(record: ShardRecord | None, packing: Packing) -> bool:
    """Whether a shard must be written: a finished one again, if `strict` is to name its reject."""
    return record is None or (packing.strict and bool(record.rejected))


def _record(target: Path, out: Path, number: int) -> ShardRecord:
    record = finished(target, out, number)
    if record is None:
        raise UserError(
            target / f"{shard_name(number)}.tar",
            "a shard that vanished after it was written",
            "a folder that nobody else works in",
            "run the same command again",
        )
    return record
