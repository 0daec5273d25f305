"""Which source stands where the user said."""

from __future__ import annotations

import re
import shlex
import tempfile
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

from pipeline.errors import UserError, counted
from pipeline.packing.downloads import (
    is_stand_in,
    not_an_archive,
    unpacked_folder,
    without_suffix,
)
from pipeline.packing.sources.archives import CompressedTarSource, TarSource, ZipSource
from pipeline.packing.sources.base import ImageFiles
from pipeline.packing.sources.folder import FolderSource
from pipeline.packing.sources.lsun import LsunSource, is_lsun
from pipeline.packing.sources.several import SeveralSources
from pipeline.packing.sources.shard_set import ShardSetSource, is_shard_set
from pipeline.packing.sources.sieve import IMAGE_SUFFIXES
from pipeline.packing.sources.torchvision import PREFIX, TorchvisionSource, name_of
from pipeline.packing.sources.webdataset import TarsSource
from pipeline.shards.manifest import MANIFEST
from pipeline.shards.shard_set import is_url, pack_command
from pipeline.shards.tar import is_compressed_tar, is_tar

DATA = Path("data")
"""Where torchvision's examples download to."""

MAX_TARS = 100_000
"""Of one pattern: braces may stand for any number of names."""


def open_sources(sources: Sequence[str], scratch: Path, root: Path = DATA) -> ImageFiles:
    """Find the images in what the user named: in one source, or in several as one.

    Each of several has a name of its own: its last part, without the suffix of an archive.

    Raises:
        UserError: as `open_source`; or two sources have one name.
    """
    if len(sources) == 1:
        return open_source(sources[0], scratch, root)
    named: dict[str, str] = {}
    for source in sources:
        name = _name(source)
        if name in named:
            raise UserError(
                f"SOURCE {source}",
                f"the name {name}, which {named[name]} has too",
                "names that tell the images of each source from those of the others",
                "rename one of them, or name the folder that holds both",
            )
        named[name] = source
    opened = {name: open_source(source, scratch, root) for name, source in named.items()}
    return SeveralSources(opened)


def _name(source: str) -> str:
    if source.startswith(PREFIX):
        return name_of(source)
    return without_suffix(Path(source).resolve().name)


def may_be_pixels(source: str) -> bool:
    """Whether a source may hold pixels instead of files, as far as a glance tells."""
    return source.startswith(PREFIX) or (Path(source) / MANIFEST).is_file()


def open_source(source: Path | str, scratch: Path | None = None, root: Path = DATA) -> ImageFiles:
    """Find the images in one source.

    A folder that holds no image but an archive of them (`celeba/img_align_celeba.zip`) stands for
    it, and one that holds tars of a webdataset, for all of them.

    Args:
        source: a folder, a zip, or a tar, compressed or not; a shard set; a folder of LSUN's;
            `torchvision:NAME`; or a pattern of tars, as in `train-{000..146}.tar`.
        scratch: a folder on whose disk a compressed tar may be unpacked for as long as it is read;
            the system's for temporary files by default.
        root: the folder that torchvision downloaded to.

    Raises:
        UserError: nothing there, not an archive, no images in it, or images in two places of which
            either may be meant.
    """
    scratch = scratch or Path(tempfile.gettempdir())
    if str(source).startswith(PREFIX):
        return TorchvisionSource(str(source), root, scratch)
    path = Path(source)
    opened: ImageFiles
    if not path.exists():
        if "{" not in str(source):
            raise _nothing_there(str(source))
        opened = _open_pattern(str(source), scratch)
    elif not path.is_dir():
        opened = _open_archive(path, scratch)
    elif is_shard_set(path):
        opened = ShardSetSource(path)
    elif is_lsun(path):
        opened = LsunSource(path)
    else:
        return _open_folder(path, scratch)
    if not opened.members():
        raise _without_images(opened)
    return opened


def _nothing_there(source: str) -> UserError:
    if is_url(source):  # of which no more is shown, since there may be a password in it
        return UserError(
            f"SOURCE {source.partition(':')[0]}:…",
            "a URL: nothing is downloaded, and no command of a pipe: is run",
            "a file or folder of this machine",
            "download it first, a shard set with all its files, and name what you have then",
        )
    return UserError(
        f"SOURCE {source}",
        "no such file or folder",
        "a folder of images, or a zip or tar of them",
        "check the spelling; CelebA's zip is named img_align_celeba.zip",
    )


