"""Where images come from: a folder, a zip or a tar. All give sorted members and their bytes."""

from __future__ import annotations

import os
import stat
import zipfile
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Protocol

from pipeline.archives import (
    IMAGE_SUFFIXES,
    NOT_REGULAR,
    DamagedError,
    Member,
    TarSource,
    ZipSource,
    changed,
    is_clutter,
    is_image,
    not_an_archive,
    require_bounded,
)
from pipeline.errors import UserError
from pipeline.tars import headers

ARCHIVE_SUFFIXES = (".zip", ".tar")


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


class FolderSource:
    """Images anywhere below a folder, except in hidden folders and `__MACOSX`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def members(self) -> list[Member]:
        found = []
        seen = set()
        for folder, subfolders, files in os.walk(self.path, followlinks=True):
            real = os.path.realpath(folder)
            if real in seen:  # a link back up: without this, the walk would not end
                subfolders.clear()
                continue
            seen.add(real)
            subfolders[:] = sorted(name for name in subfolders if not is_clutter(name))
            base = Path(folder).relative_to(self.path)
            found += [self._member(base / name) for name in files if is_image(name)]
        return sorted(found)

    def _member(self, path: Path) -> Member:
        try:
            status = (self.path / path).stat()
            regular = stat.S_ISREG(status.st_mode)
        except OSError:  # a link that leads nowhere
            regular = False
        return Member(path.as_posix(), status.st_size if regular else NOT_REGULAR)

    def read(self, member: Member) -> bytes:
        if member.size == NOT_REGULAR:  # a pipe would block, a device never end
            raise DamagedError("not a regular file")
        require_bounded(member)
        data = (self.path / member.name).read_bytes()
        if len(data) != member.size:
            raise changed(self.path / member.name)
        return data


def open_source(path: Path) -> Source:
    """Find the images in what the user named.

    A folder that holds no image but an archive (`celeba/img_align_celeba.zip`) stands for it.

    Raises:
        UserError: nothing there, not an archive, or no images in it.
    """
    if not path.exists():
        raise UserError(
            f"SOURCE {path}",
            "no such file or folder",
            "a folder of images, or a zip or tar of them",
            "check the spelling; CelebA's zip is named img_align_celeba.zip",
        )
    source = FolderSource(path) if path.is_dir() else _open_archive(path)
    if source.members():
        return source
    if path.is_dir():
        archives = sorted(
            entry
            for entry in path.iterdir()
            if entry.suffix.lower() in ARCHIVE_SUFFIXES and not is_clutter(entry.name)
        )
        if len(archives) == 1:
            return open_source(archives[0])
        if len(archives) > 1:
            listed = ", ".join(archive.name for archive in archives[:5])
            raise UserError(
                f"SOURCE {path}",
                f"no images, but {len(archives)} archives ({listed})",
                "one source",
                f"name the archive to pack: python tools/make_shards.py {archives[0]}",
            )
    raise UserError(
        f"SOURCE {path}",
        f"no images; {_glimpse(path)}",
        "files that end in " + ", ".join(sorted(IMAGE_SUFFIXES)),
        "name the folder that holds the images, or the archive as it was downloaded",
    )


def in_classes(members: Sequence[Member], classes: Sequence[str], path: Path) -> list[Member]:
    """Those members that lie in one of the named sub-folders, at any depth.

    Raises:
        UserError: a sub-folder has no images; the message lists those that have.
    """
    folders = [set(PurePosixPath(member.name).parts[:-1]) for member in members]
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


def _open_archive(path: Path) -> Source:
    """By contents, not by name: browsers and mirrors rename."""
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
    if head[257:262] == b"ustar":
        return TarSource(path)
    raise not_an_archive(path)


def _glimpse(path: Path) -> str:
    """What stands there instead, for an error message."""
    if path.is_dir():
        entries = sorted(entry.name for entry in path.iterdir())
    elif zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            entries = archive.namelist()
    else:
        entries = [member.name for member in headers(path)]
    if not entries:
        return "it is empty"
    listed = ", ".join(entries[:5]) + (", …" if len(entries) > 5 else "")
    return f"it holds {len(entries)} entries: {listed}"
