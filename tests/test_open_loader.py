"""Which loader a machine gets, and why."""

import pytest
import torch

from pipeline.loading.cache import ResidentCache
from pipeline.loading.decoders import RawDecoder, ThreadDecoder
from pipeline.loading.loader import Loader
from pipeline.loading.open import open_loader
from pipeline.loading.options import LoaderOptions, default_workers
from pipeline.loading.synthetic import SyntheticLoader
from tests.needs import require, take, within


@pytest.fixture
def open_set():
    """`open_loader`; what it opens is closed when the test ends."""
    opened = []

    def open_(shards, dtype=torch.float32, cache="off", **options):
        asked = LoaderOptions(4, 32, seed=1, workers=2, dtype=dtype, cache=cache, **options)
        opened.append(open_loader(str(shards), asked))
        return opened[-1]

    yield open_
    for loader in opened:
        within(10, loader.close)


def test_dali_is_chosen_where_it_runs(open_set, numbered_set):
    require("dali")
    from pipeline.loading.dali import DaliDecoder

    shards = numbered_set(12, 5)
    loader = open_set(shards.folder)
    assert isinstance(loader, Loader)
    assert isinstance(loader.decoder, DaliDecoder)
    assert loader.description.startswith("DALI ")
    assert "2 threads" in loader.description
    other = Loader(shards, LoaderOptions(4, 32, seed=1))
    assert torch.equal(take(loader, 1)[0], take(other, 1)[0])
    within(10, other.close)


def test_raw_sets_need_no_dali(open_set, numbered_set, monkeypatch):
    folder = numbered_set(12, 5, "raw").folder  # packed, if it is not yet, before anything fails
    monkeypatch.setattr("importlib.import_module", lambda name: pytest.fail(f"loads {name}"))
    loader = open_set(folder)
    assert isinstance(loader, Loader)
    assert isinstance(loader.decoder, RawDecoder)
    assert loader.description.startswith("stored pixels, nothing to decode; ")
    assert take(loader, 1)[0].shape == (4, 3, 32, 32)


NO_DALI = {
    "not-installed": (
        "importlib.import_module",
        lambda name: (_ for _ in ()).throw(ModuleNotFoundError("No module named 'nvidia'")),
        "DALI is not installed",
    ),
    "no-wheels": ("sys.platform", "darwin", "DALI has no wheels for darwin"),
    "does-not-load": (
        "importlib.import_module",
        lambda name: (_ for _ in ()).throw(OSError("libdali.so: cannot open")),
        "DALI does not load (libdali.so: cannot open)",
    ),
}


@pytest.mark.parametrize(("target", "value", "reason"), NO_DALI.values(), ids=NO_DALI)
def test_threads_are_chosen_elsewhere_and_say_why(
    open_set, numbered_set, monkeypatch, target, value, reason
):
    folder = numbered_set(12, 5).folder
    with monkeypatch.context() as patch:
        patch.setattr(target, value)
        loader = open_set(folder)
    assert isinstance(loader, Loader)
    assert isinstance(loader.decoder, ThreadDecoder)
    said = f"libjpeg-turbo and torch, 2 threads, because {reason}; no cache, as asked"
    assert loader.description == said
    assert take(loader, 1)[0].shape == (4, 3, 32, 32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.uint8], ids=str)
def test_every_loader_answers_alike(open_set, numbered_set, dtype):
    folder = numbered_set(12, 5).folder
    opened = {
        Loader: open_set(folder, dtype),
        ResidentCache: open_set(folder, dtype, cache="host"),
        SyntheticLoader: open_set("synthetic", dtype),
    }
    for kind, loader in opened.items():
        assert type(loader) is kind
        assert loader.batch_size == 4
        assert loader.steps_per_epoch >= 3
        assert loader.description
        assert take(loader, 1)[0].dtype == loader.dtype == dtype
        assert (loader.epoch, loader.batch) == (0, 1)
    assert opened[Loader].description.endswith("; no cache, as asked")
    assert "; cached from the second epoch on: " in opened[ResidentCache].description


@pytest.mark.parametrize("shards", ["a set", "synthetic"])
def test_the_identity_that_checkpoints_hold_is_as_it_always_was(open_set, numbered_set, shards):
    own = [("--batch-size", 4), ("--image-size", 32), ("--channels", 1), ("--seed", 1)]
    own += [("rank", 2), ("ranks", 3)]
    expected = [("shard set", "synthetic"), *own]
    if shards != "synthetic":
        found = numbered_set(12, 5, "raw")
        shards, recipe = found.folder, found.manifest.recipe.describe()
        expected = [("shard set", found.fingerprint), ("recipe", recipe), *own]
        expected += [("decoder", "raw"), ("window", 32_768)]
    loader = open_set(shards, torch.uint8, channels=1, rank=2, num_ranks=3)
    assert list(loader.identity.items()) == expected


# Threads


@pytest.mark.parametrize(
    ("cores", "device", "workers"),
    [(1, "cpu", 1), (2, "cuda", 2), (64, "cpu", 8), (64, "cuda:1", 4)],
)
def test_default_workers_are_one_a_core_up_to_a_limit(monkeypatch, cores, device, workers):
    monkeypatch.setattr("pipeline.loading.options.usable_cores", lambda: cores)
    assert default_workers(torch.device(device)) == workers
