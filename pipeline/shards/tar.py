"""Tars: anybody's headers, read safely; a shard's tar, written; and DALI's index of it.

Python's `tarfile` trusts the sizes that it reads. In versions still in use, a negative size makes
it loop for ever (CVE-2025-8194), a header of digits takes the square of its length in time
(CVE-2024-6232), and a claimed size is allocated before a byte of it is read.

The index has one line a sample, so that nobody need scan the archive. Its text format is DALI's own
(v1.2, as written by its `wds2idx`): a header `v1.2 <samples>`, then
`<extension> <offset> <size> <member name>` for each component of each sample.
"""

from __future__ import annotations

import bz2
import gzip
import hashlib
import lzma
import os
import re
import shutil
import tarfile
import tempfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from io import BufferedIOBase, FileIO
from itertools import groupby
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

from pipeline.errors import UserError
from pipeline.shards.order import Rows

VERSION = "v1.2"
"""The version of the index."""

MAX_FILE_BYTES = 1 << 28
"""A quarter of a gigabyte: no image file needs more."""

MAX_HEADER_BYTES = 1 << 20
"""The largest extended header: names, owners, attributes of a file."""

_LONG_NUMBER = re.compile(rb"\d{64}")
"""In an extended header; its lengths and sizes have at most 20 digits."""

COMPRESSIONS: dict[bytes, Callable[[Path], BufferedIOBase]] = {
    b"\x1f\x8b": gzip.GzipFile,
    b"BZh": bz2.BZ2File,
    b"\xfd7zXZ\0": lzma.LZMAFile,
}
"""First bytes of a compressed file, and what reads it."""

_DAMAGES = EOFError, OSError, lzma.LZMAError, zlib.error
"""What reading a damaged one raises."""

CHUNK_BYTES = 1 << 20

END_BYTES = 2 * tarfile.BLOCKSIZE
"""Zeros that end a tar (POSIX.1-2017, pax, "ustar Interchange Format")."""


def is_tar(head: bytes) -> bool:
    """Whether a file that begins so is a tar: one of 1979 has no mark but its checksum."""
    if head[257:262] == b"ustar":
        return True
    try:
        tarfile.TarInfo.frombuf(head[: tarfile.BLOCKSIZE], "utf-8", "surrogateescape")
    except tarfile.TarError:
        return False
    return True


def _decompressed(path: Path) -> BufferedIOBase | None:
    """A compressed file, to be read as what it contains; None if it is not compressed."""
    with path.open("rb") as file:
        head = file.read(tarfile.BLOCKSIZE)
    for magic, opened in COMPRESSIONS.items():
        if head.startswith(magic):
            return opened(path)
    return None


def is_compressed_tar(path: Path) -> bool:
    """Whether a file is a tar in gzip, bzip2 or xz."""
    if (tar := _decompressed(path)) is None:
        return False
    try:
        with tar:
            return is_tar(tar.read(tarfile.BLOCKSIZE))
    except _DAMAGES:
        return False


def unpack(path: Path, folder: Path) -> BinaryIO:
    """Decompress a tar into a file in a folder, without a name: it vanishes with its last user.

    Raises:
        tarfile.ReadError: it is cut off or damaged.
        UserError: it is larger than the space there.
    """
    room = shutil.disk_usage(folder).free * 9 // 10  # others write there too
    with ExitStack() as held:
        tar = _decompressed(path)
        assert tar is not None, "it is compressed"
        unpacked = held.enter_context(tempfile.TemporaryFile(dir=folder))
        try:
            with tar:
                while data := tar.read(CHUNK_BYTES):
                    if unpacked.tell() + len(data) > room:
                        raise _no_room(path, folder, room)
                    unpacked.write(data)
        except _DAMAGES as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise
            raise tarfile.ReadError("it cannot be decompressed to its end") from None
        unpacked.flush()
        held.pop_all()
    return unpacked


def _no_room(path: Path, folder: Path, room: int) -> UserError:
    return UserError(
        f"SOURCE {path}",
        f"a compressed tar that unpacks to more than {room / 1e9:.2f} GB",
        f"room to unpack it in {folder}, for as long as it is read",
        "free some space, or choose an --out on another disk",
    )


def headers(tar: Path) -> Iterator[tarfile.TarInfo]:
    """All entries of an uncompressed tar in order, links and devices too; none is kept.

    Tars joined end to end are read as one, as by `tar --ignore-zeros`.

    Raises:
        tarfile.TarError: the archive is cut off or damaged, or made to do damage.
        OSError: it cannot be read.
    """
    start: int | None = 0
    try:
        with _Headers(tar) as file:
            while start is not None:
                file.seek(start)
                with tarfile.open(fileobj=file, mode="r:") as archive:
                    yield from _entries(archive)
                    start = _next_tar(file, archive.offset)
    except (OSError, tarfile.TarError):
        raise
    except Exception as error:  # tarfile lets nearly every type through
        raise tarfile.ReadError(f"{type(error).__name__} in a header") from error


