"""The headers of anybody's tar: no file can make reading it endless, or take the memory.

Python's `tarfile` trusts the sizes that it reads. On such of its versions as are still in use, a
negative one makes it go round in circles (CVE-2025-8194), a header of digits takes the square of
its length in time (CVE-2024-6232), and a claimed size is set aside before a byte of it is read.
"""

from __future__ import annotations

import os
import re
import tarfile
from collections.abc import Iterator
from io import FileIO
from pathlib import Path

MAX_HEADER_BYTES = 1 << 20
"""Of an extended header: names, owners, attributes of a file."""

_LONG_NUMBER = re.compile(rb"\d{64}")
"""In an extended header; its lengths and sizes have at most 20 digits."""


def headers(tar: Path) -> Iterator[tarfile.TarInfo]:
    """All entries of an uncompressed tar, links and devices too, in their order; forgets each.

    Raises:
        tarfile.TarError: the archive is damaged, or made to do damage.
        OSError: it cannot be read.
    """
    try:
        with _Headers(tar) as file, tarfile.open(fileobj=file, mode="r:") as archive:
            reached = -1
            while (member := archive.next()) is not None:
                if member.size < 0 or archive.offset <= reached:
                    raise tarfile.ReadError("an entry of negative size")
                reached = archive.offset
                archive.members.clear()  # type: ignore[attr-defined]  # else a kilobyte of each stays
                yield member
    except (OSError, tarfile.TarError):
        raise
    except Exception as error:  # tarfile lets nearly every type through
        raise tarfile.ReadError(f"{type(error).__name__} in a header") from error


class _Headers(FileIO):
    """A tar as `tarfile` may see it: nothing outside of it, and nothing longer than a header."""

    def __init__(self, tar: Path) -> None:
        super().__init__(tar)
        self._size = os.fstat(self.fileno()).st_size

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        if not 0 <= offset <= self._size:
            raise tarfile.ReadError("it ends within an entry")
        return super().seek(offset, whence)

    def read(self, size: int | None = -1, /) -> bytes:
        if size is None or not 0 <= size <= MAX_HEADER_BYTES:
            raise tarfile.ReadError(f"a header of more than {MAX_HEADER_BYTES:,} bytes")
        data = super().read(size)
        if size > tarfile.BLOCKSIZE and _LONG_NUMBER.search(data):
            raise tarfile.ReadError("a header with a number of 64 digits")
        return data
