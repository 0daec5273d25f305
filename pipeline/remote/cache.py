"""The shard cache: files that were fetched, under their SHA-256, shared by sets and runs.

    sha256/ab/ab12…            a whole file, named by its digest
    sha256/ab/ab12….SIZE.partial   one that is being fetched, locked by whoever does
    leases/…                   digests that a process still needs, locked while it lives
    sets/…                     which manifest a URL had when it was opened last
    lock                       held for a moment by whoever leases, or makes room

Only files of these names are ever deleted, so that whatever else lies in the folder is safe. A file
is compared with its digest once in each process, before the first of its bytes is used. What a
killed process leaves is unlocked, and of no use to anyone: the next one that needs room removes it.
"""

from __future__ import annotations

import errno
import os
import re
import secrets
import shutil
import threading
import time
import weakref
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from pipeline.errors import UserError
from pipeline.files import PARTIAL, file_digest

SHARE = 0.5
"""Share of the disk's free space that a cache takes where nobody says."""

POLL = 0.02
"""Seconds between two looks at what another process does."""

STILL = 60.0
"""Seconds without a change after which another process is not waited for: it may be stopped."""

LOOK = 1.0
"""Seconds between two looks at all that lies in the folder, while there is room."""

_BLOB = re.compile(r"([0-9a-f]{64})(?:\.(\d+)(?:\.\d+)?" + re.escape(PARTIAL) + ")?")
_LEASE = re.compile(r"\d+-[0-9a-f]{8}")

_DISK_FULL = (errno.ENOSPC, errno.EDQUOT)


class Blob(NamedTuple):
    """A file by its contents."""

    sha256: str
    size: int
    """In bytes; 0 for a small one of unknown size."""


class FullError(UserError):
    """What is needed at the same time takes more than the cache may.

    Attributes:
        for_good: without what is being fetched, too.
    """

    def __init__(self, *parts: Any, for_good: bool = False) -> None:
        super().__init__(*parts)
        self.for_good = for_good


class _Kept(NamedTuple):
    """A file in the cache, whole or not."""

    path: Path
    sha256: str
    size: int
    used: float
    """When it was last used, in seconds since 1970."""
    whole: bool


