"""Where images come from: a folder, a zip or a tar, each with sorted members and their bytes."""

from __future__ import annotations

import errno
import os
import re
import shlex
import stat
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from pipeline.errors import UserError, counted
from pipeline.packing.archives import (
    NOT_REGULAR,
    CompressedTarSource,
    DamagedError,
    ImageFiles,
    Listing,
    Member,
    TarSource,
    ZipSource,
    changed,
    require_bounded,
)
from pipeline.packing.downloads import is_stand_in, not_an_archive, pack_command, unpacked_folder
from pipeline.packing.sieve import (
    FOLLOWED,
    IMAGE_SUFFIXES,
    IN_ALREADY,
    TO_NOTHING,
    Sieve,
    is_litter,
)
from pipeline.shards.tar import is_compressed_tar, is_tar

HIDDEN_LOOKED_AT = 10_000
"""Files and folders in a hidden folder: a snapshot in it may be as large as the disk."""


class Source(Protocol):
    """A set of named images; picklable, so that worker processes can read it too."""

    @property
    def path(self) -> Path:
        """The folder or archive."""

    def members(self) -> list[Member]:
        """All images, sorted by name."""

    def read(self, member: Member) -> bytes:
        """One image file's bytes.

        Raises:
            DamagedError: the archive is damaged there.
            OSError: the file cannot be read.
        """


class FolderSource(ImageFiles):
    """Images anywhere below a folder, except among what systems leave there; links are followed."""

    def __init__(self, path: Path) -> None:
        self.path = path

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
        require_bounded(member)
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
    if not path.is_dir():
        source = _opened(path, scratch)
        if not source.members():
            raise _without_images(source)
        return source
    folder = FolderSource(path)
    archives = folder.listing().archives
    if not folder.members():
        return _with_images(folder, [path / name for name in archives if "/" not in name], scratch)
    for name in archives:
        _require_smaller(name, folder, scratch)
    return folder


def _require_smaller(name: str, folder: FolderSource, scratch: Path) -> None:
    """Refuse a folder's images where an archive among them has more: a stray one is no set."""
    images, archive = folder.members(), folder.path / name
    try:
        inside = len(_opened(archive, scratch).members())
    except UserError as error:
        if _weight(archive) > (False, sum(image.size for image in images)):
            raise UserError(
                error.where,
                f"{error.found}; and beside it {_described(images)}",
                error.wanted,
                f"{error.remedy}; for the images beside it, move it away, or name their folder",
            ) from None
        return
    if inside > len(images):
        raise UserError(
            f"SOURCE {folder.path}",
            f"{_described(images)}, and beside them {name} with {inside:,}",
            "one source",
            f"name the archive: {pack_command(archive)}; for the images beside it, move it away",
        )


def _described(images: Sequence[Member]) -> str:
    if len(images) == 1:
        return f"1 image ({images[0].name})"
    return f"{len(images):,} images, the first {images[0].name}"


def _with_images(folder: FolderSource, archives: list[Path], scratch: Path) -> ImageFiles:
    """The one archive of a folder that has images.

    Raises:
        UserError: none has images, or several have; or a file is no archive.
    """
    found: list[ImageFiles] = []
    faults: dict[Path, UserError] = {}
    for archive in archives:
        try:
            source = _opened(archive, scratch)
            found += [source] if source.members() else []
        except UserError as error:
            faults[archive] = error
        if len(found) > 1:
            raise UserError(
                f"SOURCE {folder.path}",
                f"no images, but several archives with some: {found[0].path.name},"
                f" {found[1].path.name}" + (", …" if archive != archives[-1] else ""),
                "one source",
                f"name the archive to pack: {pack_command(found[0].path)}",
            )
    if faults and not found:
        raise faults[max(faults, key=_weight)]
    for archive, fault in faults.items():  # the images may be in it, and a stray one in the other
        if _weight(archive) > _weight(found[0].path):
            remedy = f"{fault.remedy}; for those of the other, {pack_command(found[0].path)}"
            raise UserError(fault.where, fault.found, fault.wanted, remedy)
    if not found:
        for name in folder.listing().archives:
            if (archive := folder.path / name).is_file() and is_stand_in(archive):
                raise not_an_archive(archive)
        raise _without_images(folder)
    return found[0]


