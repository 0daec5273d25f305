"""Resuming the data: a saved position gives the same batches in a new process, or is refused."""

import hashlib
import json
from dataclasses import replace
from functools import partial
from itertools import islice
from typing import Any

import pytest
import torch

from pipeline.errors import UserError
from pipeline.loading.cache import ResidentCache
from pipeline.loading.decoders import ThreadDecoder
from pipeline.loading.loader import Loader
from pipeline.loading.options import LoaderOptions
from pipeline.shards.manifest import Recipe
from pipeline.shards.shard_set import ShardSet
from tests.needs import require, take, within
from tests.pictures import numbered_pictures, pack_pictures
from tests.running import assert_four_parts

CPU = torch.device("cpu")
SIZE, BATCH, STEPS, FOLLOWING = 32, 4, 5, 5
POSITIONS = [(0, 2), (1, 0), (3, 4)]
"""Start, middle and end of epochs; what follows crosses a border."""


def open_batches(kind, folder, cached, *, workers=2, data_timeout=20.0, **options):
    """The batches of one kind."""
    shards = ShardSet.open(folder)
    chosen: dict[str, Any] = {"seed": 7, "dtype": torch.uint8} | options
    asked = LoaderOptions(BATCH, SIZE, workers=workers, data_timeout=data_timeout, **chosen)
    decoder = ThreadDecoder(shards, asked) if kind == "threads" else None
    if cached:
        return ResidentCache(shards, asked, CPU, decoder=decoder)
    return Loader(shards, asked, decoder)


def md5s(batches, count):
    return [hashlib.md5(batch.numpy().tobytes()).hexdigest() for batch in islice(batches, count)]


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    """The folder of each kind's set: 23 pictures in shards of 9, 9 and 5."""
    folder = tmp_path_factory.mktemp("sets")
    recipe = Recipe(store="raw", crop="centre", size=SIZE, filter="bilinear")
    for name in ("jpg", "raw"):
        (folder / name).mkdir()
    jpg = pack_pictures(folder / "jpg", numbered_pictures(23), per_shard=9)
    raw = pack_pictures(folder / "raw", numbered_pictures(23), per_shard=9, recipe=recipe)
    return {"dali": jpg.folder, "threads": jpg.folder, "raw": raw.folder}


@pytest.fixture
def opened():
    """What is put in here is closed when the test ends."""
    batches: list[Any] = []
    yield batches
    for each in batches:
        within(20, each.close)


@pytest.mark.parametrize("cached", [False, True], ids=["stream", "cache"])
@pytest.mark.parametrize("kind", ["dali", "threads", "raw"])
def test_a_loader_goes_on_from_the_state_of_another_with_the_same_batches(
    opened, sets, kind, cached
):
    if kind == "dali":
        require("dali")
    opened += [open_batches(kind, sets[kind], each) for each in (False, cached)]
    whole, first = within(60, partial(md5s, opened[0], 4 * STEPS + FOLLOWING)), opened[1]
    for epoch, batch in POSITIONS:
        taken = epoch * STEPS + batch
        take(first, taken - (first.epoch * STEPS + first.batch))
        state = json.loads(json.dumps(first.state_dict()))
        other = open_batches(kind, sets[kind], cached)
        opened.append(other)
        other.load_state_dict(state)
        found = within(60, partial(md5s, other, FOLLOWING))
        assert found == whole[taken : taken + FOLLOWING]
        assert len(set(found)) == FOLLOWING
        assert (other.epoch, other.batch) == divmod(taken + FOLLOWING, STEPS)
        assert first.state_dict() == state  # which the other one's batches do not change


# What may change, and what may not

ALLOWED = {
    "more-workers": {"workers": 3},
    "floats": {"dtype": torch.float32},
    "a-cache": {"cached": True},
}


@pytest.mark.parametrize("change", ALLOWED.values(), ids=ALLOWED)
def test_what_does_not_touch_the_pixels_may_change(opened, sets, change):
    opened.append(open_batches("threads", sets["threads"], cached="cached" not in change))
    take(opened[0], 7)
    state = json.loads(json.dumps(opened[0].state_dict()))
    expected = take(opened[0], FOLLOWING)
    options = {"cached": False} | change
    opened.append(open_batches("threads", sets["threads"], **options))
    opened[1].load_state_dict(state)
    found = take(opened[1], FOLLOWING)
    if "dtype" in change:
        found = [(b.permute(0, 2, 3, 1) * 127.5 + 127.5).round().to(torch.uint8) for b in found]
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def changed_loader(shards, cached=False, decoder="threads", **changes):
    options = replace(LoaderOptions(BATCH, SIZE, dtype=torch.uint8, workers=1), **changes)
    by = ThreadDecoder(shards, options)
    by.name = decoder
    if cached:
        return ResidentCache(shards, options, CPU, decoder=by)
    return Loader(shards, options, by)


REFUSED: dict[str, tuple[dict[str, Any], str, str]] = {
    # name of what differs: what is asked for, the value saved, the value now
    "--batch-size": ({"batch_size": 3}, "4", "3"),
    "--image-size": ({"image_size": (16, 24)}, "32", "16x24"),
    "--fit": ({"fit": "pad"}, "left out", "pad"),
    "--channels": ({"channels": 1}, "3", "1"),
    "--seed": ({"seed": 8}, "0", "8"),
    "rank": ({"rank": 1, "num_ranks": 2}, "0", "1"),
    "ranks": ({"num_ranks": 2}, "1", "2"),
    "decoder": ({"decoder": "dali-cpu"}, "threads", "dali-cpu"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_every_other_difference_is_refused_by_name(opened, sets, name):
    change, saved, now = REFUSED[name]
    shards = ShardSet.open(sets["threads"])
    cached = name == "--batch-size"
    opened += [changed_loader(shards, cached), changed_loader(shards, cached, **change)]
    assert_refused(opened, f"{name} {saved}", f"{name} {now}")


def test_another_set_and_another_recipe_are_refused(opened, sets, tmp_path):
    shards = ShardSet.open(sets["threads"])
    other = pack_pictures(tmp_path, numbered_pictures(23), per_shard=9, seed=1)
    opened += [changed_loader(shards), changed_loader(other)]
    assert shards.fingerprint != other.fingerprint
    prints = (f"shard set {each.fingerprint}" for each in (shards, other))
    assert_refused(opened, *prints)
    told = "recipe --store original --crop none"
    for loader in opened:
        loader.identity["shard set"] = "same"
    opened[1].identity["recipe"] = "--store original --crop 40"
    assert_refused(opened, told, "recipe --store original --crop 40")


def assert_refused(pair, saved, now):
    """The second of a pair of loaders takes no state of the first, and stays as it was."""
    first, second = pair
    state = json.loads(json.dumps(first.state_dict() | {"epoch": 3, "batch": 1}))
    with pytest.raises(UserError) as error:
        second.load_state_dict(state)
    assert_four_parts(error.value)
    assert saved in error.value.found.split(", ")
    assert now in error.value.wanted.split(", ")
    assert (second.epoch, second.batch) == (0, 0)
    del state["identity"]["--seed"]  # as does one that lacks a name
    with pytest.raises(UserError, match="--seed left out"):
        first.load_state_dict(state)
    state = first.state_dict() | {"epoch": 3, "batch": 1}
    first.load_state_dict(state)
    assert (first.epoch, first.batch) == (3, 1)
