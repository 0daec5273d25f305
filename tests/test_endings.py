"""How a run may end before its time, and what it leaves behind then."""

import signal
from collections.abc import Callable
from typing import NoReturn

import numpy as np
import pytest
import torch
from PIL import Image

from dcgan.nets.models import Discriminator
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


def test_a_stop_before_the_first_step_leaves_the_first_nets(tmp_path, counted, capsys):
    trainer = new_trainer(tiny(tmp_path / "run"))
    stop = StopRequest()
    stop.signal = signal.SIGINT
    run_to_end(trainer, stop)
    none_yet = {"losses.png", "stats.jsonl", "reals.png", "fakes_init.png"}
    none_yet |= {"progress.gif", "reals-vs-fakes.png"}
    expected = expected_files([], [], saved=0) - none_yet
    assert files_below(trainer.run.folder.path) == expected
    said = capsys.readouterr().out
    assert "Stopped by SIGINT: 0 steps, 0 images" in said
    announced = [line.split(maxsplit=1)[1] for line in said.splitlines() if line.startswith("nets")]
    nets = (
        trainer.run.folder.generator,
        trainer.run.folder.discriminator,
        trainer.run.folder.generator_average,
    )
    assert announced == [", ".join(map(str, nets))]
    assert "curves" not in said  # there are none
    assert "samples" not in said.partition("Stopped")[2]


@pytest.mark.parametrize(
    ("number", "status"), [(None, 0), (signal.SIGINT, 130), (signal.SIGTERM, 143)]
)
def test_the_exit_status_tells_what_ended_the_run(tmp_path, counted, number, status):
    if number is not None:
        counted.before = at(2, lambda: signal.raise_signal(number))
    assert session.train(tiny(tmp_path / "run", max_steps=3)) == status
    assert len(read_losses(RunFolder(tmp_path / "run"))) == (3 if number is None else 2)


# An error


@pytest.mark.parametrize(
    "error",
    [UserError("shard-000001.tar", "damage", "shards", "pack again"), RuntimeError("broken")],
    ids=lambda error: type(error).__name__,
)
def test_an_error_in_the_middle_leaves_what_was_done(tmp_path, counted, capsys, error):
    trainer = new_trainer(tiny(tmp_path / "run", log_every=2, sample_every=2))
    counted.before = at(8, lambda: fail(error))
    with pytest.raises(type(error)) as raised:
        run_to_end(trainer)
    assert raised.value is error
    run = trainer.run.folder
    assert files_below(run.path) == expected_files([16, 32, 48], [40], saved=56)
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
    assert capsys.readouterr().out == log
    assert counted.closed


def test_an_error_in_the_first_batch_leaves_the_first_nets(tmp_path, counted):
    trainer = new_trainer(tiny(tmp_path / "run"))
    counted.before = at(1, lambda: fail(UserError("tar", "damage", "shards", "pack again")))
    with pytest.raises(UserError, match="damage"):
        run_to_end(trainer)
    missing = {"losses.png", "stats.jsonl", "reals.png", "fakes_init.png"}
    missing |= {"progress.gif", "reals-vs-fakes.png"}
    assert files_below(trainer.run.folder.path) == expected_files([], [], saved=0) - missing
    assert counted.closed


SHORT_OF_MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nSee documentation"),
    torch.OutOfMemoryError("said in words that nobody foresaw"),
    RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"),
    RuntimeError("MPS backend out of memory (MPS allocated: 9 GB)"),
    RuntimeError("Storage size calculation overflowed with sizes=[1, 2]"),
    MemoryError(),
    MemoryError("Unable to allocate 9 GiB for an array"),
]


@pytest.mark.parametrize("error", SHORT_OF_MEMORY, ids=lambda error: str(error)[:20])
@pytest.mark.parametrize("step", [1, 4])
def test_a_lack_of_memory_names_the_batch_size(tmp_path, counted, error, step):
    counted.before = at(step, lambda: fail(error))
    with pytest.raises(UserError) as told:
        session.train(tiny(tmp_path / "run"))
    assert_four_parts(told.value, "not enough memory", str(error).partition("\n")[0])
    assert "--batch-size 4, " in told.value.remedy
    assert len(str(told.value).splitlines()) == 4
    assert len(read_losses(RunFolder(tmp_path / "run"))) == step - 1


def test_a_batch_of_one_cannot_be_halved(tmp_path):
    config = tiny(tmp_path / "run", batch_size=1, cache="off")
    with (
        pytest.raises(UserError, match="try --batch-size 1, or smaller --ngf and --ndf"),
        shortage_named(config),
    ):
        raise MemoryError


def test_a_fault_of_ours_is_not_told_as_a_lack_of_memory(tmp_path, counted):
    error = RuntimeError("mat1 and mat2 shapes cannot be multiplied")
    counted.before = at(3, lambda: fail(error))
    with pytest.raises(RuntimeError) as raised:
        session.train(tiny(tmp_path / "run"))
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


@pytest.mark.parametrize("from_step", [1, 4])
def test_statistics_that_are_not_finite_are_written_all_the_same(
    tmp_path, counted, monkeypatch, from_step
):
    trainer = new_trainer(tiny(tmp_path / "run", max_steps=6, log_every=3))
    monkeypatch.setattr(trainer, "_handle", lambda alarms: None)
    monkeypatch.setattr("dcgan.training.records.save_losses", save_losses)  # drawn here
    update = AdversarialStep.__call__

    def diverge(self, real, noise):
        statistics = update(self, real, noise)
        return statistics * float("nan" if trainer.steps_done + 1 >= from_step else 1)

    monkeypatch.setattr(AdversarialStep, "__call__", diverge)
    run_to_end(trainer)
    run = trainer.run.folder
    first, last = read_stats(run)  # by a parser that takes no NaN
    assert (first["loss_d"] is None) == (from_step == 1)
    assert [last[name] for name in ("loss_d", "loss_g", "d_x", "d_gz1", "d_gz2")] == [None] * 5
    assert np.isnan(read_losses(run)[:, 1:]).all(axis=1).tolist() == [
        step >= from_step for step in range(1, 7)
    ]
    assert "Loss_D: nan  Loss_G: nan" in run.log.read_text()
    with Image.open(run.losses_png) as picture:
        assert picture.size == (1000, 500)


def test_nets_of_nan_do_not_stop_the_files(tmp_path):
    overflowing = Discriminator(32, ndf=4)
    with torch.no_grad():
        next(overflowing.parameters()).fill_(3e38)  # finite, and what it gives is not
    torch.save(overflowing.state_dict(), tmp_path / "netD.pt")
    trainer = new_trainer(tiny(tmp_path / "run", max_steps=2, netD=str(tmp_path / "netD.pt")))
    with pytest.raises(UserError, match="non-finite"):
        run_to_end(trainer)
    run = trainer.run.folder
    checkpoints = {f"checkpoints/{16:09d}.{ending}" for ending in ("pt", "json")}
    assert files_below(run.path) == expected_files([16], []) - checkpoints | {"alarms.jsonl"}
    assert read_stats(run)[0]["loss_d"] is None
