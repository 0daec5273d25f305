"""A complete shard set: its manifest, and where its files are."""

from __future__ import annotations

import csv
import re
import shlex
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import UserError
from pipeline.files import file_digest
from pipeline.images.size import ImageSize, shown_size, sides, size_text
from pipeline.shards.manifest import (
    HEADERS,
    LABELS,
    MANIFEST,
    MAX_INDEX_BYTES,
    MAX_MANIFEST_BYTES,
    PROGRESS,
    Manifest,
    Shard,
    parse_manifest,
)

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:")
"""The start of a URL (RFC 3986, section 3.1), of two letters or more: drives have one."""


MAX_LINE = 1 << 17
"""Characters in a line of a table; file names have at most a few thousand."""


class Files(ABC):
    """The files of a shard set, wherever they are."""

    note = ""
    """What people should know about where they come from."""

    @abstractmethod
    def __str__(self) -> str:
        """Where they are, for people: a folder or a URL."""

    @abstractmethod
    def path(self, name: str) -> Path:
        """Where a file lies on this machine; of a remote set, once it is there.

        Raises:
            UserError: it cannot be had.
        """

    def release(self, name: str) -> None:  # noqa: B027  # what lies here stays
        """Let go of a file, which may have to be fetched again."""

    @property
    @abstractmethod
    def remedy(self) -> str:
        """What to do about a file that is missing or damaged."""


@dataclass(frozen=True)
class Folder(Files):
    """The files in a folder of this machine."""

    place: Path

    def __str__(self) -> str:
        return str(self.place)

    def path(self, name: str) -> Path:
        return self.place / name

    @property
    def remedy(self) -> str:
        return f"copy the set again, or pack it again: {repack_command(self.place)}"


@dataclass(frozen=True)
class ShardSet:
    """A complete set."""

    files: Files
    manifest: Manifest

    def __len__(self) -> int:
        return self.manifest.samples

    @property
    def name(self) -> str:
        """What people call it: a folder or a URL."""
        return str(self.files)

    @property
    def folder(self) -> Path:
        """The folder of a set on this machine."""
        assert isinstance(self.files, Folder), "a remote set has none"
        return self.files.place

    def path(self, name: str) -> Path:
        """Where a file of the set lies on this machine; see `Files.path`."""
        return self.files.path(name)

    def where(self, name: str) -> str:
        """What people call a file of the set."""
        return f"{self.name}/{name}"

    @property
    def tars(self) -> list[Path]:
        """All tars on this machine; of a remote set, each is fetched first."""
        return [self.path(f"{shard.name}.tar") for shard in self.manifest.shards]

    @property
    def indexes(self) -> list[Path]:
        return [self.path(f"{shard.name}.idx") for shard in self.manifest.shards]

    @classmethod
    def open(cls, folder: Path) -> ShardSet:
        """Open a set for reading; compares tar sizes and index digests, and reads no image.

        That much is needed before DALI may map the files: an index that points past the end of
        its tar ends the process with a segmentation fault.

        Raises:
            UserError: the set is missing, unfinished, of another format, or altered.
        """
        if is_url(str(folder)):
            # webdataset, which dcgan-profile compares with, would run what follows `pipe:`
            raise UserError(
                folder, "a URL", "a folder of this machine", "name a folder of that name from /"
            )
        manifest = _read_manifest(folder)
        for shard in manifest.shards:
            _check_shard(folder, shard)
        if manifest.labels is not None:
            _require_file(folder / LABELS)
        return cls(Folder(folder), manifest)

    def require_size(self, image_size: ImageSize) -> None:
        """Refuse to enlarge what was made small on purpose.

        Raises:
            UserError: this set's recipe leaves fewer pixels than asked for.
        """
        recipe = self.manifest.recipe
        crop = recipe.crop if isinstance(recipe.crop, int) else None
        limit = recipe.size if recipe.size is not None else crop
        if limit is None:
            return
        if any(side > most for side, most in zip(sides(image_size), sides(limit), strict=True)):
            most = size_text(limit)
            raise UserError(
                f"--image-size {size_text(image_size)}",
                f"{self.name} holds images of {shown_size(limit)} pixels ({recipe.describe()})",
                f"at most {most}",
                f"train at --image-size {most} or less, or pack the source again for this size",
            )

    def fit_of(self, asked: str | None) -> str:
        """How readers are to fit this set's images: as somebody asked, or in the set's own way.

        Raises:
            UserError: another one than was applied when it was packed.
        """
        recipe = self.manifest.recipe
        if asked is not None and asked != recipe.fit and not recipe.is_whole:
            raise UserError(
                f"--fit {asked}",
                f"{self.name} holds images that are no longer whole ({recipe.describe()})",
                f"--fit {recipe.fit}, or a set of whole images, as --store original has them",
                f"leave --fit out, or pack the source again with --fit {asked}",
            )
        return asked or recipe.fit

    @property
    def fingerprint(self) -> str:
        """Tells this set's images from those of every other."""
        return self.manifest.fingerprint


