"""Which source stands where the user said."""

from __future__ import annotations

import shlex
import tempfile
from pathlib import Path

from pipeline.errors import UserError, counted
from pipeline.packing.downloads import is_stand_in, not_an_archive, unpacked_folder
from pipeline.packing.sieve import IMAGE_SUFFIXES
from pipeline.packing.sources.archives import CompressedTarSource, TarSource, ZipSource
from pipeline.packing.sources.base import ImageFiles
from pipeline.packing.sources.folder import FolderSource
from pipeline.shards.manifest import pack_command
from pipeline.shards.tar import is_compressed_tar, is_tar


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
