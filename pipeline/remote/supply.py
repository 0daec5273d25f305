"""Fetching ahead: the tars of a remote set, in the order in which their rows will be read.

The order of an epoch is known before it begins, and takes one window of shards after another. So a
tar is needed for one stretch of an epoch. If the set as a whole does not fit, it may leave the
cache after that; what the reader is at is kept, while what was fetched ahead gives way to what
another run needs now.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from heapq import heappop, heappush
from typing import NamedTuple

import numpy as np

from pipeline.errors import UserError
from pipeline.remote.cache import FullError
from pipeline.remote.files import RemoteFiles
from pipeline.remote.threads import PARALLEL
from pipeline.shards.order import ReadPlan, Rows, Schedule
from pipeline.shards.shard_set import ShardSet

PATIENCE = 60.0
"""Seconds that a process waits for its machine's first one to begin to fetch what it needs; then it
fetches that itself, and if it cannot, has an error of its own to tell."""

PAUSE = 1.0
"""Seconds before a tar is asked for again that could not be had; then longer."""

AHEAD = 2 * PARALLEL
"""Tars of a set that does not fit that are fetched before their turn: others want room, too."""

CLOSING_PATIENCE = 5.0
"""Seconds for the threads to end by themselves."""


class Stretch(NamedTuple):
    """Where rows of one shard are read; ordered by where that ends."""

    run: int
    last: int
    """Place in the run of the last such row."""
    first: int
    name: str
    """Of the tar."""


class Supply:
    """Threads that fetch ahead.

    Args:
        schedules: of each rank to be supplied.
        plan: what each reads, in runs of equal lengths.
        fetches: whether this process fetches, or has the cache keep what another one does.
    """

    def __init__(
        self,
        shards: ShardSet,
        files: RemoteFiles,
        schedules: Sequence[Schedule],
        plan: ReadPlan,
        *,
        fetches: bool,
    ) -> None:
        self._files, self._fetches = files, fetches
        self._names = [f"{shard.name}.tar" for shard in shards.manifest.shards]
        self._ends = np.cumsum([shard.samples for shard in shards.manifest.shards])
        touched = {number for each in schedules for number in self._touched_by(each)}
        self._all = [self._names[number] for number in sorted(touched)]
        self._fits = files.fit(self._all)
        self._room = max(0, files.cache.room())
        if self._fits:
            files.keep(self._all)
        self._changed = threading.Condition()
        self._held, self._due = Counter[str](), list[Stretch]()
        self._place = (0, 0)
        self._closed = False
        self._route = self._stretches([plan(schedule) for schedule in schedules])
        self._head = next(self._route, None)
        count = PARALLEL if fetches else 1
        self._threads = [
            threading.Thread(target=self._run, name=f"fetch-{number}", daemon=True)
            for number in range(count)
        ]
        for thread in self._threads:
            thread.start()

    def reached(self, run: int, place: int) -> list[str]:
        """Let go of the tars that are only read before this place, and return their names."""
        if self._fits:
            return []
        with self._changed:
            self._place = run, place
            passed = []
            while self._due and self._due[0][:2] < self._place:
                passed += self._release(heappop(self._due).name)
            self._changed.notify_all()
        return passed

    @property
    def idle(self) -> float:
        """Seconds since the last byte came."""
        return self._files.idle

    def close(self) -> None:
        """End the threads; what they have fetched stays in the cache."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        end = time.monotonic() + CLOSING_PATIENCE
        for thread in self._threads:
            thread.join(max(0.0, end - time.monotonic()))
        for name in self._all if self._fits else [*self._held]:
            self._files.release(name)  # the set may stay open, and be read by another loader

    def _touched_by(self, schedule: Schedule) -> range:
        """The shards that a rank's rows lie in."""
        ends = [schedule.first, schedule.first + len(schedule) - 1]
        low, high = np.searchsorted(self._ends, ends, side="right").tolist()
        return range(low, high + 1)

    def _stretches(self, runs: Sequence[Iterator[Rows]]) -> Iterator[Stretch]:
        """The way through the set, in the order of first use."""
        for run, parts in enumerate(zip(*runs, strict=False)):
            stretches = self._of_run(run, parts)
            if not self._fits and run == 0:
                self._require_room(stretches)
            yield from stretches
            if self._fits:
                break
        if self._fits:  # what this run has left out, the next one may need
            yield from (Stretch(0, 0, 0, name) for name in self._all if name not in self._held)

    def _of_run(self, run: int, parts: Sequence[Rows]) -> list[Stretch]:
        ends = dict[int, tuple[int, int]]()
        for rows in parts:
            numbers = np.searchsorted(self._ends, rows, side="right")
            found, first = np.unique(numbers, return_index=True)
            last = len(rows) - 1 - np.unique(numbers[::-1], return_index=True)[1]
            for number, low, high in np.stack([found, first, last], axis=1).tolist():
                before = ends.get(number, (low, high))
                ends[number] = min(low, before[0]), max(high, before[1])
        ordered = sorted(ends.items(), key=lambda item: item[1])
        return [Stretch(run, high, low, self._names[number]) for number, (low, high) in ordered]

    def _require_room(self, stretches: Sequence[Stretch]) -> None:
        """Refuse a cache that has no room for what is read at the same time."""
        names, firsts = [each.name for each in stretches], [each.first for each in stretches]
        begun = np.cumsum([self._files.size(name) for name in names])
        by_end = sorted(stretches, key=lambda each: each.last)
        ended = np.cumsum([0, *(self._files.size(each.name) for each in by_end)])
        before = np.searchsorted([each.last for each in by_end], firsts)
        needed = int((begun - ended[before]).max())
        if needed > self._room:
            raise UserError(
                "--shard-cache-size",
                f"{self._room / 1e6:,.1f} MB of room in {self._files.cache.folder}, beside what"
                " others use of it",
                f"{needed / 1e6:,.1f} MB or more: so much of this set is read at the same time",
                "raise --shard-cache-size, or name a --shard-cache on a larger disk",
            )

    def _run(self) -> None:
        while (name := self._next()) is not None:
            if self._fetches:
                self._fetch(name)

    def _fetch(self, name: str) -> None:
        """Fetch a tar; if that fails, again and again: the store may be back before it is read.

        Whoever reads it asks for it himself, and is told why it cannot be had.
        """
        pause = PAUSE
        while not self._closed:
            try:
                self._files.fetch(name, lambda: self._closed)
            except FullError:
                return  # others need the room now
            except UserError:
                with self._changed:
                    self._changed.wait_for(lambda: self._closed, pause)
                pause = min(2 * pause, PATIENCE)
            else:
                return

    def _next(self) -> str | None:
        """What is to be fetched next, once there is room for it, and never before its turn."""
        with self._changed:
            while not self._closed and self._head and not self._has_room(self._head.name):
                self._changed.wait()
            if self._closed or self._head is None:
                return None
            stretch, self._head = self._head, next(self._route, None)
            self._held[stretch.name] += 1
            heappush(self._due, stretch)
            return stretch.name

    def _has_room(self, name: str) -> bool:
        if self._fits or name in self._held:
            return True
        ahead = sum((each.run, each.first) > self._place for each in self._due)
        held = sum(map(self._files.size, {*self._held, name}))
        return ahead < AHEAD and held <= self._room

    def _release(self, name: str) -> list[str]:
        self._held[name] -= 1
        if self._held[name]:
            return []
        del self._held[name]
        self._files.release(name)
        return [name]
