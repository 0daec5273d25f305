"""Worker processes that share out tasks, and talk to their parent through a pipe each.

The standard library's pools would do, but for this: their queues are locked by semaphores, which
Linux keeps in /dev/shm (sem_overview(7)). Where that is full, read-only or absent, as in some
containers, none of them starts.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
import traceback
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, Generic, Self, TypeVar

from pipeline.errors import UserError

Task = TypeVar("Task")
Told = TypeVar("Told")
Function = Callable[[Task], Generator[Told, None, None]]


class KilledError(UserError):
    """A worker ended before its work did."""


class Workers(Generic[Task, Told]):
    """Processes that wait for tasks; a context manager, at whose end they are gone.

    Args:
        count: how many.
        function: does a task and yields what the parent is to be told. It is closed at a yield
            once the parent has no more use for it.
        prepare: called in each process before its first task.

    Attributes:
        ready: `time.perf_counter()` when the first of them was; None before.

    Raises:
        UserError: the system starts no more processes.
    """

    def __init__(
        self,
        count: int,
        function: Function[Task, Told],
        prepare: Callable[[], object] | None = None,
    ) -> None:
        self.ready: float | None = None
        self._flag = f"--workers {count}"
        self._processes: dict[Connection, BaseProcess] = {}
        self._idle: list[Connection] = []
        # spawn: the same on every system, and no lock is copied in mid-air
        context = multiprocessing.get_context("spawn")
        try:
            resource_tracker.ensure_running()  # which Process.start() does, and unblocks signals
            with _deaf_to_interrupts():
                for _ in range(count):
                    ours, theirs = context.Pipe()
                    process = context.Process(target=_serve, args=(theirs, function, prepare))
                    process.start()
                    theirs.close()
                    self._processes[ours] = process
        except OSError as error:
            self.close()
            raise UserError(
                self._flag,
                f"the system started {len(self._processes)} of them: {error.strerror or error}",
                "memory, processes and open files for all of them (ulimit -u, ulimit -n)",
                "use fewer --workers",
            ) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def run(self, tasks: Iterable[Task]) -> Iterator[Told]:
        """Have tasks done, each by whoever is free, and yield what is told of them as it comes.

        Raises:
            KilledError: a process was killed.
            Exception: what the function raised.
        """
        left, working = list(tasks)[::-1], 0
        while left or working:
            while left and self._idle:
                self._send(self._idle.pop(), left.pop())
                working += 1
            for connection in wait(list(self._processes)):
                assert isinstance(connection, Connection)
                match self._receive(connection):
                    case "told", told:
                        yield told
                    case "failed", error:
                        raise error
                    case kind, _:
                        working -= kind == "done"
                        self.ready = self.ready or time.perf_counter()
                        self._idle.append(connection)

    def close(self) -> None:
        """Have the processes stop at their next yield, and wait for that."""
        with _deaf_to_interrupts():  # a second one would leave processes that are just starting
            for connection in self._processes:
                connection.close()
            for process in self._processes.values():
                process.join()
                process.close()

    def _send(self, connection: Connection, task: Task) -> None:
        try:
            connection.send(task)
        except ConnectionError:
            raise self._killed() from None

    def _receive(self, connection: Connection) -> Any:
        try:
            return connection.recv()
        except (EOFError, ConnectionError):
            raise self._killed() from None

    def _killed(self) -> KilledError:
        found = "the worker processes ended before they were ready"
        if self.ready is not None:
            found = "a worker process was killed, probably for lack of memory"
        return KilledError(self._flag, found, "workers that live", "use fewer --workers")


@contextmanager
def _deaf_to_interrupts() -> Iterator[None]:
    """Have processes that start here not hear Ctrl-C from their first moment: the parent does.

    A process inherits which signals are blocked. One that comes meanwhile reaches the parent after.
    """
    if not hasattr(signal, "pthread_sigmask"):  # Windows: there, it is from `_serve` on
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _serve(
    parent: Connection, function: Function[Task, Told], prepare: Callable[[], object] | None
) -> None:
    """What a worker process runs, until the parent closes its end of the pipe."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with suppress(EOFError, ConnectionError):
        if prepare is not None:
            prepare()
        parent.send(("ready", None))
        while True:
            task = parent.recv()
            try:
                with closing(function(task)) as telling:
                    for told in telling:
                        if parent.poll():  # nothing is sent to who is at work: it was closed
                            return
                        parent.send(("told", told))
            except Exception as error:
                error.add_note(traceback.format_exc())  # a pickled error has no traceback
                parent.send(("failed", error))
            else:
                parent.send(("done", None))


def _end_with_parent() -> None:
    """At once: whoever gives the same command again after a kill must not meet the old workers."""
    parent = multiprocessing.parent_process()
    assert parent is not None, "workers have a parent"
    parent.join()
    os._exit(1)
