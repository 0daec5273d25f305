"""Where images come from: a folder, or a zip read in place. Both give sorted names and bytes."""

from __future__ import annotations

import os
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Protocol

from pipeline.errors import UserError

IMAGE_SUFFIXES = frozenset((".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"))

CELEBA_ZIP_BYTES = 1_443_490_838
"""Of `img_align_celeba.zip` as its authors publish it."""


class Source(Protocol):
    """A set of named images; picklable, so that worker processes can read it too."""

    @property
    def path(self) -> Path:
        """The folder or archive."""

    def names(self) -> list[str]:
        """All image names, sorted: relative, with forward slashes."""

    def total_bytes(self, names: Sequence[str]) -> int:
        """Of these images' files."""

    def read(self, name: str) -> bytes:
        """One image file's bytes."""


class FolderSource:
    """Images anywhere below a folder, except in hidden folders and `__MACOSX`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def names(self) -> list[str]:
        found: list[str] = []
        for folder, subfolders, files in os.walk(self.path):
            subfolders[:] = [name for name in subfolders if not _is_clutter(name)]
            base = Path(folder).relative_to(self.path)
            found += [(base / name).as_posix() for name in files if _is_image(name)]
        return sorted(found)

    def total_bytes(self, names: Sequence[str]) -> int:
        try:
            return sum((self.path / name).stat().st_size for name in names)
        except OSError as error:  # a link that leads nowhere, most likely
            raise UserError(
                error.filename,
                f"cannot be read ({error.strerror})",
                "image files that can be read",
                "repair or remove it, then run the same command again",
            ) from None

    def read(self, name: str) -> bytes:
        return (self.path / name).read_bytes()


class ZipSource:
    """Images in a zip, read where they lie: nothing is extracted."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._archive: zipfile.ZipFile | None = None

    def __getstate__(self) -> dict[str, object]:
        return {"path": self.path, "_archive": None}

    @property
    def archive(self) -> zipfile.ZipFile:
        if self._archive is None:
            try:
                self._archive = zipfile.ZipFile(self.path)
            except (zipfile.BadZipFile, NotImplementedError):
                raise _not_a_zip(self.path) from None
        return self._archive

    def names(self) -> list[str]:
        members = (member for member in self.archive.namelist() if not member.endswith("/"))
        return sorted(name for name in members if _is_image(name) and not _is_hidden(name))

    def total_bytes(self, names: Sequence[str]) -> int:
        return sum(self.archive.getinfo(name).file_size for name in names)

    def read(self, name: str) -> bytes:
        try:
            return self.archive.read(name)
        except (zipfile.BadZipFile, zlib.error, RuntimeError, EOFError) as error:
            # RuntimeError: encrypted, or (NotImplementedError) an unusual compression
            raise UserError(
                f"{self.path}: {name}",
                f"cannot be read ({error})",
                "an intact, unencrypted member",
                "download the zip again, or extract it with another tool and pack the folder",
            ) from None


def open_source(path: Path) -> Source:
    """Find the images in what the user named.

    A folder that holds no image but a zip (`celeba/img_align_celeba.zip`) stands for that zip.

    Raises:
        UserError: nothing there, not a zip, or no images in it.
    """
    if not path.exists():
        raise UserError(
            f"SOURCE {path}",
            "no such file or folder",
            "a folder of images, or a zip of them",
            "check the spelling; CelebA's zip is named img_align_celeba.zip",
        )
    source: Source = FolderSource(path) if path.is_dir() else ZipSource(path)
    if source.names():
        return source
    if path.is_dir():
        zips = sorted(zip_ for zip_ in path.glob("*.zip") if not _is_clutter(zip_.name))
        if len(zips) == 1:
            return open_source(zips[0])
        if len(zips) > 1:
            listed = ", ".join(archive.name for archive in zips[:5])
            raise UserError(
                f"SOURCE {path}",
                f"no images, but {len(zips)} zips ({listed})",
                "one source",
                f"name the zip to pack: python tools/make_shards.py {zips[0]}",
            )
    raise UserError(
        f"SOURCE {path}",
        f"no images; {_glimpse(path)}",
        "files that end in " + ", ".join(sorted(IMAGE_SUFFIXES)),
        "name the folder that holds the images, or the zip as it was downloaded",
    )


def in_classes(names: Sequence[str], classes: Sequence[str], path: Path) -> list[str]:
    """Those names that lie in one of the named sub-folders, at any depth.

    Raises:
        UserError: a sub-folder has no images; the message lists those that have.
    """
    folders = {name: set(PurePosixPath(name).parts[:-1]) for name in names}
    known = sorted(set().union(*folders.values()))
    for wanted in classes:
        if wanted not in known:
            listed = ", ".join(known[:20]) + (", …" if len(known) > 20 else "")
            raise UserError(
                f"--classes {wanted}",
                f"no images in a sub-folder of that name in {path}",
                f"some of: {listed}" if known else "a source with sub-folders",
                "correct the name, or leave --classes out to take every image",
            )
    return [name for name in names if folders[name] & set(classes)]


def _is_image(name: str) -> bool:
    return PurePosixPath(name).suffix.lower() in IMAGE_SUFFIXES and not _is_clutter(
        PurePosixPath(name).name
    )


def _is_hidden(name: str) -> bool:
    return any(_is_clutter(part) for part in PurePosixPath(name).parts)


def _is_clutter(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"


def _glimpse(path: Path) -> str:
    """What stands there instead, for an error message."""
    if path.is_dir():
        entries = sorted(entry.name for entry in path.iterdir())
    else:
        entries = zipfile.ZipFile(path).namelist()
    if not entries:
        return "it is empty"
    listed = ", ".join(entries[:5]) + (", …" if len(entries) > 5 else "")
    return f"it holds {len(entries)} entries: {listed}"


def _not_a_zip(path: Path) -> UserError:
    """The usual reason is a download that brought a web page instead of the archive."""
    with path.open("rb") as file:
        head = file.read(512).lstrip().lower()
    size = path.stat().st_size
    if head.startswith((b"<!doctype html", b"<html")):
        return UserError(
            f"SOURCE {path}",
            f"a web page of {size:,} bytes, saved under the name of the archive",
            f"the zip itself (CelebA's has {CELEBA_ZIP_BYTES:,} bytes)",
            "the download quota was exceeded: download it again tomorrow, or from a mirror",
        )
    cut = head.startswith(b"pk")
    return UserError(
        f"SOURCE {path}",
        f"{size:,} bytes of " + ("a zip that is cut off or damaged" if cut else "something else"),
        "a folder of images, or a whole zip of them",
        "download it again" if cut else "name the folder or the zip that holds the images",
    )
