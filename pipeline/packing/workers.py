"""The worker processes of packing: shards handed out, faults and progress brought back."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Mapping
from functools import partial

from pipeline.errors import UserError
from pipeline.packing.shard import Entry, Progress, Work, write_shard
from pipeline.processes import KilledError, Workers


def write_shards(
    work: Work,
    shards: Mapping[int, list[Entry]],
    workers: int,
    report: Callable[[int, int], None],
) -> float:
    """Have shards written, by number, in parallel.

    Args:
        work: what is the same for all of them.
        shards: each one's entries.
        workers: processes.
        report: called with the images done and rejected, at the start and with every news; may
            raise.

    Returns:
        Seconds from the first worker's readiness to the end.

    Raises:
        UserError: from a worker, or because one was killed or cannot be started.
        OSError: from a worker.
    """
    if not shards:
        return 0.0
    count, done, rejected = min(workers, len(shards)), 0, 0
    report(done, rejected)
    try:
        with Workers(count, partial(_write, work), partial(_prepare, work)) as running:
            for progress in running.run(shards.items()):
                done += progress.done
                rejected += progress.rejected
                report(done, rejected)
            assert running.ready is not None, "there were shards"
            return time.perf_counter() - running.ready
    except KilledError as error:
        goes_on = f"{error.remedy}; the same command goes on with the shards that are finished"
        raise UserError(error.where, error.found, error.wanted, goes_on) from None


def _prepare(work: Work) -> None:
    if work.recipe.store != "original":
        import torch  # here, so that its two seconds are not the first image's

        torch.set_num_threads(1)  # the cores have a worker each; copying a crop would start more


def _write(work: Work, shard: tuple[int, list[Entry]]) -> Generator[Progress, None, None]:
    return write_shard(work, *shard)