def _open_pattern(pattern: str, scratch: Path) -> ImageFiles:
    """The tars that a pattern with braces names, as a webdataset.

    Raises:
        UserError: one is missing, or is no tar.
    """
    from braceexpand import braceexpand

    wide, paths = False, []
    try:  # braceexpand makes all of a range at once, whatever it would take of memory
        ranges = re.findall(r"\{(-?\d+)\.\.(-?\d+)", pattern)
        wide = any(abs(int(last) - int(first)) >= MAX_TARS for first, last in ranges)
        if not wide:
            paths = [Path(name) for name in islice(braceexpand(pattern), MAX_TARS + 1)]
    except ValueError:
        pass
    if missing := [path for path in paths if not path.is_file()]:
        raise _nothing_there(f"{pattern}: {missing[0]}")
    if not 0 < len(paths) <= MAX_TARS:
        many = wide or bool(paths)
        raise UserError(
            f"SOURCE {pattern}",
            f"a pattern of more than {MAX_TARS:,} names" if many else "braces that do not match",
            "a pattern such as train-{000..146}.tar",
            "correct it, or name the folder of the tars",
        )
    return TarsSource(Path(pattern), [_open_tar(path, scratch) for path in paths])


def _open_tar(path: Path, scratch: Path) -> TarSource:
    source = _open_archive(path, scratch)
    if not isinstance(source, TarSource):
        raise UserError(f"SOURCE {path}", "a zip", "a tar", "name the zip as a source of its own")
    return source


def _open_folder(path: Path, scratch: Path) -> ImageFiles:
    """A folder's own images, or those of the archives in it.

    Raises:
        UserError: an archive has more images than were found, or none has any; or a file weighs
            more than they do and is no archive: the images may be in that one.
    """
    folder = FolderSource(path)
    images = folder.members()
    found: list[ImageFiles] = []
    faults: dict[Path, UserError] = {}
    for name in folder.listing.archives:
        if not images and "/" in name:
            continue
        try:
            source = _open_archive(path / name, scratch)
        except UserError as fault:
            faults[path / name] = fault
            continue
        if len(source.members()) > len(images):
            found.append(source)
    if images and found:
        raise _two_sources(folder, [folder, found[0]])
    chosen = _webdataset(path, found) if len(found) > 1 else next(iter(found), None)
    if found and chosen is None:
        raise _two_sources(folder, found)
    chosen = chosen or (folder if images else None)
    if chosen is None:
        raise _nothing_in(folder, faults)
    _require_lighter(faults, folder, chosen)
    return chosen


def _webdataset(folder: Path, archives: Sequence[ImageFiles]) -> TarsSource | None:
    """Archives as a webdataset, if they are tars that hold labels beside each image."""
    tars = [tar for tar in archives if isinstance(tar, TarSource) and tar.listing.beside]
    return TarsSource(folder, tars) if len(tars) == len(archives) else None


def _two_sources(folder: FolderSource, found: Sequence[ImageFiles]) -> UserError:
    chosen, other, *more = found
    name, pack_it = other.path.relative_to(folder.path), pack_command(other.path)
    if chosen is folder:
        what = f"{_described(folder)}, and beside them {name} with {len(other.members()):,}"
        remedy = f"name the archive: {pack_it}; for the images beside it, move it away"
    else:
        names = f"{chosen.path.name}, {name}" + (", …" if more else "")
        what = f"no images, but several archives with some: {names}"
        remedy = f"name the archive to pack: {pack_command(chosen.path)}; or name several"
    return UserError(f"SOURCE {folder.path}", what, "one source", remedy)


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
    path, (_, left_out, links, archives, _) = source.path, source.listing
    where, wanted = f"SOURCE {path}", "files that end in " + ", ".join(sorted(IMAGE_SUFFIXES))
    if not archives:
        others = [f"it holds {counted(left_out)}"] if left_out else []
        others += [f"links: {counted(links)}"] if links else []
        found = f"no images; {'; '.join(others) or 'it is empty'}"
        remedy = "name the folder that holds the images, or the archive as it was downloaded"
        if ".mdb" in left_out:
            remedy = "unzip LSUN's databases, and name their folders, as in bedroom_train_lmdb"
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
