"""Worker processes that share tasks, each connected to its parent by a pipe.

The standard library's pools lock their queues by semaphores, which Linux keeps in /dev/shm
(sem_overview(7)). They do not start where that is full, read-only or absent, as in some containers.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import traceback
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, Generic, Self, TypeVar

from pipeline.errors import UserError

Task = TypeVar("Task")
Report = TypeVar("Report")
Function = Callable[[Task], Generator[Report, None, None]]


class KilledError(UserError):
    """A worker ended before its work did."""


class Workers(Generic[Task, Report]):
    """Processes that wait for tasks; a context manager, at whose end they are gone.

    Args:
        function: does a task and yields reports for the parent. It is closed at a yield once the
            parent has no more use for it.
        prepare: called in each process before its first task.

    Raises:
        UserError: the system starts no more processes.
    """

    def __init__(
        self,
        count: int,
        function: Function[Task, Report],
        prepare: Callable[[], object] | None = None,
    ) -> None:
        self._ready = False  # whether one of them was
        self._flag = f"--workers {count}"
        self._processes: dict[Connection, BaseProcess] = {}
        self._idle: list[Connection] = []
        # spawn: the same on every system, and no lock is copied in mid-air
        context = multiprocessing.get_context("spawn")
        try:
            resource_tracker.ensure_running()  # which Process.start() does, and unblocks signals
            with _ignoring_sigint():
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

    def run(self, tasks: Iterable[Task]) -> Iterator[Report]:
        """Give each task to a process that is free, and yield the reports as they come.

        A task is made when its turn comes, and is not None.

        Raises:
            KilledError: a process was killed.
            Exception: what the function raised.
        """
        left, working = iter(tasks), 0
        following = next(left, None)
        while following is not None or working:
            while following is not None and self._idle:
                self._send(self._idle.pop(), following)
                following = next(left, None)
                working += 1
            for connection in wait(list(self._processes)):
                assert isinstance(connection, Connection)
                match self._receive(connection):
                    case "report", report:
                        yield report
                    case "failed", error:
                        raise error
                    case kind, _:
                        working -= kind == "done"
                        self._ready = True
                        self._idle.append(connection)

    def close(self) -> None:
        """Have the processes stop at their next yield, and wait for that."""
        with _ignoring_sigint():  # a second one would leave processes that are just starting
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
        if self._ready:
            found = "a worker process was killed, probably for lack of memory"
        return KilledError(self._flag, found, "workers that live", "use fewer --workers")


@contextmanager
def _ignoring_sigint() -> Iterator[None]:
    """Let processes that start here ignore Ctrl-C from their first moment: the parent handles it.

    A process inherits which signals are blocked. The parent receives a blocked one afterwards.
    """
    if not hasattr(signal, "pthread_sigmask"):  # Windows: `_serve` ignores it from there on
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _serve(
    parent: Connection, function: Function[Task, Report], prepare: Callable[[], object] | None
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
                with closing(function(task)) as reports:
                    for report in reports:
                        if parent.poll():  # a worker is sent nothing: the parent closed the pipe
                            return
                        parent.send(("report", report))
            except Exception as error:
                error.add_note(traceback.format_exc())  # a pickled error has no traceback
                parent.send(("failed", error))
            else:
                parent.send(("done", None))


def _end_with_parent() -> None:
    """End when the parent does: the same command may be given again at once after a kill."""
    parent = multiprocessing.parent_process()
    assert parent is not None, "workers have a parent"
    parent.join()
    os._exit(1)