class ShardCache:
    """A folder of files that were fetched.

    Args:
        folder: made when something is put into it.
        size: bytes that it may take; None for half of what is free, beside what it has already.

    Raises:
        UserError: the folder cannot be used.
    """

    def __init__(self, folder: Path, size: int | None = None) -> None:
        self.folder = folder
        self._checked: dict[str, tuple[int, int, int]] = {}
        """Of the files that this process has compared with their digest, what would change."""
        self._total, self._looked, self._counting = 0, -LOOK, threading.Lock()
        """Bytes when the folder was looked at last, and what this process has begun since then."""
        self._checking: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)
        with self._usable():
            for name in ("sha256", "leases", "sets"):
                (folder / name).mkdir(parents=True, exist_ok=True)
            free = shutil.disk_usage(folder).free
            self.limit = int(SHARE * (free + self.held())) if size is None else size
            """Bytes that it may take."""

    def get(
        self,
        blob: Blob,
        fetch: Callable[[BinaryIO], None],
        watch: Callable[[bool], None] = lambda grew: None,
        patience: float = 0.0,
        *,
        urgent: bool = True,
    ) -> Path:
        """Where a file lies, whole and checked; fetches it if it is not there, or damaged.

        Args:
            blob: the file. The caller has it leased.
            fetch: writes it to a file, and raises a `UserError` if that comes to other contents.
            watch: called again and again while another process fetches it, with whether more of it
                is there; may raise.
            patience: seconds to wait for another process to begin.
            urgent: whether to wait for room that others take for what they fetch.

        Raises:
            FullError: there is no room.
            UserError: from `fetch`, or the folder cannot be used.
        """
        path = self._path(blob.sha256)
        names = [f"{blob.sha256}.{blob.size}{each}{PARTIAL}" for each in ("", f".{os.getpid()}")]
        shared, own = map(path.with_name, names)
        began = changed = time.monotonic()
        seen, partial = None, shared
        with self._usable():
            while not self._is_whole(path):
                now = time.monotonic()
                with _filling(partial, waiting=now - began < patience) as file:
                    if file is None:
                        time.sleep(POLL)
                        found = _status(shared)
                        seen, before = found and found.st_size, seen
                        changed = changed if seen == before else now
                        watch(seen != before)
                        partial = own if now - changed > STILL else shared
                    elif not self._is_whole(path):
                        self._fetch(blob, file, fetch, watch if urgent else None)
                        self._checked[path.name] = _identity(partial)
                        partial.replace(path)
        return path

    def has(self, blob: Blob) -> bool:
        """Whether a file lies here; it is not looked into."""
        return self._path(blob.sha256).exists()

    def adopt(self, path: Path, sha256: str) -> None:
        """Move a file in, whose digest is known to be this; the cache may delete it from now on."""
        kept = self._path(sha256)
        with self._usable():
            kept.parent.mkdir(exist_ok=True)
            path.replace(kept)

    def lease(self) -> Lease:
        """Begin to name files that must stay."""
        with self._usable():
            return Lease(self)

    def held(self) -> int:
        """Bytes that it takes now."""
        return sum(kept.size for kept in self._all())

    def room(self, wanted: Iterable[str] = ()) -> int:
        """Bytes that are free, or would be if all that nobody has leased were deleted.

        Args:
            wanted: digests of files that somebody may have leased, and that are to be there.
        """
        with self.locked():
            leased = self._leased().difference(wanted)
        return self.limit - sum(kept.size for kept in self._all() if kept.sha256 in leased)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep every other process from leasing and from making room."""
        with self._usable(), (self.folder / "lock").open("ab") as file:
            began = time.monotonic()
            while not _lock(file):
                if time.monotonic() - began > STILL:
                    raise UserError(
                        f"--shard-cache {self.folder}",
                        f"locked by another process, for {STILL:g} seconds",
                        "a lock that is let go of after a moment",
                        "see whether a run is stopped, and end it or let it go on",
                    )
                time.sleep(POLL / 10)
            yield

    def _path(self, sha256: str) -> Path:
        return self.folder / "sha256" / sha256[:2] / sha256

    def _is_whole(self, path: Path) -> bool:
        with self._checking[path.name], suppress(FileNotFoundError):
            if self._checked.get(path.name) == _identity(path):
                return True
            if file_digest(path) == path.name:
                self._checked[path.name] = _identity(path)
                with suppress(PermissionError):  # of another user, who lets us read it
                    os.utime(path, ns=(time.time_ns(), path.stat().st_mtime_ns))  # used now
                return True
        return False

    def _fetch(
        self,
        blob: Blob,
        file: BinaryIO,
        fetch: Callable[[BinaryIO], None],
        watch: Callable[[bool], None] | None,
    ) -> None:
        self._begin(blob.size, watch)
        try:
            _fill(file, fetch)
        except OSError as error:
            if error.errno not in _DISK_FULL or not self._make_room(blob.size):
                raise
            _fill(file, fetch)

    def _begin(self, size: int, watch: Callable[[bool], None] | None) -> None:
        """Make room for a file; what others fetch within a moment of the last look is not seen.

        Raises:
            FullError: there is none; with `watch`, not even when others have fetched what they are
                at.
        """
        with self._counting:
            self._total += size
            recent = time.monotonic() - self._looked < LOOK
        if recent and self._total <= self.limit:
            return
        began = time.monotonic()
        while True:
            try:
                self._make_room(0, size)
            except FullError as full:
                if watch is None or full.for_good or time.monotonic() - began > STILL:
                    raise
                time.sleep(POLL)
                watch(False)
            else:
                return

    def _make_room(self, more: int, size: int = 0) -> bool:
        """Delete what was used longest ago and nobody has leased, until all is within the limit.

        Args:
            more: bytes to delete in any case, since the disk is full.
            size: of the file that the room is for.

        Returns:
            Whether so many were deleted.

        Raises:
            FullError: what is leased takes more than the limit.
        """
        with self.locked():
            everything = self._all()
            total = sum(kept.size for kept in everything)
            full = total > self.limit or more > 0
            leased = self._leased() if full else set()
            for kept in sorted(everything, key=lambda kept: (kept.whole, kept.used)):
                if total <= self.limit and more <= 0:
                    break
                if (kept.sha256 not in leased) if kept.whole else _is_left_behind(kept.path):
                    kept.path.unlink(missing_ok=True)
                    total, more = total - kept.size, more - kept.size
            with self._counting:
                self._total, self._looked = total, time.monotonic()
            needed = size + sum(
                kept.size for kept in everything if kept.whole and kept.sha256 in leased
            )
        if total > self.limit:
            raise FullError(
                f"--shard-cache-size {self.limit / 1e6:,.1f} MB",
                f"{total / 1e6:,.1f} MB in {self.folder} are needed at the same time",
                "room for all shards that are read at the same time, by all runs that share it",
                "raise --shard-cache-size, or name a --shard-cache on a larger disk",
                for_good=needed > self.limit,
            )
        return more <= 0

    def _all(self) -> list[_Kept]:
        found = []
        for folder in os.scandir(self.folder / "sha256"):
            for entry in os.scandir(folder.path) if folder.is_dir() else ():
                match = _BLOB.fullmatch(entry.name)
                if match is None or not entry.name.startswith(folder.name):
                    continue
                with suppress(FileNotFoundError):
                    status, whole = entry.stat(), match[2] is None
                    size = max(status.st_size, int(match[2] or 0))
                    found.append(_Kept(Path(entry), match[1], size, status.st_atime, whole))
        return found

    def _leased(self) -> set[str]:
        """The digests in the leases of all processes that live."""
        digests: set[str] = set()
        for path in (self.folder / "leases").iterdir():
            if not _LEASE.fullmatch(path.name):
                continue
            with suppress(FileNotFoundError), path.open("r+b") as file:
                if _lock(file):
                    path.unlink()
                else:
                    digests.update(file.read().decode().split())
        return digests

    @contextmanager
    def _usable(self) -> Iterator[None]:
        """Turn the system's refusal of a path in the folder into a `UserError`."""
        try:
            yield
        except OSError as error:
            raise UserError(
                f"--shard-cache {self.folder}",
                f"{error.filename or 'a file in it'}: {error.strerror or error}",
                "a folder of yours that can be written, with room for shards",
                "make room, or name another --shard-cache",
            ) from error


