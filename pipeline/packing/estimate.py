"""What each way to store a source would take, measured on some of its images."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.errors import UserError
from pipeline.images.decode import RejectedError, decode
from pipeline.packing.outdir import TAR_OVERHEAD
from pipeline.packing.sources.base import DamagedError, ImageFiles, Member
from pipeline.packing.store import store
from pipeline.shards.manifest import Recipe, make_recipe
from pipeline.shards.order import permutation

SAMPLE = 500
"""Images that an estimate looks at: the mean file size is then known to a few per cent."""


@dataclass(frozen=True)
class Estimate:
    """One way to store a source."""

    options: str
    bytes_per_image: float
    """With the tar's overhead."""
    total_bytes: float
    decode_rate: float
    """Images that one core brings back to pixels in a second."""


def estimate(source: ImageFiles, members: Sequence[Member], recipe: Recipe) -> list[Estimate]:
    """Store a fixed random sample in each mode, in memory, and decode it again.

    The recipe gives size, crop and quality, where it has them.

    Raises:
        UserError: not one image of the sample decodes.
    """
    chosen = permutation(len(members), seed=0)[:SAMPLE].tolist()
    files = [data for rank in chosen if (data := _readable(source, members[rank])) is not None]
    if not files:
        raise UserError(
            f"SOURCE {source.path}",
            f"none of {len(chosen)} sampled images decodes",
            "images that decode",
            "pack with --max-rejects 1 and see its .packing/*.rejects.csv for the reasons",
        )
    crop = str(recipe.crop) if isinstance(recipe.crop, int) else None
    recipes = [
        Recipe(),
        make_recipe("jpeg", recipe.size, crop, recipe.quality, recipe.fit, checked=True),
        make_recipe("raw", recipe.size, crop, None, recipe.fit, checked=True),
    ]
    return [_measure(files, recipe, len(members)) for recipe in recipes]


def _readable(source: ImageFiles, member: Member) -> bytes | None:
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
    return Estimate(recipe.describe(), mean, mean * images, len(stored) / max(seconds, 1e-9))
