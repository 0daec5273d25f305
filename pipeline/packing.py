"""From a source to a shard set: deal, check, write; the manifest last.

Every shard is one independent job of a worker process, and its bytes depend only on the source,
the seed and its number: the set is the same whatever the number of workers.
"""

from __future__ import annotations

import csv
import io
import multiprocessing
import re
import shutil
import signal
import tarfile
import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, wait
from dataclasses import dataclass
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

from pipeline.checking import Admitted, RejectedError, admit
from pipeline.errors import UserError
from pipeline.files import PARTIAL, replacing, write_whole
from pipeline.index import index_text
from pipeline.manifest import MANIFEST, SAMPLES, Manifest, Recipe, Shard, digest, file_digest
from pipeline.order import permutation
from pipeline.sources import Source

PER_SHARD = 4096
"""About 30 MB of CelebA: long sequential reads, and still fifty shards to permute each epoch."""

NOT_CONTENT = frozenset(("README.md", ".gitignore"))
"""Files that may stand in an output folder without making it somebody's."""

TAR_OVERHEAD = 1024
"""Bytes a member costs beyond its own: a 512-byte header, and padding to 512."""

COUNT_EVERY = 32
"""Images between a worker's reports, and between its looks at the stop signal."""

Entry = tuple[str, str]
"""A sample's key and its name in the source."""


@dataclass(frozen=True, slots=True)
class PackedImage:
    """One stored sample."""

    key: str
    name: str
    """In the source."""
    crc32: int
    """Of the stored bytes."""
    bytes: int
    width: int
    height: int
    converted: bool

    @classmethod
    def of(cls, key: str, name: str, image: Admitted) -> PackedImage:
        """Keep what the set's tables need of an image, and not its pixels."""
        crc32 = zlib.crc32(image.jpeg)
        size = len(image.jpeg)
        return cls(key, name, crc32, size, image.width, image.height, image.converted)


@dataclass(frozen=True)
class PackedShard:
    """What a worker tells of a shard it has finished."""

    shard: Shard
    images: tuple[PackedImage, ...]


@dataclass(frozen=True)
class Packed:
    """What `pack` made."""

    manifest: Manifest
    converted: int
    """Images that had to be encoded anew; the others went in untouched."""


def pack(
    source: Source,
    names: Sequence[str],
    out: Path,
    *,
    seed: int = 0,
    per_shard: int = PER_SHARD,
    workers: int = 1,
    progress: Callable[[int], None] = lambda done: None,
) -> Packed:
    """Pack named images of a source into a new shard set.

    Args:
        source: read by each worker through its own handle.
        names: sorted; a sample's key is its place in them, in 8 digits.
        out: created if missing; must hold nothing but an interrupted run of this function.
        seed: of the global shuffle.
        per_shard: images in each shard but the last.
        workers: processes.
        progress: called a few times a second with the number of images done.

    Raises:
        UserError: an image that cannot be decoded, an occupied folder, a full disk.
    """
    _claim(out)
    _require_space(out, source.total_bytes(names) + TAR_OVERHEAD * len(names))
    dealt = deal(names, seed, per_shard)
    try:
        packed = _run_workers(source, out, dealt, workers, progress)
        manifest = _describe(packed, seed)
        _write_samples(out / SAMPLES, packed)
        write_whole(out / MANIFEST, manifest.model_dump_json(indent=1).encode() + b"\n")
    except OSError as error:
        raise UserError(
            f"--out {out}",
            f"writing failed: {error.strerror or error}",
            "a folder on a disk with room",
            "free some space or choose another --out; the same command starts again",
        ) from error
    return Packed(manifest, sum(image.converted for shard in packed for image in shard.images))


def deal(names: Sequence[str], seed: int, per_shard: int) -> list[list[Entry]]:
    """Shuffle all samples and cut them into shards: shard k owns places [k·m, (k+1)·m)."""
    order = permutation(len(names), seed).tolist()
    entries = [(f"{rank:08d}", names[rank]) for rank in order]
    return [entries[first : first + per_shard] for first in range(0, len(entries), per_shard)]


def _claim(out: Path) -> None:
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out}", "a file", "a folder", "choose another --out")
    if (out / MANIFEST).exists():
        raise UserError(
            f"--out {out}",
            "a complete shard set",
            "a new or empty folder",
            f"use it as it is, choose another --out, or delete it first: rm -r {out}",
        )
    held = {entry.name for entry in out.iterdir()} if out.exists() else set()
    foreign = sorted(name for name in held - NOT_CONTENT if not _is_ours(name, held))
    if foreign:
        raise UserError(
            f"--out {out}",
            f"{len(foreign)} other entries: {', '.join(foreign[:5])}",
            "a new or empty folder",
            "choose another --out",
        )
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name in sorted(held - NOT_CONTENT, reverse=True):  # a tar before its index
            (out / name).unlink()
    except OSError as error:
        raise UserError(
            f"--out {out}", str(error.strerror), "a folder that can be written", "choose another"
        ) from None


