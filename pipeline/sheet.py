"""A contact sheet of a shard set: sixty-four samples, as training would see them."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import numpy as np
from PIL import Image

from pipeline.files import replacing
from pipeline.images.decode import Pixels, decode
from pipeline.packing.store import cut
from pipeline.shards.manifest import Recipe, ShardSet
from pipeline.verify import samples

CELL, COLUMNS, ROWS, GAP = 96, 8, 8, 2
"""Pixels of a cell, cells of a sheet, black pixels around each cell."""


def save_sheet(shards: ShardSet, path: Path) -> None:
    """Save the first samples of the first shard, which are a random choice of the set, as PNG."""
    pitch = CELL + GAP
    sheet = np.zeros((ROWS * pitch + GAP, COLUMNS * pitch + GAP, 3), np.uint8)
    first = islice(samples(shards.tars[0]), ROWS * COLUMNS)
    for cell, (_, data) in enumerate(first):
        top, left = (GAP + pitch * place for place in divmod(cell, COLUMNS))
        sheet[top : top + CELL, left : left + CELL] = _cell(data, shards.manifest.recipe)
    with replacing(path) as temporary:
        Image.fromarray(sheet).save(temporary, "PNG")


def _cell(data: bytes, recipe: Recipe) -> Pixels:
    if recipe.store == "raw":
        assert recipe.size is not None, "raw stores have a size"
        pixels = np.frombuffer(data, np.uint8).reshape(recipe.size, recipe.size, 3)
    else:
        pixels = decode(data).pixels
    crop = recipe.crop if recipe.store == "original" and recipe.crop != "none" else "centre"
    return cut(pixels, Recipe(store="jpeg", crop=crop, size=CELL))  # grey spreads over the colours
