"""Heartbeats of ranks, through the store that torchrun starts: who has stopped answering?

A collective waits for a rank whose process is stopped or whose host cannot be reached, because such
a rank closes no connection. A rank that is busy, drawing pictures or computing FID, also answers no
collective, but its heartbeat goes on.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import count
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # the public name has no type
    from torch._C._distributed_c10d import Store

BEAT = 5.0
"""Seconds between two heartbeats of a rank."""

LIMIT = 60.0
"""Seconds without a heartbeat after which a rank counts as lost: torchrun needs up to half a minute
more to end, and all is to be over within two minutes."""

LOOK = 1.0
"""Seconds between two looks at the heartbeats."""

MISSED = 3 * BEAT
"""Seconds of silence that no delay of a beat explains."""


class Heartbeats:
    """Sends this rank's heartbeats and watches those of the others, in two threads.

    Silence is counted in looks, not by a clock: hosts' clocks may differ, and a process that was
    itself stopped must not hold that time against the others.

    Args:
        store: a connection that nobody else uses, because a call may block for good.
        rank: the rank of this process.
        ranks: the number of ranks; all of them have called `announce`.
        on_loss: called once, in a thread, with the result of `silent` when that is not empty.
    """

    def __init__(
        self, store: Store, rank: int, ranks: int, on_loss: Callable[[Sequence[int]], None]
    ) -> None:
        self._store, self._rank, self._on_loss = store, rank, on_loss
        self._keys = [_key(each) for each in range(ranks)]
        self._latest = [b""] * ranks
        self._silence = [0.0] * ranks
        self._over = threading.Event()
        # Two threads, because a call to a store on a host that is gone does not time out
        threads = [threading.Thread(target=run, daemon=True) for run in (self._beat, self._watch)]
        for thread in threads:
            thread.start()
        self._beating, self._watching = threads

    def silent(self, seconds: float) -> list[int]:
        """Return the ranks without a heartbeat for so long; this one if the store is silent."""
        # Without the store nothing is known of the others
        if max(self._silence) >= seconds and self._silence[self._rank] >= MISSED:
            return [self._rank]
        return [rank for rank, silence in enumerate(self._silence) if silence >= seconds]

    def close(self) -> None:
        """Stop both threads; one that the store keeps waiting stays."""
        self._over.set()
        self._watching.join()
        self._beating.join(BEAT)

    def _beat(self) -> None:
        # A connection that broke does not come back: then there is no answer, which is silence, too
        with suppress(RuntimeError):
            for number in count(1):
                self._store.set(self._keys[self._rank], str(number))
                self._latest = self._store.multi_get(self._keys)
                if self._over.wait(BEAT):
                    return

    def _watch(self) -> None:
        heard = self._latest
        while not self._over.wait(LOOK):
            latest = self._latest
            for rank, (before, now) in enumerate(zip(heard, latest, strict=True)):
                self._silence[rank] = self._silence[rank] + LOOK if before == now else 0.0
            heard = latest
            if silent := self.silent(LIMIT):
                self._on_loss(silent)
                return


def announce(store: Store, rank: int) -> None:
    """Make a rank's heartbeat known, before it beats."""
    store.set(_key(rank), "0")


def _key(rank: int) -> str:
    return f"heartbeat/{rank}"