class Lease:
    """Digests of files that a process still needs: as long as it lives, nobody deletes them."""

    def __init__(self, cache: ShardCache) -> None:
        self._cache, self._digests = cache, set[str]()
        self._thread = threading.Lock()
        path = cache.folder / "leases" / f"{os.getpid()}-{secrets.token_hex(4)}"
        with cache.locked():
            self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
            _lock(self._file)
        weakref.finalize(self, _end, self._file, path, os.getpid())

    def add(self, digests: Iterable[str]) -> None:
        """Keep these too. Those that were deleted before are still gone."""
        with self._thread:
            self._write(self._digests.union(digests))

    def drop(self, digests: Iterable[str]) -> None:
        """Let these go."""
        with self._thread:
            self._write(self._digests.difference(digests))

    def _write(self, digests: set[str]) -> None:
        if digests != self._digests:
            self._digests = digests
            with self._cache.locked():
                os.ftruncate(self._file, 0)
                os.pwrite(self._file, "\n".join(digests).encode(), 0)


def _lock(file: BinaryIO | int) -> bool:
    """Lock a file for whoever opened it; false if somebody else holds it."""
    import fcntl  # here, since Windows has none, and needs none for sets in folders

    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextmanager
def _filling(partial: Path, waiting: bool) -> Iterator[BinaryIO | None]:
    """An unfinished file, locked; None while another process has it, or may still begin it."""
    if waiting and not partial.exists():
        yield None
        return
    partial.parent.mkdir(exist_ok=True)
    with open(partial, "r+b", opener=_create) as file:  # Path's has no opener
        locked, there = _lock(file), _status(partial)
        # Whoever had it locked may have renamed it
        if not locked or there is None or there.st_ino != os.fstat(file.fileno()).st_ino:
            yield None
            return
        try:
            yield file
        except BaseException:
            partial.unlink(missing_ok=True)
            raise


def _end(file: int, path: Path, owner: int) -> None:
    """Close a lease, and unless this is a process that inherited it, remove it."""
    os.close(file)
    if os.getpid() == owner:
        path.unlink(missing_ok=True)


def _create(path: str, flags: int) -> int:
    """Open a file, or a new one; through no link, for others may write to the folder."""
    return os.open(path, flags | os.O_CREAT | os.O_NOFOLLOW, 0o666)


def _fill(file: BinaryIO, fetch: Callable[[BinaryIO], None]) -> None:
    """Fetch into a file in which a killed process may have left something."""
    file.seek(0)
    file.truncate()
    fetch(file)
    file.flush()


def _identity(path: Path) -> tuple[int, int, int]:
    """What changes with a file's contents."""
    found = path.stat()
    return found.st_ino, found.st_mtime_ns, found.st_size


def _status(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except FileNotFoundError:
        return None


def _is_left_behind(path: Path) -> bool:
    """Whether nobody fetches into an unfinished file."""
    try:
        with path.open("r+b") as file:
            return _lock(file)
    except FileNotFoundError:
        return False
