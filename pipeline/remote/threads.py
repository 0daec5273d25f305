"""Calls of a store in threads of their own: one that is silent must not keep Ctrl-C waiting."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from queue import SimpleQueue
from typing import TypeVar

R = TypeVar("R")
T = TypeVar("T")

PARALLEL = 8
"""Requests at the same time: one connection seldom fills a network."""


def interruptibly(call: Callable[[], R]) -> R:
    """Call, so that Ctrl-C ends the wait for it: code that is not Python's would not look."""
    if threading.current_thread() is not threading.main_thread():
        return call()
    outcome: Future[R] = Future()

    def run() -> None:
        try:
            outcome.set_result(call())
        except BaseException as error:
            outcome.set_exception(error)

    threading.Thread(target=run, name="call", daemon=True).start()
    return outcome.result()


def call_each(call: Callable[[T], object], items: Iterable[T]) -> None:
    """Call with each of the items, several at a time.

    Raises:
        Exception: the first that a call raised; none is begun after that.
    """
    left, lock, ended = iter(items), threading.Lock(), SimpleQueue[BaseException | None]()
    over = threading.Event()

    def run() -> None:
        try:
            while not over.is_set():
                with lock:
                    item = next(left)
                call(item)
            ended.put(None)
        except BaseException as error:
            ended.put(None if isinstance(error, StopIteration) else error)

    # Daemons, since a call that is stuck must not keep the process
    for number in range(PARALLEL):
        threading.Thread(target=run, name=f"call-{number}", daemon=True).start()
    try:
        for _ in range(PARALLEL):
            if (error := ended.get()) is not None:
                raise error
    finally:
        over.set()
