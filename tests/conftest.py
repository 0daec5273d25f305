"""Fixtures for everyone, and the rule that a skip always gives its reason."""

import functools
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import settings

import dcgan.exporting  # noqa: F401  # which silences onnxruntime, before a test imports that
from pipeline.loading.batches import Batches
from pipeline.loading.options import LoaderOptions
from pipeline.shards.manifest import Recipe
from pipeline.shards.shard_set import ShardSet
from tests.fuzzing import cases
from tests.loaders import KINDS, open_kind
from tests.needs import demanded, require, within
from tests.pictures import numbered_pictures, pack_pictures
from tests.running import CountedBatches, keep_curves


def pytest_configure() -> None:
    torch.set_num_threads(1)
    # A busy machine is no fault of an example's
    settings.register_profile("patient", deadline=None)
    settings.register_profile("fuzz", deadline=None, max_examples=1000)
    settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "patient"))
    # Commands that the tests start run this checkout's code, whichever one is installed
    os.environ["PYTHONPATH"] = str(Path(__file__).parents[1])
    demanded()  # a misspelt REQUIRE ends the run here, before anything passes


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if os.environ.get("HYPOTHESIS_PROFILE") == "fuzz":
        for name, count in sorted(cases.items()):
            terminalreporter.write_line(f"{count:7,}  {name}")
        terminalreporter.write_line(f"{cases.total():7,}  hostile inputs in all")


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu"):
        require("gpu")


@pytest.fixture(autouse=True)
def as_it_was() -> Iterator[None]:
    """One thread for each test, and Ctrl-C for pytest, whatever a command did in this process."""
    before = signal.getsignal(signal.SIGINT)
    torch.set_num_threads(1)  # several wait for each other wherever the machine is busy
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="session")
def numbered_set(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., ShardSet]:
    """A set of `count` numbered pictures, `per_shard` a shard: packed once, not to be altered."""

    @functools.cache
    def make(count: int, per_shard: int, store: str = "original") -> ShardSet:
        folder = tmp_path_factory.mktemp("numbered")
        recipe = Recipe(store="raw", crop="centre", size=64, filter="bilinear")
        options = {"recipe": recipe} if store == "raw" else {}
        return pack_pictures(folder, numbered_pictures(count), None, per_shard=per_shard, **options)

    return make


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    """Each way to take batches that this machine has."""
    name: str = request.param
    if name.startswith("dali"):
        require("dali")
    return name


@pytest.fixture
def open_batches(kind: str) -> Iterator[Callable[..., Batches]]:
    """`open_kind` for this kind; what it opens is closed when the test ends."""
    opened: list[Batches] = []

    def open_(*arguments: Any, **options: Any) -> Batches:
        opened.append(open_kind(kind, *arguments, **options))
        return opened[-1]

    yield open_
    for batches in opened:
        within(10, batches.close)


@pytest.fixture
def make_set(kind: str, numbered_set: Callable[..., ShardSet]) -> Callable[[int, int], ShardSet]:
    """`numbered_set` in the store that this kind is for."""
    store = "raw" if kind.startswith("raw") else "original"
    return lambda count, per_shard: numbered_set(count, per_shard, store)


@pytest.fixture
def spare_set(numbered_set: Callable[..., ShardSet], tmp_path: Path) -> ShardSet:
    """A set of 12 pictures in shards of 5, 5 and 2, to be altered at will."""
    folder = tmp_path / "spare"
    shutil.copytree(numbered_set(12, 5).folder, folder)
    return ShardSet.open(folder)


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """`losses.png` of runs in this process holds the numbers and is no picture."""
    monkeypatch.setattr("dcgan.training.records.save_losses", keep_curves)


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> CountedBatches:
    """Trainers made from here on take these batches."""
    batches = CountedBatches()

    def open_loader(shards: str, options: LoaderOptions, *_: object) -> CountedBatches:
        batches.device = options.device
        return batches

    monkeypatch.setattr("dcgan.training.build.open_loader", open_loader)
    return batches
