"""How a run may end before its time, and what it leaves behind then."""

import signal
from collections.abc import Callable
from typing import NoReturn

import numpy as np
import pytest
import torch
from PIL import Image

from dcgan.rundir.curves import save_losses
from dcgan.rundir.folder import RunFolder
from dcgan.step.adversarial import AdversarialStep
from dcgan.training import session
from dcgan.training.capacity import shortage_named
from dcgan.training.signals import StopRequest
from pipeline.errors import UserError
from tests.running import (
    Served,
    assert_four_parts,
    expected_files,
    files_below,
    new_trainer,
    read_losses,
    read_stats,
    run_to_end,
    tiny,
)

pytestmark = pytest.mark.usefixtures("undrawn")


def at(step: int, action: Callable[[], object]) -> Served:
    """For `CountedBatches.before`: act when the batch of this step is asked for."""
    return lambda number: action() if number == step - 1 else None


def fail(error: BaseException) -> NoReturn:
    raise error


# A request to stop


def test_a_stop_ends_the_run_after_the_step_in_progress(tmp_path, counted, capsys):
    trainer = new_trainer(tiny(tmp_path / "run", log_every=4, sample_every=100))
    stop = StopRequest()
    counted.before = at(6, lambda: setattr(stop, "signal", signal.SIGTERM))
    run_to_end(trainer, stop)
    assert trainer.steps_done == 6
    assert counted.served == 6
    assert [record["step"] for record in read_stats(trainer.run.folder)] == [4, 6]
    assert files_below(trainer.run.folder.path) == expected_files([48], [40])
    assert "Stopped by SIGTERM: 6 steps, 48 images, total time " in capsys.readouterr().out


@pytest.mark.parametrize("error", [None, UserError("tar", "damage", "shards", "pack again")])
def test_an_end_before_the_first_step_leaves_the_first_nets(tmp_path, counted, capsys, error):
    trainer = new_trainer(tiny(tmp_path / "run", ema_nimg=100))
    stop, run = StopRequest(), trainer.run.folder
    if error is None:
        stop.signal = signal.SIGINT
        run_to_end(trainer, stop)
    else:
        counted.before = at(1, lambda: fail(error))
        with pytest.raises(UserError, match="damage"):
            run_to_end(trainer)
    none_yet = {"losses.png", "stats.jsonl", "reals.png", "fakes_init.png"}
    none_yet |= {"progress.gif", "reals-vs-fakes.png"}
    assert files_below(run.path) == expected_files([], [], saved=0, average=True) - none_yet
    assert counted.closed
    said = capsys.readouterr().out
    if error is None:
        assert "Stopped by SIGINT: 0 steps, 0 images" in said
        announced = [line.split(maxsplit=1)[1] for line in said.splitlines() if line[:4] == "nets"]
        nets = (run.generator, run.discriminator, run.generator_average)
        assert announced == [", ".join(map(str, nets))]
        assert "curves" not in said  # there are none
        assert "samples" not in said.partition("Stopped")[2]


@pytest.mark.parametrize(("number", "status"), [(None, 0), (signal.SIGINT, 130)])
def test_the_exit_status_tells_what_ended_the_run(tmp_path, counted, number, status):
    if number is not None:
        counted.before = at(2, lambda: signal.raise_signal(number))
    assert session.train(tiny(tmp_path / "run", max_steps=3)) == status
    assert len(read_losses(RunFolder(tmp_path / "run"))) == (3 if number is None else 1)


# An error


