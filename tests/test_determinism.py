"""`--deterministic`: what it asks of torch, and what a run that goes on keeps."""

import os
import subprocess
from functools import partial
from typing import Any

import pytest
import torch

from dcgan.metrics.swd import SwdMetric
from dcgan.rundir.folder import RunFolder
from dcgan.rundir.log import Log
from dcgan.step import determinism
from dcgan.step.determinism import set_determinism
from dcgan.training import session
from dcgan.training.build import build
from dcgan.training.state import State
from dcgan.training.trainer import Trainer
from pipeline.errors import UserError
from tests.running import (
    DCGAN_TRAIN,
    TINY,
    assert_four_parts,
    contents,
    environment,
    flags,
    new_trainer,
    read_stats,
    run_to_end,
    stopped_after,
    tiny,
    train_here,
)

PACE = ("step_ms", "img_per_s", "data_wait_pct")


@pytest.fixture(autouse=True)
def settings(monkeypatch):
    """Leave this process as it was."""
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")  # so that it is put back
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
    for owner, name in (
        (torch.backends.cudnn, "benchmark"),
        (torch.backends.cudnn, "deterministic"),
        (torch.utils.deterministic, "fill_uninitialized_memory"),
    ):
        monkeypatch.setattr(owner, name, getattr(owner, name))
    yield
    torch.use_deterministic_algorithms(False)


def is_on() -> bool:
    return torch.are_deterministic_algorithms_enabled()


def test_what_torch_is_asked_for(monkeypatch):
    torch.backends.cudnn.benchmark = True
    set_determinism(0)
    assert is_on()
    assert not torch.is_deterministic_algorithms_warn_only_enabled()
    assert torch.backends.cudnn.deterministic
    assert not torch.backends.cudnn.benchmark
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")  # the user's own
    set_determinism(0)
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":16:8"


TELLING = ("config.json", "env.json", "log.txt", "stats.jsonl", ".lock")
"""Files that tell of times, folders and the machine, beside checkpoints and events."""


def test_the_same_command_twice_leaves_the_same_files(tmp_path, numbered_set):
    shards, found = str(numbered_set(43, 16).folder), []
    options = {"shards": shards, "max_steps": 7, "sample_every": 3, "log_every": 5}
    for name in ("one", "other"):
        config = tiny(tmp_path / name, **options, mirror=True, ema_nimg=100)
        run = train_here(config).run.folder
        ticks = [{key: tick[key] for key in tick if key not in PACE} for tick in read_stats(run)]
        assert [tick["step"] for tick in ticks] == [5, 7]
        files = {
            path: data
            for path, data in contents(run.path).items()
            if path not in TELLING and not path.startswith(("checkpoints/", "tensorboard/"))
        }
        found.append((ticks, files))
    assert found[0] == found[1]
    assert not is_on()
    assert {"netG.pt", "netG_ema.pt", "losses.csv", "losses.png"} <= found[0][1].keys()
    assert sum(path.startswith("samples/") for path in found[0][1]) == 3


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore")  # Inductor's own
def test_the_same_command_twice_on_a_gpu(tmp_path, numbered_set):
    shards, found = str(numbered_set(43, 16).folder), []
    for name in ("one", "other"):
        options = {"shards": shards, "max_steps": 12, "device": "cuda", "precision": "bf16"}
        run = train_here(tiny(tmp_path / name, **options, deterministic=True)).run.folder
        log = (run.path / "log.txt").read_text()
        assert "step     graph" in log
        assert "graph failed" not in log  # logged if a simpler mode was taken
        found.append([(run.path / file).read_bytes() for file in ("netG.pt", "losses.csv")])
    assert found[0] == found[1]


