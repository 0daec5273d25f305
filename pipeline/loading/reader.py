"""Reads the encoded samples of a shard set by row.

Plain reads rather than a mapping: a shard that is cut short while it is mapped ends the process
with a signal; a read just comes back short, and the error names the shard and the sample.
"""

from __future__ import annotations

import math
import os
from collections import OrderedDict
from contextlib import suppress
from io import FileIO
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from pipeline.errors import UserError
from pipeline.images.decode import RejectedError, require_bounded
from pipeline.images.jpeg import read_header
from pipeline.images.size import shown_size, sides
from pipeline.machine import free_memory
from pipeline.shards.order import Rows
from pipeline.shards.shard_set import ShardSet
from pipeline.shards.tar import MAX_FILE_BYTES, Places, read_index

Encoded = npt.NDArray[np.uint8]
"""(bytes,) of one sample, as stored."""

ALWAYS_THERE = 1 << 30
"""Bytes of decoded images that are taken without a check; a batch of faces has a hundredth."""

MAX_OPEN = 256
"""Tars held open at a time; the usual limit of a process is 1,024 files."""


class Reader:
    """The samples of a set, as bytes.

    Raises:
        UserError: an index does not fit its tar.
    """

    def __init__(self, shards: ShardSet) -> None:
        self._shards = shards
        self._names = [f"{shard.name}.tar" for shard in shards.manifest.shards]
        self._of_jpegs = shards.manifest.recipe.store != "raw"
        places = [self._read_index(number) for number in range(len(self._names))]
        self._offsets = np.concatenate([place.offsets for place in places])
        self._sizes = np.concatenate([place.sizes for place in places])
        self.keys = np.concatenate([place.keys for place in places])
        """(n,) of the samples, by row."""
        self._ends = np.cumsum([len(place.keys) for place in places])
        self._open: OrderedDict[int, FileIO] = OrderedDict()
        self.tar = shards.where(self._names[0])
        """The one being read, or read last."""

    def read(self, rows: Rows) -> list[Encoded]:
        """Read some samples, in this order.

        Raises:
            UserError: a shard is gone, cannot be read, or is shorter than it was; or a sample of a
                JPEG set is none by its header, or larger than the set's largest image; or
                together they would not fit into memory.
        """
        numbers = np.searchsorted(self._ends, rows, side="right")
        places = zip(
            rows.tolist(),
            numbers.tolist(),
            self._offsets[rows].tolist(),
            self._sizes[rows].tolist(),
            strict=True,
        )
        encoded = [self._read_at(*place) for place in places]
        if self._of_jpegs:
            self._require_memory(encoded)
        return encoded

    def _require_memory(self, encoded: list[Encoded]) -> None:
        """Refuse a batch that memory has no room for: a few headers could ask for all there is."""
        width, height = self._shards.manifest.largest_image
        if 3 * width * height * len(encoded) <= ALWAYS_THERE:
            return
        headers = [read_header(sample.data) for sample in encoded]
        needed = 3 * sum(header.width * header.height for header in headers if header)
        free = free_memory(torch.device("cpu"))
        if needed > max(free, ALWAYS_THERE):
            raise UserError(
                self._shards.name,
                f"{len(encoded)} images that take {needed / 1e9:,.1f} GB decoded",
                f"a batch that fits into the {free / 1e9:,.1f} GB that are free",
                "use a smaller --batch-size, or pack smaller images: --store jpeg --size 256",
            )

    def _read_at(self, row: int, number: int, offset: int, size: int) -> Encoded:
        name = self._names[number]
        self.tar = self._shards.where(name)
        try:
            file = self._file(number)
            file.seek(offset)
            data = file.read(size)
        except OSError as error:
            raise self._damaged(name, f"unreadable ({error.strerror})") from error
        if len(data) != size:
            raise self._damaged(name, f"a file that ends before byte {offset + size:,}")
        if self._of_jpegs:
            try:
                _require_stored(data, self._shards.manifest.largest_image)
            except RejectedError as fault:
                raise self.undecodable(row, fault) from None
        return np.frombuffer(data, dtype=np.uint8)

    def _file(self, number: int) -> FileIO:
        file = self._open.pop(number, None) or _open(self._shards.path(self._names[number]))
        self._open[number] = file
        if len(self._open) > MAX_OPEN:
            self._open.popitem(last=False)[1].close()
        return file

    def forget(self, name: str) -> None:
        """Close a tar, whose bytes stay on the disk as long as it is open."""
        if (file := self._open.pop(self._names.index(name), None)) is not None:
            file.close()

    def undecodable(self, row: int, fault: RejectedError) -> UserError:
        """The error that names the sample which is no image, and why."""
        name = self._names[int(np.searchsorted(self._ends, row, side="right"))]
        return self._damaged(name, f"sample {self.keys[row]:08d} does not decode: {fault}")

    def close(self) -> None:
        while self._open:
            self._open.popitem()[1].close()

    def _read_index(self, number: int) -> Places:
        """Where the samples of a tar lie; nothing past its end, and none of an impossible size."""
        shard = self._shards.manifest.shards[number]
        index = f"{shard.name}.idx"
        recipe = self._shards.manifest.recipe
        try:
            data = self._shards.path(index).read_bytes()
            places = read_index(data, *self._shards.manifest.extensions)
        except ValueError as error:
            raise self._damaged(index, str(error)) from None
        except OSError as error:
            raise self._damaged(index, f"unreadable ({error.strerror})") from error
        offsets, sizes, _ = places
        if len(offsets) != shard.samples:
            raise self._damaged(index, f"{len(offsets):,} samples, not {shard.samples:,}")
        if min(offsets.min(), sizes.min()) < 0 or (sizes > shard.bytes - offsets).any():
            raise self._damaged(index, "samples outside of the tar")
        # Lines may name the same bytes again and again: a batch of them would fill the memory
        if (sizes > MAX_FILE_BYTES).any() or sizes.sum() > shard.bytes:
            raise self._damaged(index, "samples that are larger than the tar can hold")
        size = recipe.size or 0
        if recipe.store == "raw" and (sizes != 3 * math.prod(sides(size))).any():
            raise self._damaged(index, f"samples that are not {shown_size(size)} pixels")
        return places

    def _damaged(self, name: str, found: str) -> UserError:
        return UserError(
            self._shards.where(name),
            found,
            "shards as tools/make_shards.py writes them",
            self._shards.files.remedy,
        )


def _require_stored(data: bytes, largest: tuple[int, int]) -> None:
    """Refuse a sample of a JPEG set by its header, before a decoder sets memory aside for it.

    DALI decodes PNG and other formats too, and as much as their headers claim. No image of the set
    exceeds the `largest` width and height, in pixels.

    Raises:
        RejectedError: no JPEG as packing stores them, or larger than it may be.
    """
    header = read_header(data)
    if header is None:
        raise RejectedError("not a JPEG with one frame")
    width, height = header[:2]
    require_bounded(width, height)
    if width > largest[0] or height > largest[1]:
        most = f"{largest[0]}×{largest[1]}"
        raise RejectedError(f"too large ({width}×{height}, over the set's largest, {most})")


def _open(tar: Path) -> FileIO:
    file = FileIO(tar)
    if hasattr(os, "posix_fadvise"):
        with suppress(OSError):  # its samples are wanted soon, and in random order; only advice
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_WILLNEED)
    return file
