"""Data sets as torchvision keeps them: MNIST, FashionMNIST, CIFAR10 and CIFAR100.

Torchvision reads them, and only files with the MD5 sums that it knows. It unpickles CIFAR's, after
it has compared them. MNIST's it compares only where it downloads them, so that is done here.
"""

from __future__ import annotations

import gzip
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from pipeline.errors import UserError, first_line
from pipeline.files import writing
from pipeline.packing.sources.archives import FileSource
from pipeline.packing.sources.base import Listing, Member, netpbm, require_file_size
from pipeline.shards.labels import LabelTable

PREFIX = "torchvision:"

SETS = ("MNIST", "FashionMNIST", "CIFAR10", "CIFAR100")

TRAIN, TEST = "train", "test"
"""Where neither is named, `train` is meant, as in pytorch/examples."""

IDX_HEADER = {"images": 16, "labels": 8}
"""Bytes before the values in MNIST's files (yann.lecun.com/exdb/mnist)."""


class _Split(NamedTuple):
    """A part of a data set."""

    folder: Path
    pixels: npt.NDArray[np.uint8]
    """(n, S, S) or (n, S, S, 3)."""
    classes: npt.NDArray[np.int32]
    """(n,)."""
    names: tuple[str, ...]


class TorchvisionSource(FileSource):
    """Images of a data set, by their number; its pixels are written once, as image files."""

    def __init__(self, source: str, root: Path, scratch: Path) -> None:
        """Read a split.

        Args:
            source: `torchvision:NAME`, or `torchvision:NAME/test`.
            root: the folder that torchvision downloaded to.
            scratch: a folder on whose disk the pixels are kept for as long as they are read.

        Raises:
            UserError: an unknown name, or files that are missing or not as published.
        """
        name, self._part = _parsed(source)
        self._split = _read(source, name, root, train=self._part == TRAIN)
        self.pixels = self._split.pixels.shape[1]
        with writing(f"SOURCE {source}", "room for its pixels", "choose an --out on another disk"):
            self._held = tempfile.TemporaryFile(dir=scratch)  # noqa: SIM115  # held while read
            self._held.writelines(map(_picture, self._split.pixels))
            self._held.flush()
        super().__init__(self._split.folder, self._held)
        pixels = self._split.pixels
        size, suffix = len(_picture(pixels[0])), ".pgm" if pixels.ndim == 3 else ".ppm"
        places = range(len(pixels))
        self.listing = Listing([Member(f"{n:05d}{suffix}", size, n * size) for n in places])

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {"_split": None}

    def place(self) -> str:
        return f"{super().place()} ({self._part})"

    def labels(self, members: Sequence[Member]) -> LabelTable:
        numbers = [int(member.name.partition(".")[0]) for member in members]
        return LabelTable("classes", self._split.names, self._split.classes[numbers])

    def read(self, member: Member) -> bytes:
        require_file_size(member)
        return self._bytes(member.offset, member.size)


def name_of(source: str) -> str:
    """What stands before the images' names where there are several sources."""
    return source.removeprefix(PREFIX).replace("/", "-")


def _picture(pixels: npt.NDArray[np.uint8]) -> bytes:
    height, width = pixels.shape[:2]
    return netpbm(pixels.tobytes(), width, height, 1 if pixels.ndim == 2 else 3)


def _parsed(source: str) -> tuple[str, str]:
    """A data set and its split."""
    name, _, split = source.removeprefix(PREFIX).partition("/")
    if name not in SETS or split not in ("", TRAIN, TEST):
        raise UserError(
            f"SOURCE {source}",
            "a data set or a split that is not read here",
            f"one of {', '.join(SETS)}, with /{TEST} behind it for its test images",
            "correct it, or save the images of another set as PNG files and name their folder",
        )
    return name, split or TRAIN


def _read(source: str, name: str, root: Path, *, train: bool) -> _Split:
    from torchvision import datasets

    kind = getattr(datasets, name)
    read = _read_cifar if name.startswith("CIFAR") else _read_mnist
    try:
        return read(kind, root, train)
    except _OtherFilesError as error:
        raise _refusal(source, kind, root, str(error)) from None
    except Exception as error:  # torchvision's readers raise nearly every type on damaged input
        raise _refusal(source, kind, root, first_line(error)) from None


class _OtherFilesError(Exception):
    """Files that are not those that the set's authors publish."""


def _read_cifar(kind: Any, root: Path, train: bool) -> _Split:
    folder = root / kind.base_folder
    meta = (kind.meta["filename"], kind.meta["md5"])
    _require_as_published(folder, [*kind.train_list, *kind.test_list, meta])
    found = kind(root, train=train, download=False)  # compares the sums too, then unpickles
    classes = np.array(found.targets, np.int32)
    return _Split(folder, found.data, classes, tuple(found.classes))


def _read_mnist(kind: Any, root: Path, train: bool) -> _Split:
    folder = root / kind.__name__ / "raw"
    files = [(name, md5) for name, md5 in kind.resources if name.startswith("train") == train]
    _require_as_published(folder, files)
    found = kind(root, train=train, download=False)
    pixels, classes = found.data.numpy(), found.targets.numpy()
    for (name, _), (part, header) in zip(files, IDX_HEADER.items(), strict=True):
        values = (pixels if part == "images" else classes.astype(np.uint8)).tobytes()
        with gzip.open(folder / name) as published:
            if published.read()[header:] != values:
                unpacked = root / kind.__name__
                raise _OtherFilesError(f"other {part} unpacked in {unpacked} than in {name}")
    return _Split(folder, pixels, classes.astype(np.int32), tuple(kind.classes))


def _require_as_published(folder: Path, files: Sequence[Sequence[str]]) -> None:
    """Refuse files that are missing, or whose MD5 sums are not torchvision's."""
    from torchvision.datasets.utils import check_integrity

    for name, md5 in files:
        if not (folder / name).is_file():
            raise _OtherFilesError(f"no file {folder / name}")
        if not check_integrity(folder / name, md5):
            raise _OtherFilesError(f"{folder / name} has another MD5 sum than {md5}")


def _refusal(source: str, kind: Any, root: Path, found: str) -> UserError:
    """What to do about files that are missing or damaged: who has them, and how to fetch them."""
    published = getattr(kind, "url", None) or ", ".join(
        f"{kind.mirrors[0]}{name}" for name, _ in kind.resources
    )
    fetch = (
        f"from torchvision.datasets import {kind.__name__} as D; D({str(root)!r}, download=True)"
    )
    return UserError(
        f"SOURCE {source}",
        found,
        f"the set as its authors publish it: {published}",
        f'name its folder with --root, or fetch it into an empty one: python -c "{fetch}"',
    )
