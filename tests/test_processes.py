"""Worker processes: tasks go out, what is told comes back, and none of it needs semaphores."""

import errno
import multiprocessing
import os
import signal
from multiprocessing import synchronize

import pytest

# Workers import this module: nothing here loads torch
from pipeline.errors import UserError
from pipeline.processes import KilledError, Workers


def count_to(number):
    """A task: tells as many numbers; 0 is a mistake, below it the process ends."""
    if number < 0:
        os.kill(os.getpid(), signal.SIGKILL)
    if number == 0:
        raise LookupError("nothing to count")
    yield from range(number)


def test_tasks_are_shared_out_and_all_that_is_told_comes_back(monkeypatch):
    def refuse(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(synchronize.SemLock, "__init__", refuse)
    with Workers(2, count_to) as workers:
        for numbers in ([3, 1, 2, 4], [], [1]):
            told = [each for number in numbers for each in range(number)]
            assert sorted(workers.run(numbers)) == sorted(told)
    assert not multiprocessing.active_children()


def test_what_a_task_raises_comes_back_with_its_place():
    with Workers(1, count_to) as workers, pytest.raises(LookupError, match="to count") as raised:
        list(workers.run([2, 0]))
    assert "in count_to" in raised.value.__notes__[0]
    assert not multiprocessing.active_children()


def test_a_killed_process_is_told():
    with Workers(2, count_to) as workers, pytest.raises(KilledError) as raised:
        list(workers.run([2, -1]))
    assert raised.value.where == "--workers 2"
    assert "was killed" in raised.value.found
    assert not multiprocessing.active_children()


def test_processes_that_the_system_does_not_start_are_told(monkeypatch):
    started: list[object] = []
    start = multiprocessing.context.SpawnProcess.start

    def start_one(process):
        if started:
            raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")
        start(process)
        started.append(process)

    monkeypatch.setattr(multiprocessing.context.SpawnProcess, "start", start_one)
    with pytest.raises(UserError) as raised:
        Workers(3, count_to)
    assert raised.value.where == "--workers 3"
    assert raised.value.found.endswith("1 of them: Resource temporarily unavailable")
    assert not multiprocessing.active_children()
