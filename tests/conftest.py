"""Fixtures for everyone, and the rule that a skip always gives its reason."""

import functools
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import settings

from pipeline.manifest import ShardSet
from tests.needs import demanded, require
from tests.pictures import numbered_pictures, pack_pictures
from tests.running import CountedBatches


def pytest_configure() -> None:
    # A busy machine is no fault of an example's
    settings.register_profile("patient", deadline=None)
    settings.load_profile("patient")
    # Commands that the tests start run this checkout's code, whichever one is installed
    os.environ["PYTHONPATH"] = str(Path(__file__).parents[1])
    demanded()  # a misspelt REQUIRE ends the run here, before anything passes


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu"):
        require("gpu")


@pytest.fixture(scope="session")
def numbered_set(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int, int], ShardSet]:
    """A set of `count` numbered pictures, `per_shard` a shard: packed once, not to be altered."""

    @functools.cache
    def make(count: int, per_shard: int) -> ShardSet:
        folder = tmp_path_factory.mktemp("numbered")
        return pack_pictures(folder, numbered_pictures(count), per_shard=per_shard)

    return make


@pytest.fixture
def spare_set(numbered_set: Callable[[int, int], ShardSet], tmp_path: Path) -> ShardSet:
    """A set of 12 pictures in shards of 5, 5 and 2, to be altered at will."""
    folder = tmp_path / "spare"
    shutil.copytree(numbered_set(12, 5).folder, folder)
    return ShardSet.open(folder)


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> CountedBatches:
    """Trainers made from here on take these batches."""
    batches = CountedBatches()
    monkeypatch.setattr("dcgan.trainer.open_loader", lambda *options: batches)
    return batches
