"""Sets in parts: in any order, cut off anywhere, the bytes of one machine; who is refused."""

import os
import shlex
import shutil
import threading
from itertools import count
from pathlib import Path

import pytest

from pipeline.errors import UserError
from pipeline.packing import plan
from pipeline.packing.outdir import held, held_part, kept_plan
from pipeline.packing.parts import Part
from pipeline.packing.upload import PartUpload
from pipeline.remote.store import Store
from pipeline.shards.manifest import PROGRESS
from tests.packing_runs import four_parts, in_process, run_here, state, tree
from tests.pictures import names_in, numbered_pictures, write_pictures
from tools.make_shards import main

__all__ = ["in_process"]  # a fixture

pytestmark = pytest.mark.usefixtures("in_process")

OPTIONS = ["--per-shard", 6, "--max-rejects", 0.5, "--labels", "folders"]
PARTS = ["0/3", "1/3", "2/3"]


@pytest.fixture(autouse=True)
def _few_seconds(monkeypatch):
    monkeypatch.setattr("pipeline.packing.outdir.MOMENT", 0.1)


@pytest.fixture
def pictures(tmp_path):
    """Fourteen pictures of two classes, one of them twice, and two files that are none."""
    numbered = numbered_pictures(13).items()
    files = {f"{'ab'[n % 2]}/{name}": data for n, (name, data) in enumerate(numbered)}
    again = {"b/again.jpg": files["a/000.jpg"], "a/bad.jpg": b"<html>", "b/worse.jpg": b""}
    return write_pictures(tmp_path / "pictures", files | again)


@pytest.fixture
def whole(pictures, tmp_path):
    """The set that one machine packs, and what it prints of it."""
    status, out, _ = run_here(main, pictures, "--out", tmp_path / "whole", *OPTIONS)
    assert status == 0
    return tree(tmp_path / "whole"), out


class Place:
    """A folder, or a folder that is a store, which each part comes to from a cache of its own."""

    def __init__(self, pictures, folder, in_store):
        self.pictures, self.folder, self.in_store = pictures, folder, in_store
        self.caches = folder.parent / "caches"

    def make(self, *words, machine="one"):
        where = [f"file://{self.folder}", "--shard-cache", self.caches / str(machine)]
        out = where if self.in_store else [self.folder]
        before = {*threading.enumerate()}
        ended = run_here(main, self.pictures, "--out", *out, *OPTIONS, *words)
        for thread in {*threading.enumerate()} - before:
            thread.join(10)  # what was on its way when it was cut off
        return ended

    def part(self, part, *words, machine=None):
        status, out, err = self.make("--part", part, *words, machine=machine or part[0])
        assert (status, err) == (0, "")
        return out

    def refused(self, *words, **machine):
        before = tree(self.folder)
        status, _, err = self.make(*words, **machine)
        assert status == 1
        assert tree(self.folder) == before
        return four_parts(err), err


@pytest.fixture(params=["folder", "store"])
def place(request, pictures, tmp_path):
    return Place(pictures, tmp_path / "set", request.param == "store")


def test_parts_in_any_order_make_the_set_of_one_machine(place, whole):
    told = place.part("2/3").splitlines()
    assert told[-2].startswith("part    2/3 in ")
    assert told[-1].endswith(" --finish")
    assert "2/3" not in told[-1]
    place.part("0/3")
    again = place.part("0/3", machine="another")
    assert "1 of 3 shards, all there already" in again
    (_, found, _, _), err = place.refused("--finish")
    assert found == "1 of 3 parts with shards that are not there: 1"
    (command,) = [line.strip() for line in err.splitlines() if line.startswith(" " * 10)]
    assert shlex.split(command)[-2:] == ["--part", "1/3"]
    assert "--finish" not in command
    place.part("1/3")
    status, out, err = place.make("--finish", machine="another")
    assert (status, err) == (0, "")
    assert tree(place.folder) == whole[0]
    told = [line for line in whole[1].splitlines() if line.startswith(("packed", "copies"))]
    assert told == [line for line in out.splitlines() if line.startswith(("packed", "copies"))]
    assert len(told) == 2
    (_, found, _, _), _ = place.refused("--finish")
    assert found == "a complete shard set"
    (_, found, _, _), _ = place.refused("--part", "1/3")
    assert found == "a complete shard set"
    if place.in_store:
        assert not [*place.caches.rglob("*.tar")]
        assert PROGRESS not in names_in(place.folder)


def fail_at(patch, number):
    """Have this one of the changes to come, of files and of objects, not happen any more."""
    left = [number]

    def failing(change):
        def counted(*words, **options):
            left[0] -= 1
            if left[0] == 0:
                raise UserError("the store", "cut off", "an answer", "begin again")
            return change(*words, **options)

        return counted

    patch.setattr(Path, "replace", failing(Path.replace))
    patch.setattr(Path, "unlink", failing(Path.unlink))
    patch.setattr(os, "link", failing(os.link))
    patch.setattr(Store, "upload", failing(Store.upload))
    patch.setattr(Store, "delete", failing(Store.delete))
    return left


def test_cut_off_at_any_change_a_part_and_the_finish_go_on(place, whole, monkeypatch):
    for words in (["--part", "1/2"], ["--part", "0/2"], ["--finish"]):
        for number in count(1):
            with monkeypatch.context() as patch:
                left = fail_at(patch, number)
                status, _, err = place.make(*words, machine=number % 2)
            complete = words == ["--finish"] and state(place.folder) == "complete"
            if complete:
                found = {n: data for n, data in tree(place.folder).items() if n in whole[0]}
                assert found == whole[0]
            if left[0] > 0:
                break
            assert status == 0 or "cut off" in err or complete
        assert number > 3
    if status:
        assert "a complete shard set" in err
    assert tree(place.folder) == whole[0]


