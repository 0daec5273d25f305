"""Files that are whole or absent, their digests, and locks."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

from pipeline.errors import UserError

PARTIAL = ".partial"
"""What an unfinished file's name ends in."""


def cache_folder() -> Path:
    """Where what can be computed again is kept: specifications.freedesktop.org/basedir-spec.

    Raises:
        RuntimeError: nobody knows a home.
    """
    base = os.environ.get("XDG_CACHE_HOME", "")
    # The specification says to pass over relative ones
    return (Path(base) if Path(base).is_absolute() else Path.home() / ".cache") / "dcgan-shards"


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary name to write to; it becomes `path` on leaving, and goes on an exception.

    An earlier file at `path` stays until the new one is complete and on the disk.
    """
    temporary = path.with_name(path.name + PARTIAL)
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_whole(path: Path, data: bytes) -> None:
    """Write a small file at once, or not at all."""
    with replacing(path) as temporary:
        temporary.write_bytes(data)


def write_new(path: Path, data: bytes) -> None:
    """Write a small file if there is none of that name: the first of several wins."""
    with NamedTemporaryFile(dir=path.parent, suffix=PARTIAL) as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
        with suppress(FileExistsError):
            try:
                os.link(file.name, path)  # whole from the start, as a new file is not
            except PermissionError:  # no links there
                with path.open("xb") as new:
                    new.write(data)


def digest(data: bytes) -> str:
    """The SHA-256 of some bytes, in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def file_digest(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def writing(
    where: Any, wanted: str = "a place for a new file", remedy: str = "choose another"
) -> Iterator[None]:
    """Turn an error of writing into a `UserError` with these parts.

    Raises:
        UserError: something inside cannot be written.
    """
    try:
        yield
    except OSError as error:
        raise UserError(where, error.strerror or str(error), wanted, remedy) from None


@contextmanager
def locked(path: Path, refusal: UserError, patience: float = 0.0) -> Iterator[None]:
    """Make and hold a lock file; a process that is killed lets go of it too.

    It waits `patience` seconds for another process to let go of it.

    Raises:
        UserError: the refusal, where another process holds it.
        OSError: it cannot be made.
    """
    from filelock import FileLock, Timeout

    lock = FileLock(path)
    try:
        lock.acquire(timeout=patience)
    except Timeout:
        raise refusal from None
    try:
        yield
    finally:
        lock.release()
