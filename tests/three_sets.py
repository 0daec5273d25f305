"""A small set in each store, and what a reader is told of one that was altered."""

import shutil
from pathlib import Path

import pytest

from pipeline.errors import UserError
from pipeline.shards.manifest import Recipe
from pipeline.shards.shard_set import ShardSet
from pipeline.verify import verify
from tests.packing_runs import pack_folder, without_workers
from tests.pictures import encode, numbered_pictures, smooth, write_pictures

RECIPES = {
    "original": Recipe(),
    "jpeg": Recipe(store="jpeg", crop="centre", size=24, filter="bilinear", quality=90),
    "raw": Recipe(store="raw", crop=28, size=16, filter="bilinear"),
}


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    """For each store, a set of twelve samples and two rejects, in shards of 5, 5 and 4 places."""
    folder = tmp_path_factory.mktemp("sets")
    files = numbered_pictures(12) | {"bad.jpg": b"<html>", "cut.jpg": encode(smooth(32, 32))[:-40]}
    pictures = write_pictures(folder / "pictures", files)
    with without_workers():
        for store, recipe in RECIPES.items():
            pack_folder(pictures, folder / store, recipe=recipe, per_shard=5, max_rejects=0.5)
    return folder


@pytest.fixture(params=list(RECIPES))
def store(request):
    return request.param


@pytest.fixture
def original(sets, tmp_path):
    return Path(shutil.copytree(sets / "original", tmp_path / "set"))


def faults(folder, *, decoding=False):
    """What a reader is told of a set: on opening it, or after reading all of it."""
    try:
        return verify(ShardSet.open(folder), decoding=decoding).faults
    except UserError as error:
        return [str(error)]