def test_a_shard_that_was_damaged_since_is_packed_again(place, whole):
    for part in PARTS:
        place.part(part)
    (place.folder / "shard-000001.tar").write_bytes(b"cut")
    (place.folder / "shard-000002.idx").unlink()
    (_, found, _, _), _ = place.refused("--finish")
    assert found == "2 of 3 parts with shards that are not there: 1, 2"
    for part in PARTS:
        place.part(part, machine="another")
    assert place.make("--finish")[0] == 0
    assert tree(place.folder) == whole[0]


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--seed", 1], "seed 0"),
        (["--store", "raw"], "store original"),
        (["--labels", "none"], "labels "),
        (["--limit", 12], "images 16"),
    ],
    ids=str,
)
def test_parts_of_another_plan_are_refused_and_told_what_differs(place, words, named):
    place.part("0/3")
    (where, found, _, _), _ = place.refused("--part", "1/3", *words, machine="another")
    assert where.startswith("--out ")
    assert found.startswith("an unfinished set with other options: ")
    assert named in found
    (_, found, _, _), _ = place.refused("--finish", *words, machine="another")
    assert named in found
    (_, found, wanted, _), _ = place.refused("--part", "1/4", machine="another")
    assert (found.rpartition(": ")[2], wanted) == ("parts 3", "parts 4")


def test_another_version_of_a_decoder_is_another_plan(place, monkeypatch):
    place.part("0/3")
    monkeypatch.setattr(plan, "version", lambda name: "0.1+cpu")
    (_, found, wanted, _), _ = place.refused("--part", "1/3", machine="another")
    assert "packages pillow" in found
    assert wanted == "packages pillow 0.1, simplejpeg 0.1, torch 0.1"


def test_a_set_in_parts_and_one_of_one_machine_are_not_mixed(place, whole, monkeypatch):
    place.part("0/3")
    (_, found, _, _), _ = place.refused(machine="another")
    assert "parts 3" in found or "packed elsewhere" in found
    shutil.rmtree(place.folder)
    with monkeypatch.context() as patch:
        fail_at(patch, 20)
        assert place.make()[0] == 1
    (_, found, _, _), _ = place.refused("--part", "0/3", machine="another")
    assert "parts None" in found or "one machine packs" in found
    (_, found, _, _), _ = place.refused("--finish", machine="another")
    assert found == "no set that is packed in parts"
    assert place.make()[0] == 0
    assert tree(place.folder) == whole[0]


def test_more_rejects_than_all_parts_may_have_end_the_finish(place):
    for part in PARTS:
        place.part(part)
    (where, found, _, _), err = place.refused("--finish", "--max-rejects", 0.1, machine="another")
    assert where == "--max-rejects 0.1"
    assert found.startswith("2 of 16 images are rejected already")
    assert "a/bad.jpg: " in err
    assert "b/worse.jpg: " in err
    assert place.make("--finish")[0] == 0


def test_of_two_at_the_same_part_one_is_told(pictures, tmp_path):
    place = Place(pictures, tmp_path / "set", in_store=False)
    place.part("0/3")
    plan = kept_plan(place.folder)
    assert plan is not None
    with held_part(place.folder, plan, 1):
        told = [place.refused("--part", "1/3"), place.refused("--finish"), place.refused()]
        assert {error[1] for error, _ in told} == {
            "part-1-of-3, which another process is packing into it"
        }
        place.part("2/3")  # others pack at the same time
        place.part("0/3")
    with held(place.folder):
        (_, found, _, _), _ = place.refused("--part", "1/3")
        assert found == "a folder that another process is packing into"
    place.part("1/3")
    assert place.make("--finish")[0] == 0


def test_two_who_finish_at_once_find_the_same_set(pictures, tmp_path, whole, monkeypatch):
    place = Place(pictures, tmp_path / "set", in_store=True)
    done: list[tuple[int, str, str]] = []
    for part in PARTS:
        place.part(part)
    rows = PartUpload.fetch_rows

    def after_the_other(upload, records):
        monkeypatch.setattr(PartUpload, "fetch_rows", rows)
        done.append(place.make("--finish", machine="another"))
        rows(upload, records)

    monkeypatch.setattr(PartUpload, "fetch_rows", after_the_other)
    status, _, err = place.make("--finish")
    assert done[0][0] == 0
    assert (status, "a complete shard set" in err) == (1, True)
    assert tree(place.folder) == whole[0]


def test_a_part_that_ends_after_the_finish_leaves_nothing(pictures, tmp_path, whole, monkeypatch):
    place = Place(pictures, tmp_path / "set", in_store=True)
    wait = PartUpload.wait

    def while_others_finish(upload):
        monkeypatch.setattr(PartUpload, "wait", wait)
        for part in PARTS:
            place.part(part, machine=f"another {part[0]}")
        assert place.make("--finish", machine="another")[0] == 0
        progress = place.folder / upload._progress_there
        progress.mkdir(parents=True)
        (progress / "shard-000000.json").write_text("late")
        wait(upload)

    monkeypatch.setattr(PartUpload, "wait", while_others_finish)
    place.part("0/3")
    assert tree(place.folder) == whole[0]


@pytest.mark.parametrize("text", ["3/3", "-1/3", "٠/٣", "1", "0/0", "a/b", "0/3/3"])
def test_what_is_no_part_is_refused(text):
    with pytest.raises(UserError, match="--part"):
        Part.parse(text)
