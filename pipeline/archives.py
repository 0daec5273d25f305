"""Images in a zip or an uncompressed tar, read where they lie: nothing is extracted.

A source lists its members once; a member carries what is needed to read it, so that worker
processes open the file and nothing else: reading a large archive's directory again in each of them
would cost seconds and gigabytes.
"""

from __future__ import annotations

import errno
import os
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import BinaryIO, NamedTuple

from pipeline.errors import UserError
from pipeline.tars import headers

IMAGE_SUFFIXES = frozenset((".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")) | {
    *(".avif", ".jp2", ".j2k", ".jpf", ".jpx", ".j2c", ".jpc"),
}
CELEBA_ZIP_BYTES = 1_443_490_838
"""Of `img_align_celeba.zip` as its authors publish it."""

COMPRESSED_TARS = {b"\x1f\x8b": "gunzip", b"BZh": "bunzip2", b"\xfd7zXZ": "unxz"}
"""First bytes of a compressed file, and the program that unpacks it."""

ZIP_LOCAL_HEADER = 30
"""Bytes before a member's name (PKWARE APPNOTE 4.3.7), its length and the extra field's."""

MAX_FILE_BYTES = 1 << 28
"""A quarter of a gigabyte: no image file needs more."""

NOT_REGULAR = -1
"""In place of the size of what is no regular file."""


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
    """In a zip: of the bytes when read."""


class DamagedError(ValueError):
    """A member that its archive cannot give back as it was; the message says how."""


class _ArchiveSource:
    """What zip and tar share: one file, opened once in each process."""

    def __init__(self, path: Path) -> None:
        self._file: BinaryIO | None = None
        self.path = path
        self._listed = _version(path.stat())

    def __getstate__(self) -> dict[str, object]:
        return self.__dict__ | {"_file": None}

    def __del__(self) -> None:
        if self._file is not None:
            self._file.close()

    def _bytes(self, offset: int, size: int) -> bytes:
        if self._file is None:
            self._file = self.path.open("rb")
        if _version(os.fstat(self._file.fileno())) != self._listed:
            raise changed(self.path)
        end, _ = self._listed
        if min(offset, size) < 0 or offset + size > end:  # before memory is set aside for it
            raise DamagedError("the archive ends within it")
        self._file.seek(offset)
        data = self._file.read(size)
        if _version(os.fstat(self._file.fileno())) != self._listed:
            raise changed(self.path)
        if len(data) != size:
            raise DamagedError("the archive ends within it")
        return data


def _version(status: os.stat_result) -> tuple[int, int]:
    return status.st_size, status.st_mtime_ns


def changed(path: Path) -> OSError:
    """Say that a source did not hold still: its images are not bad ones, and no rejects."""
    return OSError(errno.ESTALE, "it changed while it was being read", str(path))


class ZipSource(_ArchiveSource):
    """Images in a zip, read where they lie: nothing is extracted, no name becomes a path."""

    def members(self) -> list[Member]:
        try:
            with zipfile.ZipFile(self.path) as archive:
                return sorted(
                    Member(
                        info.filename,
                        info.file_size,
                        info.header_offset,
                        info.compress_size,
                        self._is_deflated(info),
                        info.CRC,
                    )
                    for info in _consumed(archive)
                    if not info.is_dir() and _is_wanted(info.filename)
                )
        except UserError:
            raise
        except OSError as error:
            if error.errno != errno.EINVAL:  # which is a place that no file has
                raise
            raise not_an_archive(self.path) from None
        except Exception:  # zipfile lets nearly every type through
            raise not_an_archive(self.path) from None

    def _is_deflated(self, info: zipfile.ZipInfo) -> bool:
        encrypted = info.flag_bits & 1
        if encrypted or info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise UserError(
                f"{self.path}: {info.filename}",
                "encrypted" if encrypted else f"compressed by method {info.compress_type}",
                "a zip that is not encrypted, stored or deflated as usual",
                "extract it with another tool and pack the folder",
            )
        return info.compress_type == zipfile.ZIP_DEFLATED

    def read(self, member: Member) -> bytes:
        require_bounded(member)
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
    """The directory's entries, each given up at once: of a million, they take half a gigabyte."""
    archive.NameToInfo.clear()
    while archive.filelist:
        yield archive.filelist.pop()


class TarSource(_ArchiveSource):
    """Images in an uncompressed tar, read where they lie; links and devices in it are ignored."""

    def members(self) -> list[Member]:
        try:
            # Of equal names the last one counts, as when a tar is extracted
            latest = {
                member.name.removeprefix("./"): (member.size, member.offset_data)
                for member in headers(self.path)
                if member.isreg() and not member.issparse() and _is_wanted(member.name)
            }
        except tarfile.TarError:
            raise not_an_archive(self.path) from None
        return sorted(Member(name, size, offset) for name, (size, offset) in latest.items())

    def read(self, member: Member) -> bytes:
        require_bounded(member)
        return self._bytes(member.offset, member.size)


def require_bounded(member: Member) -> None:
    """Refuse a size that no image file has, before memory is set aside for it."""
    size = max(member.size, member.packed)
    if size > MAX_FILE_BYTES:
        raise DamagedError(f"a file of {size:,} bytes, over {MAX_FILE_BYTES:,}")


def _inflate(data: bytes, size: int) -> bytes:
    """Decompress, but never more than the directory promised."""
    try:
        return zlib.decompressobj(-zlib.MAX_WBITS).decompress(data, size + 1)
    except zlib.error as error:
        raise DamagedError(f"it cannot be decompressed ({error})") from None


def _is_wanted(name: str) -> bool:
    return is_image(name) and not any(is_clutter(part) for part in PurePosixPath(name).parts)


def is_image(name: str) -> bool:
    """Whether a name ends as an image's does, and is not hidden."""
    path = PurePosixPath(name)
    return path.suffix.lower() in IMAGE_SUFFIXES and not is_clutter(path.name)


def is_clutter(name: str) -> bool:
    """Whether a file or folder of this name is the system's rather than the user's."""
    return (name.startswith(".") and name not in (".", "..")) or name == "__MACOSX"


def not_an_archive(path: Path) -> UserError:
    """Say what a file is instead of an archive.

    The usual reason is a download that brought a web page.
    """
    with path.open("rb") as file:
        head = file.read(512)
    size = path.stat().st_size
    where, wanted = f"SOURCE {path}", "a folder of images, or a zip or tar of them"
    if head.lstrip().lower().startswith((b"<!doctype html", b"<html")):
        return UserError(
            where,
            f"a web page of {size:,} bytes, saved under the name of the archive",
            f"the archive itself (CelebA's zip has {CELEBA_ZIP_BYTES:,} bytes)",
            "the download quota was exceeded: download it again tomorrow, or from a mirror",
        )
    for magic, program in COMPRESSED_TARS.items():
        if head.startswith(magic):
            return UserError(
                where,
                "a compressed archive, which can only be read from its beginning",
                "an uncompressed tar, a zip, or a folder",
                f"decompress it once: {program} --keep {path}",
            )
    if head.startswith(b"PK"):
        found, remedy = f"a zip of {size:,} bytes, cut off or damaged", "download it again"
    elif head[257:262] == b"ustar":
        found, remedy = f"a tar of {size:,} bytes, cut off or damaged", "copy or download it again"
    else:
        found = f"{size:,} bytes of something else"
        remedy = "name the folder or the archive that holds the images"
    return UserError(where, found, wanted, remedy)
