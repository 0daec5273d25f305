"""Where images come from: a folder, a zip or a tar. Archives are read in place, never extracted.

A source lists its images once, sorted by name, and each carries what is needed to read it. Worker
processes just open the file: to read a large archive's directory in each would cost seconds and
gigabytes.
"""

from __future__ import annotations

import errno
import os
import shlex
import stat
import tarfile
import tempfile
import zipfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any, BinaryIO, NamedTuple

from pipeline.errors import UserError, counted
from pipeline.packing.downloads import is_stand_in, not_an_archive, unpacked_folder
from pipeline.packing.labels import LabelTable
from pipeline.packing.sieve import (
    FOLLOWED,
    IMAGE_SUFFIXES,
    IN_ALREADY,
    LEFT_OUT,
    TO_NOTHING,
    Sieve,
    is_litter,
)
from pipeline.shards.manifest import pack_command
from pipeline.shards.tar import MAX_FILE_BYTES, headers, is_compressed_tar, is_tar, unpack

ZIP_LOCAL_HEADER = 30
"""Bytes before a member's name (PKWARE APPNOTE 4.3.7), its length and the extra field's."""

NOT_REGULAR = -1
"""The size of a member that is no regular file."""

HIDDEN_LOOKED_AT = 10_000
"""Files and folders in a hidden folder: a snapshot in it may be as large as the disk."""


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


