"""A thread that keeps a few items ready, so that whoever takes them waits for none, or not long."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Generator
from contextlib import closing
from typing import Generic, TypeVar

T = TypeVar("T")

DATA_TIMEOUT = 120.0
"""Seconds without a batch after which a loader gives up: a network share's usual pauses are
shorter, and a night spent waiting for a dead one is longer."""


class Feeder(Generic[T]):
    """Runs a generator in a thread of its own, a few items ahead.

    Args:
        items: run in the thread, from the first `take` on, and closed there.
        ahead: items kept ready.
        name: of the thread.
    """

    def __init__(self, items: Generator[T, None, None], ahead: int, name: str) -> None:
        self._items, self._ahead = items, ahead
        self._ready: deque[T] = deque()
        self._changed = threading.Condition()
        self._ended = self._closed = False
        self._error: BaseException | None = None
        # A daemon: it may be stuck in a read that never ends, which must not keep the process
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def take(self, timeout: float) -> T:
        """The next item.

        Raises:
            StopIteration: the generator has ended, or this feeder is closed.
            TimeoutError: it took longer than `timeout` seconds.
            BaseException: whatever the generator raised.
        """
        with self._changed:
            if not self._thread.ident and not self._closed:
                self._thread.start()
            if not self._changed.wait_for(lambda: self._ready or self._ended, timeout):
                raise TimeoutError
            if self._ready:
                item = self._ready.popleft()
                self._changed.notify_all()
                return item
        raise self._error or StopIteration

    def close(self, patience: float) -> bool:
        """End the thread; true if that took no longer than `patience` seconds."""
        with self._changed:
            self._closed = self._ended = True
            self._ready.clear()
            self._changed.notify_all()
        if self._thread.ident:
            self._thread.join(patience)
        return not self._thread.is_alive()

    def _run(self) -> None:
        try:
            with closing(self._items):
                for item in self._items:
                    if not self._put(item):
                        break
        except BaseException as error:
            self._error = error
        finally:
            with self._changed:
                self._ended = True
                self._changed.notify_all()

    def _put(self, item: T) -> bool:
        """Wait for room and add an item; false when the feeder is closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or len(self._ready) < self._ahead)
            if not self._closed:
                self._ready.append(item)
                self._changed.notify_all()
            return not self._closed
