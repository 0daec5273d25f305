"""Images in a zip or a tar, which are read in place and never extracted."""

from __future__ import annotations

import errno
import os
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from pipeline.errors import UserError
from pipeline.packing.downloads import not_an_archive
from pipeline.packing.sources.base import (
    NOT_REGULAR,
    DamagedError,
    Listing,
    Member,
    OpenedSource,
    changed,
    require_file_size,
    version,
)
from pipeline.packing.sources.sieve import LEFT_OUT, TO_NOTHING, Sieve
from pipeline.packing.sources.webdataset import is_label, labels_beside
from pipeline.shards.labels import LabelTable
from pipeline.shards.tar import headers, unpack

ZIP_LOCAL_HEADER = 30
"""Bytes before a member's name (PKWARE APPNOTE 4.3.7), its length and the extra field's."""


class FileSource(OpenedSource):
    """One file, read in place; or what it contains, in a file without a name that is `held` open.

    Of the latter nothing stays, even if the process is killed. Workers open it through their
    parent, which holds it.
    """

    _held: BinaryIO | None = None

    def __init__(self, path: Path, held: BinaryIO | None = None) -> None:
        self.path, self._held = path, held
        self._contents = Path(f"/proc/{os.getpid()}/fd/{held.fileno()}") if held else path
        self._listed = version(self._contents.stat())

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {"_held": None}

    def __del__(self) -> None:
        super().__del__()
        if self._held is not None:
            self._held.close()

    def _bytes(self, offset: int, size: int) -> bytes:
        if self._opened is None:
            self._opened = self._contents.open("rb")
        file: BinaryIO = self._opened
        if version(os.fstat(file.fileno())) != self._listed:
            raise changed(self.path)
        end, _ = self._listed
        if min(offset, size) < 0 or offset + size > end:  # before memory is set aside for it
            raise DamagedError("the archive ends within it")
        file.seek(offset)
        data = file.read(size)
        if version(os.fstat(file.fileno())) != self._listed:
            raise changed(self.path)
        if len(data) != size:
            raise DamagedError("the archive ends within it")
        return data


class ZipSource(FileSource):
    """Images in a zip."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.listing = self._list()

    def _list(self) -> Listing:
        found, sieve = [], Sieve()
        try:
            with zipfile.ZipFile(self.path) as archive:
                for info in _consumed(archive):
                    # APPNOTE 4.4.17 wants slashes; PowerShell 5 writes backslashes all the same
                    name = info.filename.replace("\\", "/")
                    if name.endswith("/") or sieve.is_litter(name):
                        continue
                    if stat.S_ISLNK(info.external_attr >> 16):
                        sieve.link(LEFT_OUT)
                    elif sieve.is_image(name, info.file_size):
                        found.append(self._member(info, name))
        except UserError:
            raise
        except OSError as error:
            if error.errno != errno.EINVAL:  # which is a place that no file has
                raise
            raise not_an_archive(self.path) from None
        except Exception:  # zipfile lets nearly every type through
            raise not_an_archive(self.path) from None
        return sieve.listing(found)

    def _member(self, info: zipfile.ZipInfo, name: str) -> Member:
        encrypted = info.flag_bits & 1
        if encrypted or info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise UserError(
                f"{self.path}: {info.filename}",
                "encrypted" if encrypted else f"compressed by method {info.compress_type}",
                "a zip that is not encrypted, stored or deflated as usual",
                "extract it with another tool and pack the folder",
            )
        deflated = info.compress_type == zipfile.ZIP_DEFLATED
        size, packed = info.file_size, info.compress_size
        return Member(name, size, info.header_offset, packed, deflated, info.CRC)

    def read(self, member: Member) -> bytes:
        require_file_size(member)
        head = self._bytes(member.offset, ZIP_LOCAL_HEADER)
        if head[:4] != b"PK\x03\x04":
            raise DamagedError("no local header where the directory says")
        skip = int.from_bytes(head[26:28], "little") + int.from_bytes(head[28:30], "little")
        data = self._bytes(member.offset + ZIP_LOCAL_HEADER + skip, member.packed)
        if member.deflated:
            data = _inflate(data, member.size)
        if len(data) != member.size or zlib.crc32(data) != member.crc32:
            raise DamagedError("its checksum is wrong")
        return data


def _consumed(archive: zipfile.ZipFile) -> Iterator[zipfile.ZipInfo]:
    """The directory's entries, each freed at once: a million of them take half a gigabyte."""
    archive.NameToInfo.clear()
    while archive.filelist:
        yield archive.filelist.pop()


class TarSource(FileSource):
    """Images in a tar; symbolic links and devices are left out."""

    def __init__(self, path: Path, held: BinaryIO | None = None) -> None:
        super().__init__(path, held)
        self.listing = self._list()

    def _list(self) -> Listing:
        # Of equal names the last one counts, as when a tar is extracted
        latest: dict[str, Member] = {}
        others: dict[str, Member] = {}
        sieve = Sieve()
        try:
            for entry in headers(self._contents):
                key = entry.name.removeprefix("./")
                name = key.replace("\\", "/")  # as some programs on Windows write
                if entry.isdir():
                    continue
                if sieve.is_litter(name):
                    others[key] = Member(name, entry.size, entry.offset_data)
                elif entry.issym():
                    sieve.link(LEFT_OUT)
                elif entry.islnk():  # one more name of a file that stands further up
                    target = entry.linkname.removeprefix("./")
                    file = latest.get(target) or others.get(target)
                    if file is None:
                        sieve.link(TO_NOTHING, name)
                    elif sieve.is_image(name):
                        latest[key] = file._replace(name=name)
                elif not entry.isreg():
                    sieve.special()
                else:
                    size = NOT_REGULAR if entry.issparse() else entry.size
                    taken = latest if sieve.is_image(name, entry.size) else others
                    taken[key] = Member(name, size, entry.offset_data)
        except tarfile.TarError as error:
            raise not_an_archive(self.path, str(error)) from None
        beside = {member.name: member for member in others.values() if is_label(member.name)}
        return sieve.listing(latest.values())._replace(beside=beside)

    def labels(self, members: Sequence[Member]) -> LabelTable | None:
        return labels_beside(self, members, self.path.parent)

    def read(self, member: Member) -> bytes:
        if member.size == NOT_REGULAR:
            raise DamagedError("a sparse file: extract the tar and pack the folder")
        require_file_size(member)
        return self._bytes(member.offset, member.size)


class CompressedTarSource(TarSource):
    """Images in a tar in gzip, bzip2 or xz, which is decompressed once."""

    def __init__(self, path: Path, scratch: Path) -> None:
        try:
            self._held = unpack(path, scratch)
        except tarfile.ReadError as error:
            raise not_an_archive(path, str(error)) from None
        super().__init__(path, self._held)


def _inflate(data: bytes, size: int) -> bytes:
    """Decompress, but never more than the directory promised."""
    try:
        return zlib.decompressobj(-zlib.MAX_WBITS).decompress(data, size + 1)
    except zlib.error as error:
        raise DamagedError(f"it cannot be decompressed ({error})") from None
