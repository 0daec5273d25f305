"""Several sources as one: what tells their images apart, and what they may not be."""

import pickle
import shutil

import numpy as np
import pytest

from pipeline.errors import UserError
from pipeline.packing.sources.open import open_sources
from pipeline.shards.shard_set import ShardSet
from tests.archives import tar_of, zip_of
from tests.data_sets import write_cifar10, write_mnist
from tests.packing_runs import four_parts, in_process, run_here, tree
from tests.pictures import encode, rows_of, smooth, write_pictures
from tools.make_shards import main

__all__ = ["in_process"]  # a fixture

pytestmark = pytest.mark.usefixtures("in_process")

PICTURES = {f"{number}.jpg": encode(smooth(20, 24, number)) for number in range(4)}


@pytest.fixture
def cats_and_dogs(tmp_path):
    write_pictures(tmp_path / "cats", PICTURES)
    (tmp_path / "dogs.zip").write_bytes(zip_of(PICTURES))
    return tmp_path


def test_their_set_is_that_of_a_folder_that_holds_them(cats_and_dogs):
    shutil.copytree(cats_and_dogs / "cats", cats_and_dogs / "both" / "cats")
    shutil.copytree(cats_and_dogs / "cats", cats_and_dogs / "both" / "dogs")
    status, out, _ = run_here(main, "dogs.zip", "cats", "--out", "several", cwd=cats_and_dogs)
    assert (status, out.splitlines()[:2]) == (
        0,
        ["source  dogs.zip: 4 images", "source  cats: 4 images"],
    )
    run_here(main, "both", "--out", "one", cwd=cats_and_dogs)
    assert len(tree(cats_and_dogs / "one")) == 4
    assert tree(cats_and_dogs / "several") == tree(cats_and_dogs / "one")


def test_pixels_of_several_sizes_stay_pixels_and_none_is_enlarged(tmp_path, monkeypatch):
    write_mnist(tmp_path / "data", monkeypatch)
    write_cifar10(tmp_path / "data", monkeypatch)
    status, *_ = run_here(main, "torchvision:MNIST", "torchvision:CIFAR10", cwd=tmp_path)
    recipe = ShardSet.open(tmp_path / "shards").manifest.recipe
    assert (status, recipe.store, recipe.size) == (0, "raw", 28)


def test_workers_get_no_listing(cats_and_dogs):
    source = open_sources(
        [str(cats_and_dogs / name) for name in ("cats", "dogs.zip")], cats_and_dogs
    )
    worker = pickle.dumps(source)
    assert len(worker) < 2000
    read = pickle.loads(worker).read
    assert [read(member) for member in source.members()] == [*PICTURES.values()] * 2


def test_one_name_is_refused_and_both_are_named(cats_and_dogs):
    write_pictures(cats_and_dogs / "other" / "cats", PICTURES)
    status, _, err = run_here(main, "cats", "other/cats", cwd=cats_and_dogs)
    where, found, _, remedy = four_parts(err)
    assert (status, where) == (1, "SOURCE other/cats")
    assert found == "the name cats, which cats has too"
    assert "the folder that holds both" in remedy
    assert not (cats_and_dogs / "shards").exists()


def test_choices_are_made_of_all_and_lists_are_each_ones_own(cats_and_dogs):
    write_pictures(cats_and_dogs / "dogs", PICTURES)
    for kind, rows in {"cats": "0011", "dogs": "0100"}.items():
        lines = "".join(f"{number}.jpg {split}\n" for number, split in enumerate(rows))
        (cats_and_dogs / kind / "list_eval_partition.txt").write_text(lines)
    run_here(main, "dogs", "cats", "--split", "train", "--limit", 4, cwd=cats_and_dogs)
    names = [row[2] for row in sorted(rows_of(cats_and_dogs / "shards" / "samples.csv")[1:])]
    assert names == ["cats/0.jpg", "cats/1.jpg", "dogs/0.jpg", "dogs/2.jpg"]
    run_here(main, "dogs", "cats", "--classes", "dogs", "--out", "dogs-only", cwd=cats_and_dogs)
    folders = {row[2][:5] for row in rows_of(cats_and_dogs / "dogs-only" / "samples.csv")[1:]}
    assert folders == {"dogs/"}


def test_an_unfinished_set_is_resumed_from_the_same_sources_only(cats_and_dogs):
    bad = PICTURES | {"0.jpg": PICTURES["0.jpg"][:-20]}
    for place in ("here", "there"):
        write_pictures(cats_and_dogs / place / "bad", bad)
    assert run_here(main, "here/bad", "cats", cwd=cats_and_dogs)[0] == 1  # too many rejects
    status, _, err = run_here(main, "there/bad", "cats", "--max-rejects", 1, cwd=cats_and_dogs)
    assert (status, "other options: source" in four_parts(err)[1]) == (1, True)
    assert run_here(main, "here/bad", "cats", "--max-rejects", 1, cwd=cats_and_dogs)[0] == 0


def test_classes_of_one_name_are_the_same_in_each(tmp_path):
    for name, classes in {"a": (3, 10), "b": (10, 5)}.items():
        files = {f"{n}.jpg": PICTURES["0.jpg"] for n in range(2)}
        files |= {f"{n}.cls": b"%d" % number for n, number in enumerate(classes)}
        (tmp_path / f"{name}.tar").write_bytes(tar_of(files))
    source = open_sources([f"{tmp_path}/{name}.tar" for name in "ab"], tmp_path)
    table = source.labels(source.members())
    assert table is not None
    kind, names, values = table
    assert (kind, names, values.tolist()) == ("classes", ("3", "5", "10"), [0, 2, 2, 1])
    assert values.dtype == np.int32


def test_labels_of_some_are_refused(tmp_path):
    picture = PICTURES["0.jpg"]
    (tmp_path / "a.tar").write_bytes(tar_of({"0.jpg": picture, "0.cls": b"0"}))
    others = {"b": {"0.jpg": picture}, "c": {"0.jpg": picture, "0.json": b'{"x": 1}'}}
    for name, files in others.items():
        (tmp_path / f"{name}.tar").write_bytes(tar_of(files))
        source = open_sources([f"{tmp_path}/{name}.tar", f"{tmp_path}/a.tar"], tmp_path)
        with pytest.raises(UserError, match="--labels none"):
            source.labels(source.members())
