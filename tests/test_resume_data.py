"""Resuming the data: a saved position gives the same batches in a new process, or is refused."""

import hashlib
import json
import subprocess
import sys
from dataclasses import replace
from itertools import islice
from typing import Any

import pytest
import torch

from pipeline.errors import UserError
from pipeline.loading.cache import ResidentCache
from pipeline.loading.decoders import ThreadDecoder
from pipeline.loading.loader import Loader
from pipeline.loading.options import LoaderOptions
from pipeline.shards.manifest import Recipe, ShardSet
from tests.needs import OBSTACLES, take, within
from tests.pictures import numbered_pictures, pack_pictures
from tests.running import ROOT, assert_four_parts, environment

CPU = torch.device("cpu")
SIZE, BATCH, STEPS, FOLLOWING = 32, 4, 5, 5
POSITIONS = [(0, 2), (1, 0), (3, 4)]
"""Start, middle and end of epochs; what follows crosses a border."""

KINDS = ["dali", "threads", "raw"]


def open_batches(kind, folder, cached, *, workers=2, data_timeout=20.0, **options):
    """The batches of one kind; this is what both processes run."""
    shards = ShardSet.open(folder)
    chosen: dict[str, Any] = {"seed": 7, "dtype": torch.uint8} | options
    asked = LoaderOptions(BATCH, SIZE, workers=workers, data_timeout=data_timeout, **chosen)
    loader = Loader(shards, asked, ThreadDecoder(shards, asked) if kind == "threads" else None)
    return ResidentCache(loader, CPU) if cached else loader


def md5s(batches, count=FOLLOWING):
    return [hashlib.md5(batch.numpy().tobytes()).hexdigest() for batch in islice(batches, count)]


ANSWER = """
import json, sys
from pathlib import Path
from tests.test_resume_data import md5s, open_batches
for line in sys.stdin:
    case = json.loads(line)
    batches = open_batches(case["kind"], Path(case["folder"]), case["cached"])
    batches.load_state_dict(case["state"])
    print(json.dumps({"next": md5s(batches), "state": batches.state_dict()}), flush=True)
    batches.close()
"""


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


@pytest.fixture(scope="module")
def other_process(sets):
    """What one other process makes of all saved states, which reach it as JSON."""
    kinds = [kind for kind in KINDS if kind != "dali" or OBSTACLES["dali"]() is None]
    cases: dict[Any, int] = {}
    lines: list[str] = []
    for kind in kinds:
        for cached in (False, True):
            batches = open_batches(kind, sets[kind], cached)
            for epoch, batch in POSITIONS:
                take(batches, epoch * STEPS + batch - (batches.epoch * STEPS + batches.batch))
                cases[kind, cached, (epoch, batch)] = len(lines)
                case = {"kind": kind, "folder": str(sets[kind]), "cached": cached}
                lines.append(json.dumps(case | {"state": batches.state_dict()}))
            batches.close()
    ended = subprocess.run(
        [sys.executable, "-W", "error", "-c", ANSWER],
        input="\n".join(lines),
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    answers = [json.loads(line) for line in ended.stdout.splitlines()]
    assert len(answers) == len(lines) == len(kinds) * 2 * len(POSITIONS)
    return {case: answers[number] for case, number in cases.items()}


@pytest.fixture(scope="module")
def uninterrupted(sets):
    """The digests of the first four epochs and more, straight from the stream."""

    def digests(kind):
        batches = open_batches(kind, sets[kind], cached=False)
        found = within(60, lambda: md5s(batches, 4 * STEPS + FOLLOWING))
        batches.close()
        return found

    return {kind: digests(kind) for kind in KINDS if kind != "dali" or not OBSTACLES["dali"]()}


@pytest.mark.parametrize("position", POSITIONS, ids=lambda p: f"epoch{p[0]}-batch{p[1]}")
@pytest.mark.parametrize("cached", [False, True], ids=["stream", "cache"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_new_process_goes_on_with_the_same_batches(
    other_process, uninterrupted, kind, cached, position
):
    if kind not in uninterrupted:
        pytest.skip(str(OBSTACLES["dali"]()))
    taken = position[0] * STEPS + position[1]
    answer = other_process[kind, cached, position]
    assert answer["next"] == uninterrupted[kind][taken : taken + FOLLOWING]
    assert len(set(answer["next"])) == FOLLOWING
    state = answer["state"]
    assert (state["epoch"], state["batch"]) == divmod(taken + FOLLOWING, STEPS)


# What may change, and what may not

ALLOWED = {
    "more-workers": {"workers": 3},
    "floats": {"dtype": torch.float32},
    "a-cache": {"cached": True},
}


@pytest.fixture
def opened():
    """What is put in here is closed when the test ends."""
    batches: list[Any] = []
    yield batches
    for each in batches:
        within(20, each.close)


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


def changed_loader(shards, decoder="threads", **changes):
    options = replace(LoaderOptions(BATCH, SIZE, dtype=torch.uint8, workers=1), **changes)
    by = ThreadDecoder(shards, options)
    by.name = decoder
    return Loader(shards, options, by)


REFUSED: dict[str, tuple[dict[str, Any], str, str]] = {
    # name of what differs: what is asked for, the value saved, the value now
    "--batch-size": ({"batch_size": 3}, "4", "3"),
    "--image-size": ({"image_size": 16}, "32", "16"),
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
    opened += [changed_loader(shards), changed_loader(shards, **change)]
    assert_refused(opened, name == "--batch-size", f"{name} {saved}", f"{name} {now}")


def test_another_set_and_another_recipe_are_refused(opened, sets, tmp_path):
    shards = ShardSet.open(sets["threads"])
    other = pack_pictures(tmp_path, numbered_pictures(23), per_shard=9, seed=1)
    opened += [changed_loader(shards), changed_loader(other)]
    assert shards.fingerprint != other.fingerprint
    prints = (f"shard set {each.fingerprint}" for each in (shards, other))
    assert_refused(opened, False, *prints)
    told = "recipe --store original --crop none"
    for loader in opened:
        loader.identity["shard set"] = "same"
    opened[1].identity["recipe"] = "--store original --crop 40"
    assert_refused(opened, False, told, "recipe --store original --crop 40")


def assert_refused(pair, cached, saved, now):
    """The second of a pair of loaders takes no state of the first, and stays as it was."""
    first, second = (ResidentCache(each, CPU) if cached else each for each in pair)
    state = json.loads(json.dumps(first.state_dict() | {"epoch": 3, "batch": 1}))
    with pytest.raises(UserError) as error:
        second.load_state_dict(state)
    assert_four_parts(error.value)
    assert saved in error.value.found.split(", ")
    assert now in error.value.wanted.split(", ")
    assert (second.epoch, second.batch) == (0, 0)
    del state["identity"]["seed"]  # as does one that lacks a name
    with pytest.raises(UserError, match="seed None"):
        first.load_state_dict(state)
    state = first.state_dict() | {"epoch": 3, "batch": 1}
    first.load_state_dict(state)
    assert (first.epoch, first.batch) == (3, 1)
    if cached:
        first.close()
        second.close()