def _is_ours(name: str, held: set[str]) -> bool:
    # Other programs name their tars as we do; ours are indexed before they get their name
    whole = name.removesuffix(PARTIAL)
    ours = whole in (SAMPLES, MANIFEST) or re.fullmatch(r"shard-\d{6}\.(tar|idx)", whole)
    return bool(ours) and (not name.endswith(".tar") or name.replace(".tar", ".idx") in held)


def _require_space(out: Path, needed: int) -> None:
    free = shutil.disk_usage(out).free
    if free < needed:
        raise UserError(
            f"--out {out}",
            f"{free / 1e9:.2f} GB free",
            f"{needed / 1e9:.2f} GB for these images",
            "free some space, choose another --out, or pack fewer images with --limit",
        )


def _run_workers(
    source: Source,
    out: Path,
    dealt: list[list[Entry]],
    workers: int,
    progress: Callable[[int], None],
) -> list[PackedShard]:
    # spawn: the same on every system, and no lock is copied in mid-air
    context = multiprocessing.get_context("spawn")
    done, stop = context.Value("q", 0), context.Event()
    pool = ProcessPoolExecutor(
        min(workers, len(dealt)), context, initializer=_start_worker, initargs=(source, done, stop)
    )
    with pool:
        futures = [
            pool.submit(_pack_shard, out, number, entries) for number, entries in enumerate(dealt)
        ]
        try:
            _await_all(futures, lambda: progress(done.value))
            return [future.result() for future in futures]
        except BaseException:
            stop.set()
            pool.shutdown(cancel_futures=True)
            raise


def _await_all(futures: list[Future[PackedShard]], report: Callable[[], None]) -> None:
    pending = set(futures)
    while pending:
        finished, pending = wait(pending, timeout=0.1)
        report()
        for future in finished:
            future.result()  # raises what the worker raised, at once


_worker: tuple[Source, Any, Event]
"""This process's source, count of images done, and stop signal; set once, in workers only."""


def _start_worker(source: Source, done: Any, stop: Event) -> None:
    global _worker
    _worker = source, done, stop
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent hears Ctrl-C and sets `stop`


def _pack_shard(out: Path, number: int, entries: list[Entry]) -> PackedShard:
    tar, index = out / f"shard-{number:06d}.tar", out / f"shard-{number:06d}.idx"
    with replacing(tar) as partial:
        images = _write_tar(partial, entries)
        index_bytes = index_text(partial).encode()
        write_whole(index, index_bytes)
    shard = Shard(
        name=tar.stem,
        samples=len(images),
        bytes=tar.stat().st_size,
        tar_sha256=file_digest(tar),
        index_sha256=digest(index_bytes),
    )
    return PackedShard(shard, tuple(images))


def _write_tar(path: Path, entries: list[Entry]) -> list[PackedImage]:
    source, done, stop = _worker
    images = []
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as archive:
        for count, (key, name) in enumerate(entries, 1):
            admitted = _admit(source, name)
            member = tarfile.TarInfo(f"{key}.jpg")  # its time, owner and mode are constants
            member.size = len(admitted.jpeg)
            archive.addfile(member, io.BytesIO(admitted.jpeg))
            images.append(PackedImage.of(key, name, admitted))
            if count % COUNT_EVERY == 0 or count == len(entries):
                if stop.is_set():
                    raise InterruptedError("packing was stopped")
                with done.get_lock():
                    done.value += (count - 1) % COUNT_EVERY + 1
    return images


def _admit(source: Source, name: str) -> Admitted:
    try:
        return admit(source.read(name))
    except (RejectedError, OSError) as error:
        raise UserError(
            f"{source.path}: {name}",
            f"cannot be decoded ({error})",
            "images that decode",
            "repair, replace or remove this file, then run the same command again",
        ) from None


def _describe(packed: list[PackedShard], seed: int) -> Manifest:
    images = [image for shard in packed for image in shard.images]
    return Manifest(
        recipe=Recipe(),
        seed=seed,
        samples=len(images),
        image_bytes=sum(image.bytes for image in images),
        largest_image=(max(i.width for i in images), max(i.height for i in images)),
        smallest_image=(min(i.width for i in images), min(i.height for i in images)),
        shards=tuple(shard.shard for shard in packed),
    )


def _write_samples(path: Path, packed: list[PackedShard]) -> None:
    with (
        replacing(path) as partial,
        # surrogateescape: a folder's file names are bytes, and need not be UTF-8
        partial.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file,
    ):
        table = csv.writer(file)
        table.writerow(("key", "shard", "source", "crc32"))
        for shard in packed:
            for image in shard.images:
                table.writerow((image.key, shard.shard.name, image.name, f"{image.crc32:08x}"))
