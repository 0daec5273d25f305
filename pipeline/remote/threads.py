"""Calls of a store in threads of their own: one that is silent must not keep Ctrl-C waiting."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from queue import SimpleQueue
from typing import TypeVar

T = TypeVar("T")

PARALLEL = 8
"""Requests at the same time: one connection seldom fills a network."""


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
        except StopIteration:
            ended.put(None)
        except BaseException as error:
            ended.put(error)
        else:
            ended.put(None)

    # Daemons, since a call that is stuck must not keep the process
    for number in range(PARALLEL):
        threading.Thread(target=run, name=f"call-{number}", daemon=True).start()
    try:
        for _ in range(PARALLEL):
            if (error := ended.get()) is not None:
                raise error
    finally:
        over.set()