def read_table(path: Path, name: str) -> Iterator[tuple[str, list[str]]]:
    """The first column and the others of a set's `samples.csv` or `rejects.csv`, row by row.

    Raises:
        UserError: it cannot be read, or is another table.
    """
    header = HEADERS[name]
    try:
        with path.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
            rows = csv.reader(iter(lambda: file.readline(MAX_LINE), ""))
            if next(rows, None) != header.split(","):
                raise csv.Error(f"its first line is not {header}")
            for row in rows:
                if row:
                    yield row[0], row[1:]
    except (OSError, csv.Error) as error:
        raise UserError(
            path, f"cannot be read ({error})", "the table that was written", "pack the set again"
        ) from None


def is_url(name: str) -> bool:
    """Whether a name is that of a URL: webdataset would run what follows `pipe:`."""
    return _SCHEME.match(name) is not None


def pack_command(source: Path | str) -> str:
    """The command that packs a source, to paste."""
    return f"python tools/make_shards.py {shlex.quote(str(source))}"


def repack_command(folder: Path) -> str:
    """The command that makes a set in this folder, or makes it anew, for an error's remedy."""
    anew = " --overwrite" if folder.is_dir() and any(folder.iterdir()) else ""
    return f"{pack_command('celeba/')} --out {shlex.quote(str(folder))}{anew}"


def _read_manifest(folder: Path) -> Manifest:
    path = folder / MANIFEST
    again = repack_command(folder)
    if not folder.is_dir():
        if folder.exists():
            raise UserError(folder, "a file", "a shard set, which is a folder", _of_file(folder))
        remedy = f"pack your images first: {again}"
        raise UserError(folder, "no such folder", "a shard set", remedy)
    if not path.is_file():
        raise UserError(folder, *_no_manifest(folder))
    if path.stat().st_size > MAX_MANIFEST_BYTES:
        raise UserError(path, "more than 64 MiB", "a manifest", f"pack again: {again}")
    return parse_manifest(path.read_bytes(), path, again)


def _of_file(path: Path) -> str:
    """The remedy for a file in place of a set's folder: it may be part of a set, or a source."""
    if (path.parent / MANIFEST).is_file():
        return f"name the folder that it is in, {path.parent}"
    return f"if it is an archive of images, pack it: {pack_command(path)} --out shards"


def _no_manifest(folder: Path) -> tuple[str, str, str]:
    """What a folder without a manifest is, what was wanted, and the remedy."""
    wanted, missing = "a complete shard set", f"no {MANIFEST}: not a shard set"
    names = {entry.name for entry in folder.iterdir()}
    if PROGRESS in names:
        again = f"{pack_command('celeba/')} --out {shlex.quote(str(folder))}"
        found = f"shards but no {MANIFEST}: an unfinished set"
        return found, wanted, f"give the command that packed it again, to finish it: {again}"
    if any(re.match(r"shard-.*\.tar", name) for name in names):
        found = f"shards but no {MANIFEST}: an unfinished set"
        return found, wanted, f"pack your images: {repack_command(folder)}"
    inside = sorted(name for name in names if (folder / name / MANIFEST).is_file())
    if inside:
        return missing, wanted, f"name the set in it, {folder / inside[0]}"
    if names:  # somebody's: nothing may be packed into it, and perhaps it is the source
        remedy = "name the set, or if these are your images, pack them"
        return missing, wanted, f"{remedy}: {pack_command(folder)} --out shards"
    return missing, wanted, f"pack your images: {repack_command(folder)}"


def _require_file(path: Path) -> None:
    if not path.is_file():
        wanted, remedy = f"the file named in {MANIFEST}", Folder(path.parent).remedy
        raise UserError(path, "no such file", wanted, remedy)


def _check_shard(folder: Path, shard: Shard) -> None:
    tar, index = folder / f"{shard.name}.tar", folder / f"{shard.name}.idx"
    remedy = Folder(folder).remedy
    for path in (tar, index):
        _require_file(path)
    if tar.stat().st_size != shard.bytes:
        found = f"{tar.stat().st_size:,} bytes"
        raise UserError(tar, found, f"{shard.bytes:,} bytes, as {MANIFEST} says", remedy)
    if index.stat().st_size > MAX_INDEX_BYTES:
        raise UserError(index, f"more than {MAX_INDEX_BYTES:,} bytes", "an index", remedy)
    if file_digest(index) != shard.index_sha256:
        raise UserError(index, "other contents", f"the index recorded in {MANIFEST}", remedy)
