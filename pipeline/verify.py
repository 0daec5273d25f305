"""Whether a shard set is still what was packed, down to the bit, and what it looks like."""

from __future__ import annotations

import math
import os
import tarfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import numpy as np
from PIL import Image

from pipeline.errors import UserError
from pipeline.files import file_digest, replacing
from pipeline.images.decode import Pixels, RejectedError, decode
from pipeline.images.fit import PAD
from pipeline.images.jpeg import read_header
from pipeline.images.size import sides, size_text
from pipeline.shards.labels import read_labels
from pipeline.shards.manifest import (
    LABEL_EXTENSION,
    LABELS,
    MANIFEST,
    REJECTS,
    SAMPLES,
    Manifest,
    Recipe,
    Shard,
)
from pipeline.shards.order import permutation
from pipeline.shards.shard_set import ShardSet, read_table
from pipeline.shards.tar import MAX_FILE_BYTES, headers, index_text, read_index

CELL, COLUMNS, ROWS, GAP = 96, 8, 8, 2
"""The contact sheet: pixels of a cell, cells, and black pixels around each cell."""

Keys = dict[str, None]
"""A set of keys that remembers their order."""


@dataclass
class Findings:
    """What a full reading of a set brought up."""

    faults: list[str] = field(default_factory=list)
    """Each names the shard, and the sample if the fault is in one."""
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)
    """Stored images by (width, height)."""
    image_bytes: int = 0
    """All stored images together, without the tar's headers."""
    rejects: Counter[str] = field(default_factory=Counter)
    """Rejected images by kind."""


def verify(
    shards: ShardSet,
    *,
    decoding: bool = False,
    track: Callable[[Sequence[Shard]], Iterable[Shard]] = iter,
) -> Findings:
    """Read every byte of a set and compare it with what was recorded.

    Compares digests of tars, indexes with tars, checksums of samples, counts and keys; if all of
    those agree, the manifest's totals, and the order of all samples with the one that the seed
    gives. `ShardSet.open` has compared tar sizes and index digests already. `track` passes the
    shards on as they are read, to show progress.

    Raises:
        UserError: a table cannot be read.
    """
    findings = Findings()
    recorded = _recorded(shards, findings)
    labels = _labels(shards, findings)
    seen: Keys = {}
    for shard in track(shards.manifest.shards):
        keys = _verify_shard(shards, shard, recorded, labels, decoding, findings)
        for key in sorted(keys.keys() & seen.keys()):
            findings.faults.append(f"{shard.name}: sample {key} is in another shard, too")
        seen |= keys
        shards.files.release(f"{shard.name}.tar")
    unread = len(recorded.keys() - seen.keys())
    if unread and not findings.faults:
        findings.faults.append(f"{SAMPLES}: {unread} samples that are in no shard")
    findings.rejects = _rejects(shards)
    if not findings.faults:
        findings.faults += _table_faults(shards)
    if not findings.faults:
        findings.faults += _manifest_faults(shards.manifest, findings, seen)
    return findings


def _manifest_faults(manifest: Manifest, findings: Findings, seen: Keys) -> Iterator[str]:
    """Compare what the manifest says of the set as a whole with what was read."""
    if findings.rejects.total() != manifest.rejected:
        rows = findings.rejects.total()
        yield f"{REJECTS}: {rows} images, but {MANIFEST} says {manifest.rejected} rejected"
        return
    if findings.image_bytes != manifest.image_bytes:
        said = manifest.image_bytes
        yield f"{MANIFEST}: {said:,} bytes of images instead of {findings.image_bytes:,}"
    widths, heights = zip(*findings.sizes, strict=True)
    if manifest.largest_image != (max(widths), max(heights)):
        yield f"{MANIFEST}: the largest image is not {manifest.largest_image}"
    if manifest.smallest_image != (min(widths), min(heights)):
        yield f"{MANIFEST}: the smallest image is not {manifest.smallest_image}"
    recipe = manifest.recipe
    if recipe.size is not None and not all(_is_of(size, recipe) for size in findings.sizes):
        yield f"{MANIFEST}: the stored images are not of size {size_text(recipe.size)}"
    dealt = permutation(manifest.samples + manifest.rejected, manifest.seed)
    if [key for rank in dealt if (key := f"{rank:08d}") in seen] != list(seen):
        yield f"{MANIFEST}: the samples' order is not that of seed {manifest.seed}"


