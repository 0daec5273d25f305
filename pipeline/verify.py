"""Whether a shard set is still what was written, down to the bit, and what it is."""

from __future__ import annotations

import csv
import math
import os
import re
import tarfile
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from pipeline.errors import UserError
from pipeline.images.decode import RejectedError, decode
from pipeline.images.jpeg import read_header
from pipeline.mixing import Mixing, measure
from pipeline.shards.manifest import (
    MANIFEST,
    REJECTS,
    REJECTS_HEADER,
    SAMPLES,
    SAMPLES_HEADER,
    Manifest,
    Shard,
    ShardSet,
    file_digest,
)
from pipeline.shards.order import permutation
from pipeline.shards.tar import MAX_FILE_BYTES, headers, index_text, read_index

Sample = tuple[str, bytes]
"""A sample's key and its component."""

_KEY = re.compile(r"[0-9]{8,15}")
"""It becomes a file's name."""

MAX_LINE = 1 << 17
"""Characters of a line of a table; names of files have at most a few thousand."""

Keys = dict[str, None]
"""A set of keys that remembers their order."""


@dataclass
class Findings:
    """What a full reading of a set brought up."""

    faults: list[str] = field(default_factory=list)
    """Each names the shard, and the sample where it is one's."""
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)
    """Width and height of stored images."""
    image_bytes: int = 0
    """Of stored images, without the tar's headers."""
    rejects: Counter[str] = field(default_factory=Counter)
    """By kind."""


def verify(shards: ShardSet, findings: Findings, *, decoding: bool) -> Iterator[Shard]:
    """Read every byte of a set and compare it with what was recorded.

    Hashes of tars, indexes against tars, checksums of samples, counts, keys. `ShardSet.open` has
    compared tar sizes and index digests already.

    Args:
        shards: an opened set.
        findings: what is found is added to it.
        decoding: decode every image as well.

    Yields:
        Each shard after it was read.
    """
    recorded = _recorded(shards, findings)
    seen: Keys = {}
    for shard, tar in zip(shards.manifest.shards, shards.tars, strict=True):
        keys = _verify_shard(shards, shard, tar, recorded, decoding, findings)
        for key in sorted(keys.keys() & seen.keys()):
            findings.faults.append(f"{shard.name}: sample {key} is in another shard, too")
        seen |= keys
        yield shard
    unread = len(recorded.keys() - seen.keys())
    if unread and not findings.faults:
        findings.faults.append(f"{SAMPLES}: {unread} samples that are in no shard")
    findings.rejects = _rejects(shards.folder / REJECTS)
    if not findings.faults:
        findings.faults += _manifest_faults(shards.manifest, findings, seen)


def _manifest_faults(manifest: Manifest, findings: Findings, seen: Keys) -> Iterator[str]:
    """What the manifest says of the set as a whole, against what was read."""
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
    size = manifest.recipe.size
    if size is not None and any(min(found) != size for found in findings.sizes):
        yield f"{MANIFEST}: the stored images are not of size {size}"
    dealt = permutation(manifest.samples + manifest.rejected, manifest.seed)
    if [key for rank in dealt if (key := f"{rank:08d}") in seen] != list(seen):
        yield f"{MANIFEST}: the samples' order is not that of seed {manifest.seed}"


def _verify_shard(
    shards: ShardSet,
    shard: Shard,
    tar: Path,
    recorded: dict[str, tuple[str, str]],
    decoding: bool,
    findings: Findings,
) -> Keys:
    faults: list[str] = []
    keys: Keys = {}
    try:
        # A tar that is as it was written is not at fault where the table disagrees with it
        whole = file_digest(tar) == shard.tar_sha256
        for key, data in samples(tar):
            if key in keys:
                faults.append(f"{shard.name}: sample {key} occurs twice")
            keys[key] = None
            faults += _sample_faults(shard, key, data, recorded, whole, decoding)
            findings.sizes[_size(shards, data)] += 1
            findings.image_bytes += len(data)
        index = tar.with_suffix(".idx").read_bytes()
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


def samples(tar: Path) -> Iterator[Sample]:
    """All samples of a shard, in their order; links, devices and sparse files are none.

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
            yield member.name.partition(".")[0], file.read(member.size)


def mixing(shards: ShardSet) -> Mixing | None:
    """How well a set is mixed; reads its indexes only.

    Returns:
        None if there are too few samples to tell.

    Raises:
        ValueError: an index is not as packing writes it.
    """
    extension = shards.manifest.recipe.extension
    keys = [read_index(index.read_bytes(), extension).keys for index in shards.indexes]
    return measure(np.concatenate(keys), np.array([len(part) for part in keys]))


def find(shards: ShardSet, key: str) -> Sample:
    """One sample by its key.

    Raises:
        UserError: there is none.
    """
    tars = {tar.stem: tar for tar in shards.tars}
    listed = _table(shards.folder / SAMPLES, SAMPLES_HEADER) if _KEY.fullmatch(key) else ()
    for name, row in listed:
        if name == key and row and row[0] in tars:
            found = _component(tars[row[0]], key)
            if found is not None:
                return key, found
    keys = f"00000000 to {shards.manifest.samples + shards.manifest.rejected - 1:08d}"
    raise UserError(
        f"--extract {key}",
        f"no such key in {shards.folder}",
        f"a key of 8 digits, {keys}",
        f"look the source's name up in {shards.folder / SAMPLES}",
    )


def _component(tar: Path, key: str) -> bytes | None:
    try:
        return next((data for other, data in samples(tar) if other == key), None)
    except (tarfile.TarError, OSError) as error:
        raise UserError(
            tar, f"cannot be read ({error})", "the tar that was written", "pack the set again"
        ) from None


def _sample_faults(
    shard: Shard,
    key: str,
    data: bytes,
    recorded: dict[str, tuple[str, str]],
    whole: bool,
    decoding: bool,
) -> Iterator[str]:
    """What is wrong with a sample, or if its tar is whole, with the table's row of it."""
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


def _size(shards: ShardSet, data: bytes) -> tuple[int, int]:
    recipe = shards.manifest.recipe
    if recipe.store == "raw":
        side = math.isqrt(len(data) // 3)
        return (side, side) if 3 * side**2 == len(data) else (0, 0)
    header = read_header(data)
    return (header.width, header.height) if header else (0, 0)


def _recorded(shards: ShardSet, findings: Findings) -> dict[str, tuple[str, str]]:
    """Shard and CRC-32 of each key."""
    path = shards.folder / SAMPLES
    rows = dict(_table(path, SAMPLES_HEADER))
    if len(rows) != len(shards):
        findings.faults.append(f"{SAMPLES}: {len(rows)} samples instead of {len(shards)}")
    return {key: (row[0], row[2]) for key, row in rows.items() if len(row) == 3}


def _table(path: Path, header: str) -> Iterator[tuple[str, list[str]]]:
    """First column and the others, row by row."""
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


def _rejects(path: Path) -> Counter[str]:
    if not path.exists():
        return Counter()
    return Counter(row[0].partition(" (")[0] for _, row in _table(path, REJECTS_HEADER) if row)
