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
from pipeline.packing.labels import LabelTable
from pipeline.packing.merge import Packed, TooManyRejectsError, merge, too_many_rejects
from pipeline.packing.outdir import claim, held, keep_plan, require_space, swap_in
from pipeline.packing.plan import Deal, Packing, plan_for_one, plan_of
from pipeline.packing.shard import Entry, Progress, ShardRecord, Work, finished, names, write_shard
from pipeline.packing.sources.base import ImageFiles, Member
from pipeline.packing.upload import Upload
from pipeline.processes import KilledError, Workers

__all__ = ["Packed", "Packing", "pack"]


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
    upload = out if isinstance(out, Upload) else None
    flag, out = ("--out", out) if isinstance(out, Path) else ("--shard-cache", out.folder)
    plan = plan_for_one(plan_of(members, packing, labels), source)
    with plain_faults(out, len(members), packing), held(out, flag):
        if upload is None:
            target = claim(out, plan, overwrite=packing.overwrite)
        else:
            target = upload.begin(plan, math.ceil(len(members) / packing.per_shard))
        keep_plan(target, plan)
        dealt = Deal(members, packing.seed, packing.per_shard)
        kept = {number: finished(target, out, number) for number in dealt}
        left = [number for number in kept if is_left(kept[number], packing)]
        entries = (dealt[number] for number in left)
        require_space(out, entries, packing.recipe, flag, labelled=labels is not None)
        if upload is not None:
            for number in kept.keys() - {*left}:
                upload.add(number)
        sent = (lambda number: None) if upload is None else upload.add
        work = Work(source, target, packing.recipe, packing.strict, labels)
        written = write_left(work, dealt, left, len(members), packing, progress, sent)
        records = [_record(target, out, number) for number in dealt]
        packed = merge(target, records, packing, members, labels)
        if upload is None:
            swap_in(target, out, packed.manifest)
        else:
            upload.finish(packed.manifest)
    return replace(packed, written=written, resumed=len(dealt) - len(left))


@contextmanager
def plain_faults(out: Path, images: int, packing: Packing) -> Iterator[None]:
    """Turn what ends packing into a `UserError`: too many rejects, and the system's refusals."""
    try:
        yield
    except TooManyRejectsError as error:
        raise too_many_rejects(error.target, images, packing.max_rejects) from None
    except OSError as error:
        place = error.filename or out
        raise UserError(
            place,
            error.strerror or str(error),
            "a source that can be read and a folder that can be written",
            "put that right; the same command goes on with the shards that are finished",
        ) from error


def write_left(
    work: Work,
    shards: Mapping[int, list[Entry]],
    left: Sequence[int],
    images: int,
    packing: Packing,
    progress: Callable[[int, int], None],
    written: Callable[[int], None] = lambda number: None,
) -> int:
    """Write what is left of a set of so many images.

    Returns:
        The images that were gone through.

    Raises:
        TooManyRejectsError: among them are more than the whole set may have.
        UserError, OSError: as `write_shards` does.
    """
    to_write = sum(len(shards[number]) for number in left)

    def report(done: int, rejected: int) -> None:
        progress(done, to_write)
        if rejected > packing.max_rejects * images:
            raise TooManyRejectsError(work.out)

    write_shards(work, shards, left, packing.workers, report, written)
    return to_write


def write_shards(
    work: Work,
    shards: Mapping[int, list[Entry]],
    numbers: Sequence[int],
    workers: int,
    report: Callable[[int, int], None],
    written: Callable[[int], None],
) -> None:
    """Write shards in parallel.

    Args:
        work: what is the same for all of them.
        shards: entries by the shard's number.
        numbers: of those to write.
        workers: processes; 0 to write in this one.
        report: called with the images done and rejected, at the start and as they change; may
            raise.
        written: called with the number of each shard that is finished; may raise.

    Raises:
        UserError: from a worker, or because one was killed or cannot be started.
        OSError: from a worker.
    """
    if not numbers:
        return
    done = rejected = 0
    report(done, rejected)
    tasks = ((number, shards[number]) for number in numbers)
    try:
        with closing(_written(work, tasks, min(workers, len(numbers)))) as reports:
            for progress in reports:
                done += progress.done
                rejected += progress.rejected
                report(done, rejected)
                if progress.finished is not None:
                    written(progress.finished)
    except KilledError as error:
        goes_on = f"{error.remedy}; the same command goes on with the shards that are finished"
        raise UserError(error.where, error.found, error.wanted, goes_on) from None


def _written(
    work: Work, tasks: Iterator[tuple[int, list[Entry]]], workers: int
) -> Generator[Progress, None, None]:
    """Write shards, and yield what comes of it meanwhile."""
    if workers == 0:
        _prepare(work)
        for task in tasks:
            yield from write_shard(work, task)
        return
    with Workers(workers, partial(write_shard, work), partial(_prepare, work)) as running:
        yield from running.run(tasks)


def _prepare(work: Work) -> None:
    if work.recipe.store != "original":
        import torch  # here, so that its two seconds are not the first image's

        torch.set_num_threads(1)  # the cores have a worker each; copying a crop would start more


def is_left(record: ShardRecord | None, packing: Packing) -> bool:
    """Whether a shard must be written: a finished one again, if `strict` is to name its reject."""
    return record is None or (packing.strict and bool(record.rejected))


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