def _verify_shard(
    shards: ShardSet,
    shard: Shard,
    recorded: dict[str, tuple[str, str]],
    labels: _Labels | None,
    decoding: bool,
    findings: Findings,
) -> Keys:
    tar = shards.path(f"{shard.name}.tar")
    faults: list[str] = []
    keys: Keys = {}
    try:
        # If a tar is as it was written, a table that disagrees with it is at fault
        whole = file_digest(tar) == shard.tar_sha256
        for key, extension, data in components(tar):
            if extension in shards.manifest.extensions[1:]:
                faults += labels.faults(shard, key, data, whole) if labels else ()
                continue
            if key in keys:
                faults.append(f"{shard.name}: sample {key} occurs twice")
            keys[key] = None
            faults += _sample_faults(shard, key, data, recorded, whole, decoding)
            findings.sizes[_size(shards.manifest.recipe, data)] += 1
            findings.image_bytes += len(data)
        index = shards.path(f"{shard.name}.idx").read_bytes()
        if not faults and index_text(tar).encode(errors="surrogateescape") != index:
            faults.append(f"{shard.name}: the index does not fit the tar")
    except (tarfile.TarError, OSError) as error:
        faults.append(f"{shard.name}: the tar cannot be read ({error})")
    if not faults and len(keys) != shard.samples:
        faults.append(f"{shard.name}: {len(keys)} samples instead of {shard.samples}")
    if not faults and not whole:
        faults.append(f"{shard.name}: a bit has changed outside the samples (SHA-256 of the tar)")
    findings.faults += faults
    return keys


def samples(tar: Path) -> Iterator[tuple[str, bytes]]:
    """Key and bytes of each image of a shard, in order.

    Raises:
        tarfile.TarError: the archive is damaged.
    """
    of_labels = LABEL_EXTENSION.values()
    return ((key, data) for key, extension, data in components(tar) if extension not in of_labels)


def components(tar: Path) -> Iterator[tuple[str, str, bytes]]:
    """Key, extension and bytes of each file of a shard, in order; passes over all but regular ones.

    Raises:
        tarfile.TarError: the archive is damaged.
    """
    with tar.open("rb") as file:
        end = os.fstat(file.fileno()).st_size
        for member in headers(tar):
            if not member.isreg() or member.issparse():
                continue
            if member.size > min(MAX_FILE_BYTES, end - member.offset_data):
                raise tarfile.ReadError(f"{member.name:.80} has {member.size:,} bytes")
            file.seek(member.offset_data)
            key, _, extension = member.name.partition(".")
            yield key, extension, file.read(member.size)


class _Labels:
    """The labels of a set by key, to be compared with those in its tars."""

    def __init__(self, shards: ShardSet) -> None:
        self._table = read_labels(shards)
        extensions = shards.manifest.extensions
        places = [read_index(path.read_bytes(), *extensions) for path in shards.indexes]
        self._keys = np.sort(np.concatenate([place.keys for place in places]))

    def faults(self, shard: Shard, key: str, data: bytes, whole: bool) -> Iterator[str]:
        """Compare the component of a sample; if its tar is whole, `labels.npy` is at fault."""
        if key.isdecimal() and len(key) < 16:
            place = int(np.searchsorted(self._keys, int(key)))
            known = place < len(self._keys) and f"{self._keys[place]:08d}" == key
            if known and self._table.component(place)[1] == data:
                return
        if whole:
            yield f"{LABELS}: another label for sample {key} than that in {shard.name}"
        else:
            yield f"{shard.name}: sample {key} has another label than in {LABELS}"


def _labels(shards: ShardSet, findings: Findings) -> _Labels | None:
    """The labels that the tars are to have, if the set has some that can be read."""
    if shards.manifest.labels is None:
        return None
    try:
        return _Labels(shards)
    except UserError as error:
        findings.faults.append(f"{LABELS}: {error.found}")
    except (ValueError, OSError) as error:
        findings.faults.append(f"an index beside {LABELS}: {error}")
    return None


