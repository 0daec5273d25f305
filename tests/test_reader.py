"""The reader: stored bytes in any order; for each kind of damage an error that names the file."""

import json
import os
import shutil
from io import FileIO
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.errors import UserError
from pipeline.files import digest
from pipeline.images.decode import RejectedError
from pipeline.loading import reader
from pipeline.loading.reader import Reader
from pipeline.shards.manifest import MANIFEST, Recipe
from pipeline.shards.shard_set import ShardSet
from tests.needs import within
from tests.pictures import numbered_pictures, pack_pictures, stored
from tests.running import assert_four_parts

ROWS = 12
"""In shards of 5, 5 and 2."""


def all_bytes(shards):
    """Each sample by its row, as `tarfile` reads it."""
    return [data for _, data in chain.from_iterable(stored(shards))]


def read(shards, rows):
    def run():
        opened = Reader(shards)
        try:
            return [sample.tobytes() for sample in opened.read(np.array(rows, dtype=np.int64))]
        finally:
            opened.close()

    return within(30, run)


def rewrite_index(shards, number, change):
    """Alter the text of an index and record its new digest, as a hostile packer would."""
    index = shards.indexes[number]
    index.write_text(change(index.read_text()))
    path = shards.folder / MANIFEST
    manifest = json.loads(path.read_text())
    manifest["shards"][number]["index_sha256"] = digest(index.read_bytes())
    path.write_text(json.dumps(manifest))
    return ShardSet.open(shards.folder)


def replace_field(line, field, value):
    """A change of one number in one line of an index: field 1 is the offset, 2 the size."""

    def change(text):
        lines = text.splitlines()
        words = lines[line].split(" ")
        words[field] = str(value)
        lines[line] = " ".join(words)
        return "\n".join(lines) + "\n"

    return change


@pytest.fixture(scope="module")
def raw_set(tmp_path_factory):
    recipe = Recipe(store="raw", crop="centre", size=16, filter="bilinear")
    pictures = numbered_pictures(ROWS)
    return pack_pictures(tmp_path_factory.mktemp("raw"), pictures, recipe=recipe, per_shard=5)


@pytest.fixture
def open_files(monkeypatch):
    """How many tars are open, and the most that ever were."""
    counts = {"now": 0, "most": 0, "opened": 0}

    class Counted(FileIO):
        def __init__(self, path):
            super().__init__(path)
            counts["now"] += 1
            counts["opened"] += 1
            counts["most"] = max(counts["most"], counts["now"])

        def close(self):
            counts["now"] -= not self.closed
            super().close()

    monkeypatch.setattr(reader, "FileIO", Counted)
    return counts


# What is read


@pytest.mark.parametrize("kind", ["original", "raw"])
def test_rows_are_the_stored_bytes_in_the_tars_order(numbered_set, raw_set, kind):
    shards = raw_set if kind == "raw" else numbered_set(ROWS, 5)
    expected = all_bytes(shards)
    assert len(set(expected)) == ROWS
    assert read(shards, range(ROWS)) == expected


@given(rows=st.lists(st.integers(0, ROWS - 1), min_size=1, max_size=30))
@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_rows_come_in_the_order_asked_for_repeats_too(numbered_set, rows):
    shards = numbered_set(ROWS, 5)
    expected = all_bytes(shards)
    assert read(shards, rows) == [expected[row] for row in rows]


def test_a_row_is_named_by_its_tar_and_key(numbered_set):
    shards = numbered_set(ROWS, 5)
    opened = Reader(shards)
    expected = [
        (str(tar), name.partition(".")[0])
        for tar, members in zip(shards.tars, stored(shards), strict=True)
        for name, _ in members
    ]
    assert len(expected) == ROWS
    errors = [opened.undecodable(row, RejectedError("why")) for row in range(ROWS)]
    assert [(error.where, error.found.split()[1]) for error in errors] == expected
    opened.close()


# Open files


@pytest.mark.parametrize("limit", [1, 3])
def test_no_more_tars_are_open_than_allowed(numbered_set, monkeypatch, open_files, limit):
    monkeypatch.setattr(reader, "MAX_OPEN", limit)
    shards = numbered_set(ROWS, 2)  # six of them
    rows = np.random.default_rng(0).integers(0, ROWS, 200)
    expected = all_bytes(shards)
    assert read(shards, rows) == [expected[row] for row in rows]
    assert open_files["opened"] > 6
    assert limit <= open_files["most"] <= limit + 1  # the new one is opened before the old closes
    assert open_files["now"] == 0


