"""Other forms of a shard set, made to be measured beside it: fewer shards, files, other stores."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from pipeline.errors import UserError
from pipeline.loading.reader import Reader
from pipeline.packing.pack import Packing, pack
from pipeline.packing.sources import open_source
from pipeline.packing.store import make_recipe
from pipeline.shards.manifest import Recipe, ShardSet

FOLDER = "images"
"""Of the written files: ImageFolder wants a sub-folder for each class, and there is one."""


def first_shards(shards: ShardSet, images: int) -> ShardSet:
    """The set as if it ended with the shard that brings it to so many images.

    Packing shuffles, so these are a random sample of the whole.
    """
    kept, samples = [], 0
    for shard in shards.manifest.shards:
        if samples >= images:
            break
        kept.append(shard)
        samples += shard.samples
    manifest = shards.manifest.model_copy(update={"shards": tuple(kept), "samples": samples})
    return ShardSet(shards.folder, manifest)


def write_images(shards: ShardSet, folder: Path) -> Path:
    """Write the samples of a JPEG set as files, in a sub-folder of `folder`; returns `folder`.

    Raises:
        UserError: the set is damaged, or there is no room.
    """
    assert shards.manifest.recipe.store != "raw", "raw samples are no image files"
    (folder / FOLDER).mkdir(parents=True)
    reader = Reader(shards)
    try:
        for row in range(len(shards)):
            (data,) = reader.read(np.array([row]))
            (folder / FOLDER / f"{row:08d}.jpg").write_bytes(data.tobytes())
    except OSError as error:
        raise UserError(
            folder,
            error.strerror or str(error),
            f"room for {len(shards):,} image files",
            "use fewer --images, or let TMPDIR name a folder on a larger disk",
        ) from error
    finally:
        reader.close()
    return folder


def pack_as(
    store: str, shards: ShardSet, images: Path, image_size: int, out: Path, workers: int
) -> ShardSet:
    """Pack what `write_images` wrote, so that readers see the same part of each image.

    Args:
        store: `jpeg` or `raw`.
        shards: the set that the images are from.
        images: their folder.
        image_size: to store, in pixels.
        out: new folder for the set.
        workers: processes.
    """
    assert store in ("jpeg", "raw"), store
    source = open_source(images)
    recipe = _recipe(store, shards.manifest.recipe, image_size)
    pack(source, source.members(), out, Packing(recipe, workers=workers))
    return ShardSet.open(out)


def _recipe(store: str, stored: Recipe, image_size: int) -> Recipe:
    crop = stored.crop if stored.store == "original" and stored.crop != "none" else "centre"
    if store == "raw":
        return make_recipe("raw", image_size, str(crop), None, checked=True)
    return make_recipe("jpeg", image_size, str(crop), None, checked=True)
