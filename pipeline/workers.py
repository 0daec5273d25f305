"""The worker processes of packing: shards handed out, faults and progress brought back."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager

from pipeline.errors import UserError
from pipeline.shard import Entry, Shared, Work, write_shard

POLL_SECONDS = 0.05
"""Between two looks at the workers' counters."""


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
        report: called many times a second with the images done and rejected; may raise.

    Returns:
        Seconds from the first worker's readiness to the end.

    Raises:
        UserError: from a worker, or because one was killed.
        OSError: from a worker.
    """
    if not shards:
        return 0.0
    # spawn: the same on every system, and no lock is copied in mid-air
    context = multiprocessing.get_context("spawn")
    shared = Shared(
        context.Value("q", 0),
        context.Value("q", 0),
        context.RawValue(ctypes.c_bool, False),
        context.RawValue(ctypes.c_bool, False),
    )
    pool = ProcessPoolExecutor(
        min(workers, len(shards)), context, initializer=_start, initargs=(work, shared)
    )
    with pool:
        with _deaf_to_interrupts():  # the workers start here
            futures = {pool.submit(_write, number, entries) for number, entries in shards.items()}
        try:
            started = _await_first(shared, futures)
            _await_all(futures, lambda: report(*shared.counts()))
            return time.perf_counter() - started
        except BrokenProcessPool:
            raise UserError(
                f"--workers {workers}",
                "a worker process was killed, probably for lack of memory"
                if shared.ready.value
                else "the worker processes ended before they were ready",
                "workers that live",
                "use fewer --workers; the same command goes on with the shards that are finished",
            ) from None
        finally:
            shared.stop.value = True
            with _deaf_to_interrupts():  # a second one would leave workers that are just starting
                pool.shutdown(cancel_futures=True)


@contextmanager
def _deaf_to_interrupts() -> Iterator[None]:
    """Have processes that start here not hear Ctrl-C from their first moment: the parent does.

    A process inherits which signals are blocked. One that comes meanwhile reaches the parent after.
    """
    if not hasattr(signal, "pthread_sigmask"):  # Windows: there, it is from `_start` on
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _await_first(shared: Shared, futures: set[Future[None]]) -> float:
    while not shared.ready.value:
        if any(future.done() for future in futures):
            break  # it failed before it was ready: `_await_all` says how
        time.sleep(POLL_SECONDS)
    return time.perf_counter()


def _await_all(futures: set[Future[None]], report: Callable[[], None]) -> None:
    pending = futures
    while pending:
        done, pending = wait(pending, timeout=POLL_SECONDS)
        report()
        for future in done:
            future.result()  # raises what the worker raised, at once


_worker: tuple[Work, Shared]
"""What this process works on; set once, in workers only."""


def _start(work: Work, shared: Shared) -> None:
    global _worker  # noqa: PLW0603, a pool hands its initialiser's arguments to no task
    _worker = work, shared
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if work.recipe.store != "original":
        import torch  # here, so that its two seconds are not the first image's

        torch.set_num_threads(1)  # the cores have a worker each; copying a crop would start more
    shared.ready.value = True


def _end_with_parent() -> None:
    """Without this, a worker whose parent was killed would wait for its next shard for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None, "workers have a parent"
    parent.join()
    os._exit(1)


def _write(number: int, entries: list[Entry]) -> None:
    work, shared = _worker
    write_shard(work, shared, number, entries)