@pytest.mark.usefixtures("undrawn")
def test_nothing_of_a_run_on_a_cpu_is_refused(tmp_path, numbered_set, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("dcgan.metrics.swd.SwdMetric", partial(SwdMetric, n=16))
    options = {"precision": "bf16", "mirror": True, "label_smoothing": 0.1, "evaluate_every": 3}
    options |= {"shards": str(numbered_set(43, 16).folder), "max_steps": 4, "ema_nimg": 100}
    options |= {"augment": "diff"}
    assert train_here(tiny(tmp_path / "run", deterministic=True, **options)).is_done
    assert is_on()


@pytest.mark.usefixtures("undrawn")
def test_a_kernel_of_any_order_would_be_refused(tmp_path):
    """`put_` is one (docs.pytorch.org, `use_deterministic_algorithms`)."""
    trainer = new_trainer(tiny(tmp_path, max_steps=2, deterministic=True))

    def careless(logits: torch.Tensor) -> torch.Tensor:
        return logits.detach().clone().put_(torch.tensor([0]), torch.tensor([1.0])).mean()

    trainer.step.update.loss_g = careless
    with pytest.raises(RuntimeError, match="does not have a deterministic implementation"):
        run_to_end(trainer)


@pytest.mark.parametrize("deterministic", [True, False])
@pytest.mark.usefixtures("undrawn")
def test_a_run_goes_on_with_as_many_threads_as_it_began_with(tmp_path, deterministic):
    config = tiny(tmp_path, max_steps=2, deterministic=deterministic)
    torch.set_num_threads(2)
    stopped_after(Trainer(build(config, Log()), Log()), 1)
    torch.set_num_threads(1)
    resumed = run_to_end(Trainer(build(config, Log()), Log()))
    assert resumed.steps_done == 2
    assert torch.get_num_threads() == (2 if deterministic else 1)


@pytest.mark.usefixtures("undrawn")
def test_a_number_of_threads_that_no_machine_has_is_refused(tmp_path):
    saved = train_here(tiny(tmp_path / "run", max_steps=1)).run.checkpoints.newest()
    assert saved is not None
    for threads in (determinism.MAX_THREADS + 1, -1, "2", None):
        with pytest.raises(UserError) as refused:
            State.read(saved[1] | {"threads": threads}, tmp_path)
        assert_four_parts(refused.value, "threads")


@pytest.mark.usefixtures("undrawn")
def test_it_may_not_be_dropped_or_added_when_a_run_goes_on(tmp_path):
    train_here(tiny(tmp_path / "with", max_steps=1, deterministic=True))
    train_here(tiny(tmp_path / "without", max_steps=1))
    for name, asked in (("with", False), ("without", True)):
        with pytest.raises(UserError) as refused:
            session.train(tiny(tmp_path / name, max_steps=2, deterministic=asked))
        assert_four_parts(refused.value, "--deterministic")


@pytest.mark.slow
def test_on_another_number_of_cores_the_same_bytes(tmp_path):
    """Threads matter at this size: without the option the resumed run differs."""
    size = {"batch_size": 16, "ngf": 16, "ndf": 16}

    def train(name: str, threads: int, steps: int, **option: Any) -> bytes:
        options = flags(shards="synthetic", run=tmp_path / name, max_steps=steps)
        sizes = flags(**TINY | size)
        command([*options, *sizes, *flags(**option)], threads)
        return RunFolder(tmp_path / name).generator.read_bytes()

    whole = train("whole", 2, 4, deterministic=True)
    assert train("again", 2, 4, deterministic=True) == whole
    assert train("alone", 1, 4, deterministic=True) != whole
    train("resumed", 2, 2, deterministic=True)
    assert train("resumed", 1, 4, deterministic=True) == whole
    train("careless", 2, 2)
    assert train("careless", 1, 4) != whole


def command(words: list[str], threads: int) -> None:
    subprocess.run(
        [DCGAN_TRAIN, *words],
        env=environment() | {"OMP_NUM_THREADS": str(threads)},
        check=True,
        capture_output=True,
        timeout=180,
    )