class ImageFiles(ABC):
    """Named image files; picklable, so that worker processes can read them too."""

    path: Path
    """The folder or archive."""
    listing: Listing
    """Stays behind when this is sent to another process."""

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "listing"}

    def members(self) -> list[Member]:
        """All images, sorted by name."""
        return self.listing.members

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
            OSError: the file cannot be read.
        """


def open_source(path: Path, scratch: Path | None = None) -> ImageFiles:
    """Find the images in what the user named.

    A folder that holds no image but an archive of them (`celeba/img_align_celeba.zip`) stands for
    it.

    Args:
        path: a folder, a zip, or a tar, compressed or not.
        scratch: a folder on whose disk a compressed tar may be unpacked for as long as it is read;
            the system's for temporary files by default.

    Raises:
        UserError: nothing there, not an archive, no images in it, or images in two places of which
            either may be meant.
    """
    if not path.exists():
        raise UserError(
            f"SOURCE {path}",
            "no such file or folder",
            "a folder of images, or a zip or tar of them",
            "check the spelling; CelebA's zip is named img_align_celeba.zip",
        )
    scratch = scratch or Path(tempfile.gettempdir())
    if path.is_dir():
        return _open_folder(path, scratch)
    source = _open_archive(path, scratch)
    if not source.members():
        raise _without_images(source)
    return source


def _open_folder(path: Path, scratch: Path) -> ImageFiles:
    """A folder's own images, or those of the one archive in it that has some.

    Raises:
        UserError: an archive has more images than were found, or none has any; or a file weighs
            more than they do and is no archive: the images may be in that one.
    """
    folder = FolderSource(path)
    images = folder.members()
    chosen: ImageFiles | None = folder if images else None
    faults: dict[Path, UserError] = {}
    archives = [name for name in folder.listing.archives if images or "/" not in name]
    for name in archives:
        try:
            source = _open_archive(path / name, scratch)
        except UserError as fault:
            faults[path / name] = fault
            continue
        if len(source.members()) > len(images):
            if chosen is not None:
                raise _two_sources(folder, chosen, source, is_last=name == archives[-1])
            chosen = source
    if chosen is None:
        raise _nothing_in(folder, faults)
    _require_lighter(faults, folder, chosen)
    return chosen


def _two_sources(
    folder: FolderSource, chosen: ImageFiles, other: ImageFiles, *, is_last: bool
) -> UserError:
    name, pack_it = other.path.relative_to(folder.path), pack_command(other.path)
    if chosen is folder:
        found = f"{_described(folder)}, and beside them {name} with {len(other.members()):,}"
        remedy = f"name the archive: {pack_it}; for the images beside it, move it away"
    else:
        names = f"{chosen.path.name}, {name}" + ("" if is_last else ", …")
        found = f"no images, but several archives with some: {names}"
        remedy = f"name the archive to pack: {pack_command(chosen.path)}"
    return UserError(f"SOURCE {folder.path}", found, "one source", remedy)


def _nothing_in(folder: FolderSource, faults: dict[Path, UserError]) -> UserError:
    if faults:
        return faults[max(faults, key=_weight)]
    for archive in (folder.path / name for name in folder.listing.archives):
        if archive.is_file() and is_stand_in(archive):
            return not_an_archive(archive)
    return _without_images(folder)


def _require_lighter(
    faults: dict[Path, UserError], folder: FolderSource, chosen: ImageFiles
) -> None:
    """Refuse what was chosen where a file that is no archive outweighs it."""
    is_own = chosen is folder
    size = sum(image.size for image in folder.members())
    own = (False, size) if is_own else _weight(chosen.path)
    for archive, fault in faults.items():
        if _weight(archive) > own:
            found, remedy = fault.found, f"for those of the other, {pack_command(chosen.path)}"
            if is_own:
                found += f"; and beside it {_described(folder)}"
                remedy = "for the images beside it, move it away, or name their folder"
            raise UserError(fault.where, found, fault.wanted, f"{fault.remedy}; {remedy}")


def _weight(archive: Path) -> tuple[bool, int]:
    """How much of a source an archive may stand for: all of it, if a web page was saved instead."""
    return archive.is_file() and is_stand_in(archive), archive.stat().st_size


def _open_archive(path: Path, scratch: Path) -> ImageFiles:
    """Open an archive by its contents, not by its name: browsers and mirrors rename.

    Raises:
        UserError: it is none, or another inside outweighs its images: a stray one is no set.
    """
    if not path.is_file():  # a pipe would block
        raise UserError(
            f"SOURCE {path}",
            "neither a file nor a folder",
            "a folder of images, or a zip or tar of them",
            "save what it gives to a file first",
        )
    with path.open("rb") as file:
        head = file.read(512)
    source: ImageFiles
    if head.startswith(b"PK"):
        source = ZipSource(path)
    elif is_tar(head):
        source = TarSource(path)
    elif is_compressed_tar(path):
        source = CompressedTarSource(path, scratch)
    else:
        raise not_an_archive(path)
    inner = source.listing.archives
    if inner and max(inner.values()) > sum(image.size for image in source.members()):
        raise _without_images(source)
    return source


def _described(source: ImageFiles) -> str:
    images = source.members()
    if len(images) == 1:
        return f"1 image ({images[0].name})"
    return f"{len(images):,} images, the first {images[0].name}"


def _without_images(source: ImageFiles) -> UserError:
    """The refusal of a source without images: what is there, and how to unpack archives inside."""
    path, (_, left_out, links, archives) = source.path, source.listing
    where, wanted = f"SOURCE {path}", "files that end in " + ", ".join(sorted(IMAGE_SUFFIXES))
    if not archives:
        told = [f"it holds {counted(left_out)}"] if left_out else []
        told += [f"links: {counted(links)}"] if links else []
        found = f"no images; {'; '.join(told) or 'it is empty'}"
        remedy = "name the folder that holds the images, or the archive as it was downloaded"
        return UserError(where, found, wanted, remedy)
    largest = max(archives, key=archives.__getitem__)
    if path.is_dir():
        remedy = f"name the archive: {pack_command(path / largest)}"
        return UserError(where, f"no images, but {largest}", wanted, remedy)
    folder = unpacked_folder(path)
    zipped = isinstance(source, ZipSource)
    program = "unzip {0} -d {1}" if zipped else "mkdir {1} && tar -xf {0} -C {1}"
    command = program.format(shlex.quote(str(path)), shlex.quote(str(folder)))
    remedy = f"unpack the outer one: {command} && {pack_command(folder / largest)}"
    found = f"{_described(source)}, and" if source.members() else "no images, but"
    return UserError(where, f"{found} an archive again: {largest}", wanted, remedy)


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
        return Listing(sorted(found), *sieve.counts())

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
        _require_file_size(member)
        data = (self.path / member.name).read_bytes()
        if len(data) != member.size:
            raise _changed(self.path / member.name)
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


class _ArchiveSource(ImageFiles):
    """One file, opened once in each process."""

    _file: BinaryIO | None = None

    def __init__(self, path: Path, contents: Path | None = None) -> None:
        self.path = path
        self._contents = contents or path
        self._listed = _version(self._contents.stat())
        self.listing = self._list()

    @abstractmethod
    def _list(self) -> Listing: ...

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {"_file": None}

    def __del__(self) -> None:
        if self._file is not None:
            self._file.close()

    def _bytes(self, offset: int, size: int) -> bytes:
        if self._file is None:
            self._file = self._contents.open("rb")
        if _version(os.fstat(self._file.fileno())) != self._listed:
            raise _changed(self.path)
        end, _ = self._listed
        if min(offset, size) < 0 or offset + size > end:  # before memory is set aside for it
            raise DamagedError("the archive ends within it")
        self._file.seek(offset)
        data = self._file.read(size)
        if _version(os.fstat(self._file.fileno())) != self._listed:
            raise _changed(self.path)
        if len(data) != size:
            raise DamagedError("the archive ends within it")
        return data


def _version(status: os.stat_result) -> tuple[int, int]:
    return status.st_size, status.st_mtime_ns


def _changed(path: Path) -> OSError:
    """A source did not hold still: an error, since its images are no rejects."""
    return OSError(errno.ESTALE, "it changed while it was being read", str(path))


class ZipSource(_ArchiveSource):
    """Images in a zip."""

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
        return Listing(sorted(found), *sieve.counts())

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
        _require_file_size(member)
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


class TarSource(_ArchiveSource):
    """Images in a tar; symbolic links and devices are left out."""

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
        return Listing(sorted(latest.values()), *sieve.counts())

    def read(self, member: Member) -> bytes:
        if member.size == NOT_REGULAR:
            raise DamagedError("a sparse file: extract the tar and pack the folder")
        _require_file_size(member)
        return self._bytes(member.offset, member.size)


class CompressedTarSource(TarSource):
    """Images in a tar in gzip, bzip2 or xz, which is decompressed once.

    It goes into a file without a name, of which nothing stays, even if the process is killed.
    Workers open it through their parent, which holds it.
    """

    _unpacked: BinaryIO | None = None

    def __init__(self, path: Path, scratch: Path) -> None:
        try:
            self._unpacked = unpack(path, scratch)
        except tarfile.ReadError as error:
            raise not_an_archive(path, str(error)) from None
        super().__init__(path, Path(f"/proc/{os.getpid()}/fd/{self._unpacked.fileno()}"))

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {"_unpacked": None}

    def __del__(self) -> None:
        super().__del__()
        if self._unpacked is not None:
            self._unpacked.close()


def _require_file_size(member: Member) -> None:
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
