"""Images in a folder."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.errors import UserError
from pipeline.packing.sources.base import (
    NOT_REGULAR,
    DamagedError,
    ImageFiles,
    Listing,
    Member,
    changed,
    require_file_size,
)
from pipeline.packing.sources.sieve import FOLLOWED, IN_ALREADY, TO_NOTHING, Sieve, is_litter

HIDDEN_LOOKED_AT = 10_000
"""Files and folders in a hidden folder: a snapshot in it may be as large as the disk."""


class FolderSource(ImageFiles):
    """Images anywhere below a folder, except among what systems leave there; links are followed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.listing = self._list()

    def _list(self) -> Listing:
        found: list[Member] = []
        sieve, seen = Sieve(), set()
        pending = [("", False)]  # folders, relative, and whether a link led there
        while pending:
            folder, linked = pending.pop()
            real = os.path.realpath(self.path / folder)
            # A link back up would have no end, and one in here would take the folder's own name
            if real in seen or (linked and self._in_already(real)):
                sieve.link(IN_ALREADY, folder)
                continue
            seen.add(real)
            sieve.link(FOLLOWED, number=linked)
            subfolders = []
            for entry in self._entries(folder):
                name = f"{folder}/{entry.name}" if folder else entry.name
                if sieve.is_litter(name):
                    _look_into_hidden(entry, name, sieve)
                    continue
                status = _status(entry)
                if status is None and entry.is_symlink():
                    sieve.link(TO_NOTHING, name)
                elif status is not None and stat.S_ISDIR(status.st_mode):
                    subfolders.append((name, entry.is_symlink()))
                elif sieve.is_image(name, status.st_size if status else 0):
                    regular = status is not None and stat.S_ISREG(status.st_mode)
                    found.append(
                        Member(name, status.st_size if status and regular else NOT_REGULAR)
                    )
                    sieve.link(FOLLOWED, number=entry.is_symlink())
            pending += sorted(subfolders, reverse=True)
        return sieve.listing(found)

    def _in_already(self, real: str) -> bool:
        """Whether the walk comes to a folder without a link, by a name that is not litter."""
        source = Path(os.path.realpath(self.path))
        if not Path(real).is_relative_to(source):
            return False
        return not any(map(is_litter, Path(real).relative_to(source).parts))

    def _entries(self, folder: str) -> list[os.DirEntry[str]]:
        with _listed(self.path / folder), os.scandir(self.path / folder) as entries:
            return list(entries)

    def read(self, member: Member) -> bytes:
        if member.size == NOT_REGULAR:  # a pipe would block, a device never end
            raise DamagedError("not a regular file")
        require_file_size(member)
        data = (self.path / member.name).read_bytes()
        if len(data) != member.size:
            raise changed(self.path / member.name)
        return data


def _look_into_hidden(entry: os.DirEntry[str], name: str, sieve: Sieve) -> None:
    """Count the images in a hidden folder, as far as they are soon found."""
    if not entry.name.startswith(".") or entry.is_symlink():
        return
    looked = 0
    for folder, _, files in os.walk(entry.path):  # passes over what cannot be listed
        for file in files:
            sieve.is_litter(name + f"{folder}/{file}".removeprefix(entry.path))
        looked += 1 + len(files)
        if looked > HIDDEN_LOOKED_AT:
            return


@contextmanager
def _listed(path: Path | str) -> Iterator[None]:
    """Name a folder that cannot be listed: passed over, its images would be missing."""
    try:
        yield
    except OSError as error:
        raise UserError(
            error.filename or path,
            f"{error.strerror or error}: what is there cannot be listed",
            "a source that can be read whole",
            "see whose it is with ls -ld, or move it out of the source",
        ) from None


def _status(entry: os.DirEntry[str]) -> os.stat_result | None:
    """The status of a file, or of what a link leads to; None if that is nothing."""
    with _listed(entry.path):
        try:
            return entry.stat()
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
                raise
            return None