def _weight(archive: Path) -> tuple[bool, int]:
    """How much of a source an archive may stand for: all of it, if a web page was saved instead."""
    return archive.is_file() and is_stand_in(archive), archive.stat().st_size


def _opened(path: Path, scratch: Path) -> ImageFiles:
    """Open an archive.

    Raises:
        UserError: it is none, or another inside outweighs its images: a stray one is no set.
    """
    source = _open_archive(path, scratch)
    inner = source.listing().archives
    if inner and max(inner.values()) > sum(image.size for image in source.members()):
        raise _without_images(source)
    return source


def _without_images(source: ImageFiles) -> UserError:
    """The refusal of a source without images: what is there, and how to unpack archives inside."""
    path, (_, left_out, links, archives) = source.path, source.listing()
    where, wanted = f"SOURCE {path}", "files that end in " + ", ".join(sorted(IMAGE_SUFFIXES))
    if archives and path.is_dir():
        largest = max(archives, key=archives.__getitem__)
        remedy = f"name the archive: {pack_command(path / largest)}"
        return UserError(where, f"no images, but {largest}", wanted, remedy)
    if archives:
        folder = unpacked_folder(path)
        zipped = isinstance(source, ZipSource)
        program = "unzip {0} -d {1}" if zipped else "mkdir {1} && tar -xf {0} -C {1}"
        command = program.format(shlex.quote(str(path)), shlex.quote(str(folder)))
        largest = max(archives, key=archives.__getitem__)
        remedy = f"unpack the outer one: {command} && {pack_command(folder / largest)}"
        images = source.members()
        found = f"{_described(images)}, and" if images else "no images, but"
        found += f" an archive again: {largest}"
        return UserError(where, found, wanted, remedy)
    told = [f"it holds {counted(left_out)}"] if left_out else []
    told += [f"links: {counted(links)}"] if links else []
    found = "; ".join(told) or "it is empty"
    remedy = "name the folder that holds the images, or the archive as it was downloaded"
    return UserError(where, f"no images; {found}", wanted, remedy)


def in_classes(members: Sequence[Member], classes: Sequence[str], path: Path) -> list[Member]:
    """The members that lie in one of the named sub-folders, at any depth.

    Raises:
        UserError: a sub-folder has no images; the message lists those that have.
    """
    folders = [set(re.split(r"[/\\]", member.name)[:-1]) - {""} for member in members]
    known = sorted(set().union(*folders))
    for wanted in classes:
        if wanted not in known:
            listed = ", ".join(known[:20]) + (", …" if len(known) > 20 else "")
            raise UserError(
                f"--classes {wanted}",
                f"no images in a sub-folder of that name in {path}",
                f"some of: {listed}" if known else "a source with sub-folders",
                "correct the name, or leave --classes out to take every image",
            )
    chosen = set(classes)
    return [member for member, parts in zip(members, folders, strict=True) if parts & chosen]


def _open_archive(path: Path, scratch: Path) -> ImageFiles:
    """Open by contents, not by name: browsers and mirrors rename."""
    if not path.is_file():  # a pipe would block
        raise UserError(
            f"SOURCE {path}",
            "neither a file nor a folder",
            "a folder of images, or a zip or tar of them",
            "save what it gives to a file first",
        )
    with path.open("rb") as file:
        head = file.read(512)
    if head.startswith(b"PK"):
        return ZipSource(path)
    if is_tar(head):
        return TarSource(path)
    if is_compressed_tar(path):
        return CompressedTarSource(path, scratch)
    raise not_an_archive(path)