def test_a_tar_stays_open_while_it_is_in_use(numbered_set, monkeypatch, open_files):
    monkeypatch.setattr(reader, "MAX_OPEN", 2)
    read(numbered_set(ROWS, 5), [0, 5, 0, 10, 0, 5, 0, 10, 0])  # the one used last stays
    assert open_files["opened"] == 1 + 4


def test_no_tar_is_opened_before_it_is_read_and_close_may_come_twice(numbered_set, open_files):
    opened = Reader(numbered_set(ROWS, 5))
    assert open_files["opened"] == 0
    opened.read(np.array([0, 11]))
    assert open_files["now"] == 2
    opened.close()
    opened.close()
    assert open_files["now"] == 0


# Damage


@pytest.mark.parametrize("size", [0, 700])
def test_a_tar_cut_after_opening_is_an_error(spare_set, size):
    tar = spare_set.tars[1]
    opened = Reader(spare_set)
    opened.read(np.array([5]))
    os.truncate(tar, size)  # under the open file, too
    with pytest.raises(UserError) as error:
        within(30, lambda: opened.read(np.array([0, 9])))
    assert_four_parts(error.value, str(tar), "a file that ends before byte")
    assert opened.tar == str(tar)
    assert len(opened.read(np.array([0, 4, 10, 11]))) == 4  # the others are as they were
    opened.close()


def vanish(tar):
    tar.unlink()


def become_a_folder(tar):
    tar.unlink()
    tar.mkdir()


@pytest.mark.parametrize("damage", [vanish, become_a_folder])
def test_a_tar_that_is_gone_when_it_is_opened_again_is_an_error(spare_set, monkeypatch, damage):
    monkeypatch.setattr(reader, "MAX_OPEN", 1)
    opened = Reader(spare_set)
    opened.read(np.array([5, 0]))  # the second one pushes the first out
    damage(spare_set.tars[1])
    with pytest.raises(UserError) as error:
        within(30, lambda: opened.read(np.array([6])))
    assert_four_parts(error.value, "unreadable (")
    assert error.value.where == str(spare_set.tars[1])
    opened.close()


def test_a_file_that_may_not_be_read_is_an_error(spare_set, monkeypatch):
    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(reader, "FileIO", refuse)  # the modes of files do not bind root
    with pytest.raises(UserError) as error:
        read(spare_set, [11])
    assert_four_parts(error.value, str(spare_set.tars[2]), "unreadable (Permission denied)")


HUGE = 2**63 - 1

POINTERS = {
    "offset-past-the-end": (1, 10**7),
    "size-past-the-end": (2, 10**7),
    "offset-negative": (1, -512),
    "size-negative": (2, -1),
    "offset-that-overflows": (1, HUGE),
    "size-that-overflows": (2, HUGE),
}


@pytest.mark.parametrize(("field", "value"), POINTERS.values(), ids=POINTERS)
def test_an_index_that_points_outside_of_its_tar_is_refused(spare_set, field, value):
    shards = rewrite_index(spare_set, 1, replace_field(2, field, value))
    with pytest.raises(UserError) as error:
        Reader(shards)
    assert_four_parts(error.value, str(shards.indexes[1]), "samples outside of the tar")


OTHER_INDEXES = {
    "fewer": (lambda text: text.replace("v1.2 5", "v1.2 4").rpartition("jpg ")[0], "4 samples"),
    "more": (lambda text: text.replace("v1.2 5", "v1.2 6") + text.splitlines()[1] + "\n", "6 sam"),
    "other-names": (lambda text: text.replace(".jpg", ".png"), "lines that"),
    "empty": (lambda text: "", "no samples"),
}


@pytest.mark.parametrize(("change", "said"), OTHER_INDEXES.values(), ids=OTHER_INDEXES)
def test_an_index_that_is_not_this_tars_is_refused(spare_set, change, said):
    shards = rewrite_index(spare_set, 0, change)
    with pytest.raises(UserError) as error:
        Reader(shards)
    assert_four_parts(error.value, str(shards.indexes[0]), said)


def test_raw_samples_of_another_size_are_refused(raw_set, tmp_path):
    folder = Path(shutil.copytree(raw_set.folder, tmp_path / "set"))
    shards = rewrite_index(ShardSet.open(folder), 2, replace_field(1, 2, 16 * 16 * 3 - 1))
    with pytest.raises(UserError) as error:
        Reader(shards)
    assert_four_parts(error.value, str(shards.indexes[2]), "16×16")