def _entries(archive: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    reached = -1
    while (member := archive.next()) is not None:
        if member.size < 0 or archive.offset <= reached:
            raise tarfile.ReadError("an entry of negative size")
        reached = archive.offset
        archive.members.clear()  # type: ignore[attr-defined]  # else a kilobyte of each stays
        yield member


def _next_tar(file: FileIO, end: int) -> int | None:
    """Where another tar begins behind the end of one; None if only padding is there.

    `tarfile` takes any block that is no header for the end. A tar ends in two blocks of zeros.

    Raises:
        tarfile.ReadError: they are not at `end`.
    """
    mark = os.pread(file.fileno(), END_BYTES, end)
    if mark.strip(b"\0"):
        raise tarfile.ReadError(f"no header at byte {end:,}")
    if len(mark) < END_BYTES:
        raise tarfile.ReadError("the two blocks of zeros that end a tar are missing")
    place = end + END_BYTES
    while data := os.pread(file.fileno(), CHUNK_BYTES, place):
        if rest := data.lstrip(b"\0"):
            place += len(data) - len(rest)
            return place - place % tarfile.BLOCKSIZE
        place += len(data)
    return None


class _Headers(FileIO):
    """A tar that gives `tarfile` nothing outside of itself, and nothing longer than a header."""

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


TAR_HEADER = tarfile.TarInfo().tobuf(tarfile.USTAR_FORMAT)
"""The header of an empty member without a name; date, owner and mode are tarfile's constants."""


class TarWriter:
    """A ustar archive of constant dates and owners, with its index and digest made on the way.

    Each header is `TAR_HEADER` with name, size and checksum put in (POSIX.1-1988, ustar): building
    it through `tarfile` costs more than reading the image does.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._places: list[tuple[str, int, int]] = []
        self.size = 0
        self.sha256 = hashlib.sha256()

    def add(self, key: str, extension: str, data: bytes) -> None:
        name = f"{key}.{extension}"
        header = bytearray(TAR_HEADER)
        header[: len(name)] = name.encode("ascii")
        header[124:135] = b"%011o" % len(data)
        header[148:156] = b" " * 8  # the checksum counts itself as spaces
        header[148:155] = b"%06o\0" % sum(header)
        self._places.append((name, self.size + len(header), len(data)))
        self._write(bytes(header) + data + bytes(-len(data) % tarfile.BLOCKSIZE))

    def finish(self) -> None:
        """Write the two empty blocks that end an archive, and fill its last record."""
        end = self.size + 2 * tarfile.BLOCKSIZE
        self._write(bytes(end + -end % tarfile.RECORDSIZE - self.size))

    def index(self) -> str:
        """The archive's index."""
        return _index(self._places)

    def _write(self, data: bytes) -> None:
        self._file.write(data)
        self.sha256.update(data)
        self.size += len(data)


def index_text(tar: Path) -> str:
    """Index a tar, as `TarWriter` does: files of one key that follow each other are a sample.

    Raises:
        tarfile.TarError: the archive is damaged.
    """
    return _index([(entry.name, entry.offset_data, entry.size) for entry in headers(tar)])


def _index(places: list[tuple[str, int, int]]) -> str:
    """The index of files by name, offset and size."""
    samples = groupby(places, key=lambda place: place[0].partition(".")[0])
    rows = [" ".join(map(_component, components)) + "\n" for _, components in samples]
    return f"{VERSION} {len(rows)}\n" + "".join(rows)


def _component(place: tuple[str, int, int]) -> str:
    name, start, size = place
    return f"{name.partition('.')[2]} {start} {size} {name}"


class Places(NamedTuple):
    """Where the samples of a tar lie, (samples,) each."""

    offsets: Rows
    """In bytes from the tar's beginning."""
    sizes: Rows
    """In bytes."""
    keys: Rows


def read_index(data: bytes, *extensions: str) -> Places:
    """Read an index, for the first component of each sample; a million lines take half a second.

    Args:
        data: the index.
        extensions: of the components that each sample has, in their order; no digits in them.

    Raises:
        ValueError: it is not such an index; the message says what is wrong.
    """
    header, _, lines = data.partition(b"\n")
    words, count = [extension.encode() for extension in extensions], lines.count(b"\n")
    # Keys are numbers, so what is left of "jpg 512 7213 00000012.jpg" is three of them
    left = lines.translate(None, b"." + b"".join(words))
    removed = count * sum(len(word + b"." + word) for word in words)
    starts = [b"\n" + words[0], *(b" " + word for word in words[1:])]
    if len(lines) - len(left) != removed or any(
        data.count(start + b" ") != count or lines.count(b"." + word) != count
        for start, word in zip(starts, words, strict=True)
    ):
        raise ValueError(f"lines that are not of one {' and one '.join(extensions)} component each")
    numbers = left.decode("ascii", "replace")
    if not numbers or numbers.isspace():
        raise ValueError("no samples")
    try:
        table = np.loadtxt(numbers.splitlines(), dtype=np.int64, comments=None, ndmin=2)
    except (ValueError, OverflowError, DeprecationWarning):
        raise ValueError("lines that do not read as extension, offset, size and name") from None
    expected = f"{VERSION} {len(table)}".encode()
    if header != expected or table.shape[1:] != (3 * len(words),):
        raise ValueError(f"the header {header[:40]!r}, where {expected!r} would be right")
    if (table[:, 2::3] != table[:, 2:3]).any():
        raise ValueError("lines that name two samples")
    return Places(*table[:, :3].T)
