"""Labelled shard sets of two kinds of pictures that any measurement tells apart."""

from pathlib import Path

import numpy as np

from pipeline.packing.pack import Packing, pack
from pipeline.packing.sources.open import open_source
from pipeline.shards.labels import LabelTable
from pipeline.shards.manifest import Recipe
from pipeline.shards.shard_set import ShardSet
from tests.packing_runs import without_workers
from tests.pictures import encode, write_pictures

SIDE = 32
NAMES = ("dark, thé [old]", "--bright:1")
"""Of classes: what a command line, a list or a file might trip over."""
ATTRIBUTES = ("Bright", "Red")


def shade(bright: bool, red: bool, seed: int) -> bytes:
    """A PNG of noise around a level of its own: below 80 if dark, above 176 if bright."""
    draw = np.random.default_rng(seed)
    level = draw.integers(0, 60) + (190 if bright else 20)
    pixels = draw.normal(level, 4, (SIDE, SIDE, 3)) + (np.array([30, 0, -15]) if red else 0)
    return encode(pixels.clip(0, 255).astype(np.uint8), "PNG")


def labelled_set(
    folder: Path,
    attributes: bool = False,
    names: tuple[str, ...] | None = None,
    labelled: bool = True,
    images: int = 64,
) -> ShardSet:
    """Pack pictures of which every second is bright and every third red.

    Args:
        folder: new or empty.
        attributes: whether these are attributes, or the brightness is a class.
        names: of the labels.
        labelled: whether the set has labels at all.
        images: in the set.
    """
    bright, red = (np.arange(images) % each == 0 for each in (2, 3))
    files = {f"{k:04d}.png": shade(bool(bright[k]), bool(red[k]), k) for k in range(images)}
    source = open_source(write_pictures(folder / "pictures", files))
    table = LabelTable("classes", names or NAMES, bright.astype(np.int32))
    if attributes:
        table = LabelTable("attributes", names or ATTRIBUTES, np.stack([bright, red], axis=1))
    packing = Packing(recipe=Recipe(store="raw", crop="centre", size=SIDE))
    with without_workers():
        pack(source, source.members(), folder / "set", packing, labels=table if labelled else None)
    return ShardSet.open(folder / "set")
