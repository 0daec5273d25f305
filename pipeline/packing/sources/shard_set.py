"""A shard set of ours as a source: an `original` set becomes `raw` without the pictures at hand.

Its images have the names that they had when it was packed, and its rejects are passed on. So they
have the same keys, and are dealt in the same order, as if the pictures were packed again.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pipeline.errors import UserError
from pipeline.images.decode import RejectedError
from pipeline.images.size import sides, size_text
from pipeline.packing.sources.base import (
    DamagedError,
    ImageFiles,
    Listing,
    Member,
    netpbm,
    require_file_size,
)
from pipeline.shards.labels import LabelTable, read_labels
from pipeline.shards.manifest import (
    MANIFEST,
    PROGRESS,
    REJECTS,
    SAMPLES,
    Recipe,
)
from pipeline.shards.shard_set import ShardSet, read_table, repack_command
from pipeline.shards.tar import read_index

REJECTED = -1
"""In place of a shard: the image is in none."""


def is_shard_set(folder: Path) -> bool:
    """Whether a folder is one of ours, finished or not; others' tars may have DALI's index too."""
    known = (folder / MANIFEST).is_file() or (folder / PROGRESS).is_dir()
    return known and next(folder.glob("shard-[0-9]*.idx"), None) is not None


class ShardSetSource(ImageFiles):
    """The samples of a set, and the rejects that it lists."""

    shards: ShardSet

    def __init__(self, folder: Path) -> None:
        self.path = folder
        self.shards = ShardSet.open(folder)
        recipe = self.shards.manifest.recipe
        self.pixels = recipe.size if recipe.store == "raw" else None
        self._names = [shard.name for shard in self.shards.manifest.shards]
        self._reasons: dict[str, str] = {}
        self.listing = Listing(self._list())

    def _list(self) -> list[Member]:
        """Samples and rejects in the order of their keys, which is that of their names."""
        rows = dict(read_table(self.path / SAMPLES, SAMPLES))
        by_key: dict[int, Member] = {}
        for part, (name, index) in enumerate(zip(self._names, self.shards.indexes, strict=True)):
            try:
                places = read_index(index.read_bytes(), *self.shards.manifest.extensions)
                for offset, size, key in zip(*(column.tolist() for column in places), strict=True):
                    shard, source, crc32 = rows.pop(f"{key:08d}")
                    if shard != name:
                        raise ValueError(f"sample {key:08d} is in {name}, not in {shard:.80}")
                    crc = int(crc32, 16)
                    by_key[key] = Member(source, size, offset, crc32=crc, part=part)
            except (KeyError, ValueError) as error:
                raise self._disagree(f"{error} ({index.name})") from None
        if rows or len(by_key) != len(self.shards):
            raise self._disagree(
                f"{len(by_key) + len(rows):,} samples instead of {len(self.shards):,}"
            )
        rejects = self._rejects()
        images = len(by_key) + len(rejects)
        if max(by_key) >= images:
            raise self._disagree(f"sample {max(by_key):08d} of {images:,} images")
        free = (key for key in range(images) if key not in by_key)
        by_key |= zip(free, rejects, strict=True)
        return [by_key[key] for key in sorted(by_key)]

    def _rejects(self) -> list[Member]:
        """The images that packing rejected, sorted by name."""
        rejected, members = self.shards.manifest.rejected, []
        rows = list(read_table(self.path / REJECTS, REJECTS)) if rejected else []
        try:
            for name, (reason, size) in rows:
                members.append(Member(name, int(size), part=REJECTED))
                self._reasons[name] = reason
        except ValueError as error:
            raise self._disagree(f"{error} ({REJECTS})") from None
        if len(members) != rejected:
            raise self._disagree(f"{len(members):,} rejects instead of {rejected:,}")
        return sorted(members)

    def _disagree(self, found: str) -> UserError:
        return UserError(
            f"SOURCE {self.path}",
            f"{SAMPLES} or {REJECTS} does not fit the shards: {found}",
            "the tables that were written with them",
            f"copy the set again, or pack it again: {repack_command(self.path)}",
        )

    def labels(self, members: Sequence[Member]) -> LabelTable | None:
        if self.shards.manifest.labels is None:
            return None
        labels = read_labels(self.shards)
        kept = [member for member in self.members() if member.part != REJECTED]
        rows = {(member.part, member.offset): row for row, member in enumerate(kept)}
        found = [rows.get((member.part, member.offset)) for member in members]
        # Rejects have no label any more, and are rejected again; one of another class than all
        # images that are packed would leave that class empty
        any_row = next((row for row in found if row is not None), 0)
        chosen = labels.values[[any_row if row is None else row for row in found]]
        dtype = np.int32 if labels.kind == "classes" else np.bool_
        return labels._replace(values=chosen.astype(dtype))

    def read(self, member: Member) -> bytes:
        if member.part == REJECTED:
            raise RejectedError(self._reasons[member.name])
        require_file_size(member)
        with (self.path / f"{self._names[member.part]}.tar").open("rb") as tar:
            data = os.pread(tar.fileno(), member.size, member.offset)
        if zlib.crc32(data) != member.crc32:
            raise DamagedError("its checksum is wrong")
        return data if self.pixels is None else netpbm(data, *sides(self.pixels), 3)


def require_fit(shards: ShardSet, recipe: Recipe) -> None:
    """Refuse to make of a set's images what they were cut too small for.

    Raises:
        UserError: the recipe wants more pixels, or original files.
    """
    made = shards.manifest.recipe
    if recipe.store == "original" and made.store != "original":
        raise UserError(
            f"--store {recipe.store}",
            f"{shards.name} holds no originals, but {made.describe()}",
            "a store of pictures that were cut already",
            f"use --store raw --size {size_text(made.size or 1)}, or pack the original images",
        )
    try:
        shards.require_size(recipe.size or 1)
    except UserError as fault:
        raise UserError(
            f"--size {size_text(recipe.size or 1)}",
            fault.found,
            fault.wanted,
            "use a smaller --size, or pack the original images for this size",
        ) from None