@pytest.mark.parametrize(
    "error",
    [UserError("shard-000001.tar", "damage", "shards", "pack again"), RuntimeError("broken")],
    ids=lambda error: type(error).__name__,
)
def test_an_error_in_the_middle_leaves_what_was_done(tmp_path, counted, capsys, error):
    trainer = new_trainer(tiny(tmp_path / "run", log_every=2, sample_every=2, ema_nimg=100))
    counted.before = at(8, lambda: fail(error))
    with pytest.raises(type(error)) as raised:
        run_to_end(trainer)
    assert raised.value is error
    run = trainer.run.folder
    assert files_below(run.path) == expected_files([16, 32, 48], [40], saved=56, average=True)
    assert [record["step"] for record in read_stats(run)] == [2, 4, 6, 7]
    assert len(read_losses(run)) == 7
    for net, path in (
        (trainer.run.generator, run.generator),
        (trainer.run.discriminator, run.discriminator),
        (trainer.run.net_to_sample(), run.generator_average),
    ):
        kept = torch.load(path, weights_only=True)
        assert all(torch.equal(kept[name], tensor) for name, tensor in net.state_dict().items())
    log = run.log.read_text()
    told = f"Training broke off: {error}\nIts output so far is in {run.path}\n[1/5][2/5]  Loss_D"
    assert told in log
    assert "Training finished" not in log
    assert capsys.readouterr().out == log.replace(f"Training broke off: {error}\n", "")
    assert counted.closed


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nSee documentation"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"),
        RuntimeError("MPS backend out of memory (MPS allocated: 9 GB)"),
        RuntimeError("Storage size calculation overflowed with sizes=[1, 2]"),
        MemoryError(),
    ],
    ids=lambda error: str(error)[:20],
)
def test_a_lack_of_memory_names_the_batch_size(tmp_path, error):
    for size, remedy in ((8, "--batch-size 4, "), (1, "--batch-size 1, ")):
        config = tiny(tmp_path / "run", batch_size=size)
        with pytest.raises(UserError) as told, shortage_named(config):
            raise error
        assert_four_parts(told.value, "not enough memory", str(error).partition("\n")[0])
        assert remedy in told.value.remedy
        assert len(str(told.value).splitlines()) == 4


def test_in_a_run_it_is_told_and_a_fault_of_ours_is_not_taken_for_it(tmp_path, counted):
    counted.before = at(4, lambda: fail(MemoryError()))
    with pytest.raises(UserError, match="not enough memory"):
        session.train(tiny(tmp_path / "run"))
    assert len(read_losses(RunFolder(tmp_path / "run"))) == 3
    error = RuntimeError("mat1 and mat2 shapes cannot be multiplied")
    counted.before = lambda number: fail(error)
    with pytest.raises(RuntimeError) as raised:
        session.train(tiny(tmp_path / "other"))
    assert raised.value is error


@pytest.mark.parametrize("broken", ["training.records.save_losses", "rundir.log.Log.__call__"])
def test_nets_are_kept_even_if_nothing_else_can_be(tmp_path, counted, monkeypatch, broken):
    trainer = new_trainer(tiny(tmp_path / "run"))

    def break_everything() -> None:
        def refuse(*arguments: object) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(f"dcgan.{broken}", refuse)

    counted.before = at(3, break_everything)
    with pytest.raises(OSError, match="No space left"):
        run_to_end(trainer)
    for path in (trainer.run.folder.generator, trainer.run.folder.discriminator):
        assert torch.load(path, weights_only=True)


# A divergence


def test_statistics_that_are_not_finite_are_written_all_the_same(tmp_path, counted, monkeypatch):
    trainer = new_trainer(tiny(tmp_path / "run", max_steps=6, log_every=3))
    monkeypatch.setattr(trainer, "_handle", lambda alarms: None)
    monkeypatch.setattr("dcgan.training.records.save_losses", save_losses)  # drawn here
    update = AdversarialStep.__call__

    def diverge(self, real, noise, draws):
        statistics = update(self, real, noise, draws)
        return statistics * float("nan" if trainer.steps_done >= 3 else 1)

    monkeypatch.setattr(AdversarialStep, "__call__", diverge)
    run_to_end(trainer)
    run = trainer.run.folder
    first, last = read_stats(run)  # by a parser that takes no NaN
    assert first["loss_d"] is not None
    assert [last[name] for name in ("loss_d", "loss_g", "d_x", "d_gz1", "d_gz2")] == [None] * 5
    assert np.isnan(read_losses(run)[:, 1:]).all(axis=1).tolist() == [
        step > 3 for step in range(1, 7)
    ]
    assert "Loss_D: nan  Loss_G: nan" in run.log.read_text()
    with Image.open(run.losses_png) as picture:
        assert picture.size == (1000, 500)
