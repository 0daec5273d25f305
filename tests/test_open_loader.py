"""Which loader a machine gets, and why."""

import pytest
import torch

from pipeline.batches import default_workers
from pipeline.errors import UserError
from pipeline.fallback import FallbackLoader
from pipeline.loader import Loader, open_loader
from pipeline.synthetic import SyntheticLoader
from tests.needs import require, take


def open_set(shards, dtype=torch.float32, batch_size=4):
    return open_loader(
        str(shards), batch_size, 32, 3, torch.device("cpu"), seed=1, workers=2, dtype=dtype
    )


def test_dali_is_chosen_where_it_runs(numbered_set):
    require("dali")
    shards = numbered_set(12, 5)
    loader = open_set(shards.folder)
    assert isinstance(loader, Loader)
    assert loader.description.startswith("DALI ")
    assert "2 threads" in loader.description
    assert torch.equal(take(loader, 1)[0], take(Loader(shards, 4, 32, seed=1), 1)[0])
    loader.close()


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
def test_the_fallback_is_chosen_elsewhere_and_says_why(
    numbered_set, monkeypatch, target, value, reason
):
    folder = numbered_set(12, 5).folder
    with monkeypatch.context() as patch:
        patch.setattr(target, value)
        loader = open_set(folder)
    assert isinstance(loader, FallbackLoader)
    assert loader.description == f"webdataset + torchvision, 2 threads, because {reason}"
    assert take(loader, 1)[0].shape == (4, 3, 32, 32)
    loader.close()


def test_synthetic_needs_no_set():
    loader = open_set("synthetic", torch.uint8)
    assert isinstance(loader, SyntheticLoader)
    assert next(iter(loader)).shape == (4, 32, 32, 3)


def test_a_missing_set_is_a_plain_error(tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        open_set(tmp_path / "nope")


def test_every_loader_answers_alike(numbered_set):
    require("dali")
    folder = numbered_set(12, 5).folder
    for loader in (open_set(folder), open_set("synthetic")):
        assert loader.batch_size == 4
        assert loader.steps_per_epoch >= 3
        assert loader.description
        loader.close()


@pytest.mark.parametrize(("cores", "workers"), [(None, 1), (1, 1), (2, 2), (64, 8)])
def test_default_workers_are_one_a_core_at_most_eight(monkeypatch, cores, workers):
    monkeypatch.setattr("os.cpu_count", lambda: cores)
    assert default_workers() == workers
