"""What every source is: named image files, listed once, that worker processes can read.

A source lists its images once, sorted by name, and each carries what is needed to read it. Worker
processes just open the file: to read a large archive's directory in each would cost seconds and
gigabytes.
"""

from __future__ import annotations

import errno
import os
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from pipeline.images.size import ImageSize
from pipeline.shards.labels import LabelTable
from pipeline.shards.shard_set import ShardSet
from pipeline.shards.tar import MAX_FILE_BYTES

NOT_REGULAR = -1
"""The size of a member that is no regular file."""


class Member(NamedTuple):
    """One image file of a source, and where it lies."""

    name: str
    """Relative, with forward slashes."""
    size: int
    """In bytes, when read."""
    offset: int = 0
    """In the archive: of a zip member's local header, of a tar member's data."""
    packed: int = 0
    """In a zip: bytes as stored."""
    deflated: bool = False
    crc32: int = 0
    """In a zip: of the bytes when read. In a shard set: of the bytes as stored."""
    part: int = 0
    """Which of a source's several files it lies in."""


class DamagedError(ValueError):
    """A member cannot be read from its archive as it was; the message says why."""


class Listing(NamedTuple):
    """What a source holds."""

    members: list[Member]
    """Its images, sorted by name."""
    left_out: Mapping[str, int] = MappingProxyType({})
    """Numbers of its other files, by suffix or kind."""
    links: Mapping[str, int] = MappingProxyType({})
    """Numbers of its links, by what became of them."""
    archives: Mapping[str, int] = MappingProxyType({})
    """Archives among the other files: sizes by name, sorted."""
    beside: Mapping[str, Member] = MappingProxyType({})
    """In a tar, the files that webdataset would take for labels, by name."""


class ImageFiles(ABC):
    """Named image files; picklable, so that worker processes can read them too."""

    path: Path
    """The folder or archive."""
    listing: Listing
    """Stays behind when this is sent to another process."""
    shards: ShardSet | None = None
    """The shard set that the images are of, if they are of one; it stays behind, too."""
    pixels: ImageSize | None = None
    """The size of images that are pixels and no files: they are best stored as pixels too."""
    category: str | None = None
    """What all images show, where one source has one class of several."""

    def __getstate__(self) -> dict[str, Any]:
        return {
            name: value
            for name, value in self.__dict__.items()
            if name not in ("listing", "shards")
        }

    def members(self) -> list[Member]:
        """All images, sorted by name."""
        return self.listing.members

    def parts(self, members: Sequence[Member]) -> list[tuple[Path, list[Member]]]:
        """Some of its members, by the source that each is of; a source is one, or joins several."""
        return [(self.path, list(members))]

    def place(self) -> str:
        """Where all of it lies."""
        return str(self.path.resolve())

    def where(self, member: Member) -> str:
        """Where one image lies, for messages."""
        return f"{self.path}: {member.name}"

    def labels(self, members: Sequence[Member]) -> LabelTable | None:
        """The labels that the source itself has for some of its members; None if it has none.

        Raises:
            UserError: they are damaged, or some members have none.
        """
        return None

    @abstractmethod
    def read(self, member: Member) -> bytes:
        """One image file's bytes.

        Raises:
            DamagedError: the archive is damaged there.
            RejectedError: an earlier packing found that it cannot be used.
            OSError: the file cannot be read.
        """


class OpenedSource(ImageFiles):
    """A source that each process opens for itself, when it first reads."""

    _opened: Any = None
    """What has to be closed."""

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {"_opened": None}

    def __del__(self) -> None:
        self.close()

    def close(self) -> None:
        """Close it in this process; it is opened anew if more is read."""
        if self._opened is not None:
            self._opened.close()
            self._opened = None


def version(status: os.stat_result) -> tuple[int, int]:
    """What tells a file from what it was when it was listed: its size and date."""
    return status.st_size, status.st_mtime_ns


def changed(path: Path) -> OSError:
    """A source did not hold still: an error, since its images are no rejects."""
    return OSError(errno.ESTALE, "it changed while it was being read", str(path))


def netpbm(pixels: bytes, width: int, height: int, channels: int) -> bytes:
    """Pixels, uint8 (height, width, 1 or 3), as an image file that costs nothing to write or read.

    A PGM or PPM: netpbm.sourceforge.net/doc/ppm.html.
    """
    return b"P%d %d %d 255\n" % (5 if channels == 1 else 6, width, height) + pixels


def require_file_size(member: Member) -> None:
    """Refuse a size that no image file has, before memory is set aside for it."""
    size = max(member.size, member.packed)
    if size > MAX_FILE_BYTES:
        raise DamagedError(f"a file of {size:,} bytes, over {MAX_FILE_BYTES:,}")
