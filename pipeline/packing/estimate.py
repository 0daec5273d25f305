"""What packing would take, and how fast it is beside decoding alone: measured, on this source."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from pipeline.errors import UserError
from pipeline.images.decode import RejectedError, decode
from pipeline.packing.archives import DamagedError, Member
from pipeline.packing.outdir import TAR_OVERHEAD
from pipeline.packing.pack import Packing, pack
from pipeline.packing.sources import Source
from pipeline.packing.store import make_recipe, store
from pipeline.processes import Workers
from pipeline.shards.manifest import Recipe
from pipeline.shards.order import permutation

SAMPLE = 500
"""Images that an estimate looks at: the mean file size is then known to a few per cent."""

ROUNDS = 5
"""Of a benchmark: packing and decoding in turn, so that a busy neighbour slows both."""

BENCHMARK_IMAGES = 8192
"""Two shards of 4096: enough for two workers, and held in memory in a few dozen megabytes."""


@dataclass(frozen=True)
class Estimate:
    """One way to store a source."""

    options: str
    bytes_per_image: float
    """With the tar's overhead."""
    total_bytes: float
    decode_rate: float
    """Images that one core brings back to pixels in a second."""


def estimate(source: Source, members: Sequence[Member], recipe: Recipe) -> list[Estimate]:
    """Store a sample in each mode, in memory, and decode it again.

    Args:
        source: of the images.
        members: all of them; a fixed random sample is read.
        recipe: gives size, crop and quality, where it has them.

    Raises:
        UserError: not one image of the sample decodes.
    """
    chosen = permutation(len(members), seed=0)[:SAMPLE].tolist()
    files = [data for rank in chosen if (data := _readable(source, members[rank])) is not None]
    if not files:
        raise _none_decodes(source, len(chosen))
    size, crop = recipe.size, None if recipe.crop == "none" else str(recipe.crop)
    recipes = [
        make_recipe("original", None, None, None, checked=True),
        make_recipe("jpeg", size, crop, recipe.quality, checked=True),
        make_recipe("raw", size, crop, None, checked=True),
    ]
    return [_measure(files, recipe, len(members)) for recipe in recipes]


def _none_decodes(source: Source, sampled: int) -> UserError:
    return UserError(
        f"SOURCE {source.path}",
        f"none of {sampled} sampled images decodes",
        "images that decode",
        "pack with --max-rejects 1 and see its .packing/*.rejects.csv for the reasons",
    )


def _readable(source: Source, member: Member) -> bytes | None:
    try:
        data = source.read(member)
        decode(data)
    except (DamagedError, RejectedError):
        return None
    except OSError as error:
        raise UserError(
            error.filename or source.path,
            error.strerror or str(error),
            "a source that can be read",
            "put that right, or take the file out",
        ) from error
    return data


def _measure(files: list[bytes], recipe: Recipe, images: int) -> Estimate:
    stored = []
    for data in files:
        try:
            stored.append(store(data, recipe).data)
        except RejectedError:  # smaller than the crop
            continue
    mean = statistics.fmean(map(len, stored)) + TAR_OVERHEAD if stored else 0.0
    started = time.process_time()
    for component in stored:
        if recipe.store == "raw":
            np.frombuffer(component, np.uint8).copy()
        else:
            decode(component)
    seconds = time.process_time() - started
    return Estimate(recipe.told(), mean, mean * images, len(stored) / max(seconds, 1e-9))


def benchmark(source: Source, members: Sequence[Member], packing: Packing) -> Iterator[str]:
    """Pack, and only decode, the same images with the same number of processes, in turn.

    Yields:
        A line a round, then the medians and their ratio.
    """
    read = {member: _readable(source, member) for member in members[:BENCHMARK_IMAGES]}
    members = [member for member, data in read.items() if data is not None]
    files = [data for data in read.values() if data is not None]
    if not files:
        raise _none_decodes(source, len(read))
    per_shard = min(packing.per_shard, -(-len(members) // packing.workers))
    packing = replace(packing, per_shard=per_shard, overwrite=False)
    shares = [files[number :: packing.workers] for number in range(packing.workers)]
    rates: list[tuple[float, float]] = []
    with Workers(packing.workers, _decode_all) as workers:
        for number in range(1, ROUNDS + 1):
            seconds = max(workers.run(shares))
            decode_rate = len(files) / seconds
            with tempfile.TemporaryDirectory() as folder:
                packed = pack(source, members, Path(folder) / "set", packing)
            rates.append((packed.manifest.samples / packed.seconds, decode_rate))
            yield f"round {number}  packing {rates[-1][0]:,.0f}  decoding {rates[-1][1]:,.0f} img/s"
    packing_rate, decoding_rate = (statistics.median(column) for column in zip(*rates, strict=True))
    ratio = statistics.median(pack_rate / decode_rate for pack_rate, decode_rate in rates)
    yield (
        f"median   packing {packing_rate:,.0f}  decoding {decoding_rate:,.0f} img/s"
        f"  ratio {ratio:.0%} ({len(files):,} images, {packing.workers} processes,"
        f" {packing.recipe.told()})"
    )


def _decode_all(files: list[bytes]) -> Generator[float, None, None]:
    started = time.perf_counter()
    for data in files:
        decode(data)
    yield time.perf_counter() - started