def _sample_faults(
    shard: Shard,
    key: str,
    data: bytes,
    recorded: dict[str, tuple[str, str]],
    whole: bool,
    decoding: bool,
) -> Iterator[str]:
    """Say what is wrong with a sample, or if its tar is whole, with the table's row for it."""
    place, crc32 = recorded.get(key, ("", ""))
    if place != shard.name:
        if not whole:
            elsewhere = f"belongs in {place:.80}, says" if place else "is not in"
            yield f"{shard.name}: sample {key} {elsewhere} {SAMPLES}"
        elif place:
            yield f"{SAMPLES}: sample {key} is in {shard.name}, not in {place:.80}"
        else:
            yield f"{SAMPLES}: no whole row for sample {key} of {shard.name}"
    elif f"{zlib.crc32(data):08x}" != crc32:
        if not whole:
            yield f"{shard.name}: sample {key} has changed (CRC-32)"
        else:
            yield f"{SAMPLES}: another CRC-32 for sample {key} than that in {shard.name}"
    elif decoding and data[:2] == b"\xff\xd8":
        try:
            decode(data)
        except RejectedError as reject:
            yield f"{shard.name}: sample {key} does not decode: {reject}"


def _size(recipe: Recipe, data: bytes) -> tuple[int, int]:
    """Width and height of a stored image; (0, 0) if its bytes do not tell."""
    if recipe.store == "raw":
        width, height = sides(recipe.size or 0)
        if 3 * width * height != len(data):
            width = height = math.isqrt(len(data) // 3)  # a square of another size, perhaps
        return (width, height) if 3 * width * height == len(data) else (0, 0)
    header = read_header(data)
    return (header.width, header.height) if header else (0, 0)


def _is_of(found: tuple[int, int], recipe: Recipe) -> bool:
    """Whether a stored image has its recipe's size, or if it is whole, just covers that."""
    assert recipe.size is not None, "only original stores have none"
    spare = [side - wanted for side, wanted in zip(found, sides(recipe.size), strict=True)]
    return min(spare) == 0 and (recipe.is_whole or max(spare) == 0)


def _recorded(shards: ShardSet, findings: Findings) -> dict[str, tuple[str, str]]:
    """Shard and CRC-32 by key."""
    rows = dict(read_table(shards.path(SAMPLES), SAMPLES))
    if len(rows) != len(shards):
        findings.faults.append(f"{SAMPLES}: {len(rows)} samples instead of {len(shards)}")
    return {key: (row[0], row[2]) for key, row in rows.items() if len(row) == 3}


def _table_faults(shards: ShardSet) -> Iterator[str]:
    """Compare the tables with their digests, which sets packed before version 0.2 do not have."""
    digests = shards.manifest.digests
    for name in (SAMPLES, REJECTS):
        path = shards.path(name)
        # A missing list of rejects is told by their number
        if name in digests and path.exists() and file_digest(path) != digests[name]:
            yield f"{name}: other contents than {MANIFEST} says (SHA-256)"


def _rejects(shards: ShardSet) -> Counter[str]:
    path = shards.path(REJECTS)
    if not path.exists():
        return Counter()
    return Counter(row[0].partition(" (")[0] for _, row in read_table(path, REJECTS) if row)


def save_sheet(shards: ShardSet, path: Path) -> None:
    """Save the first 64 samples, a random choice of the set, as training would see them, as PNG."""
    pitch = CELL + GAP
    first = shards.path(f"{shards.manifest.shards[0].name}.tar")
    sheet = np.zeros((ROWS * pitch + GAP, COLUMNS * pitch + GAP, 3), np.uint8)
    for cell, (_, data) in enumerate(islice(samples(first), ROWS * COLUMNS)):
        top, left = (GAP + pitch * place for place in divmod(cell, COLUMNS))
        sheet[top : top + CELL, left : left + CELL] = _cell(data, shards.manifest.recipe)
    with replacing(path) as temporary:
        Image.fromarray(sheet).save(temporary, "PNG")


def _cell(data: bytes, recipe: Recipe) -> Pixels:
    if recipe.store == "raw":
        assert recipe.size is not None, "raw stores have a size"
        width, height = sides(recipe.size)
        pixels = np.frombuffer(data, np.uint8).reshape(height, width, 3)
    else:
        pixels = decode(data).pixels
    # Here, since it loads torch
    from pipeline.images.resize import as_tensor, fit

    how = recipe.fit if isinstance(recipe.size or 0, int) else PAD  # all of what is no square
    rgb = as_tensor(pixels).expand(-1, -1, 3)
    return fit(rgb, CELL, how, recipe.reader_crop).numpy()
