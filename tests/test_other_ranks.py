"""A run that goes on with another number of processes: what stays, what begins anew."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dcgan.distributed import Ranks
from dcgan.rundir.folder import RunFolder, write_object
from dcgan.rundir.log import Log
from dcgan.training.build import build
from dcgan.training.checkpoint import Checkpoints
from dcgan.training.trainer import Trainer
from pipeline.errors import UserError
from tests.ranks import in_ranks
from tests.running import (
    assert_four_parts,
    contents,
    new_trainer,
    read_losses,
    read_stats,
    run_to_end,
    stopped_after,
    tiny,
    train_here,
)

pytestmark = pytest.mark.usefixtures("undrawn")

STOPPED, EPOCHS, STEPS = 7, 3, 12
"""Steps before the change, of five an epoch. The second epoch breaks off, the third is the last."""


@pytest.fixture(scope="module")
def options(numbered_set) -> dict[str, Any]:
    shards = str(numbered_set(43, 8).folder)
    return {"shards": shards, "epochs": EPOCHS, "log_every": 4, "ema_nimg": 100, "keep": 9}


@pytest.fixture(scope="module")
def begun(options, tmp_path_factory):
    """A run of one process, stopped within an epoch and within a tick; to be copied."""
    path = tmp_path_factory.mktemp("begun") / "run"
    stopped_after(new_trainer(tiny(path, **options)), STOPPED)
    return path


def saved_state(run: RunFolder) -> dict[str, Any]:
    state: dict[str, Any] = torch.load(max(run.checkpoints.glob("*.pt")), weights_only=True)
    return state


@pytest.fixture
def run(begun, tmp_path):
    return RunFolder(shutil.copytree(begun, tmp_path / "run"))


@pytest.fixture
def of_two(run):
    """The same run as if two processes had trained it: both have noise and statistics."""
    state = saved_state(run)
    step, other = state["step"], torch.Generator().manual_seed(5).get_state()
    step["random"] = torch.stack((step["random"][0], other))
    step["rows"] = torch.stack((step["rows"][0], step["rows"][0] + 2))
    state["batches"]["identity"] |= {"ranks": 2, "--batch-size": 4}
    Checkpoints(run.checkpoints, 9, print).save(8 * STOPPED, state)
    write_object(run.config, json.loads(run.config.read_text()) | {"ranks": 2})
    return run


def resumed(run, options, rank=0, count=1, **changes) -> Trainer:
    config = tiny(run.path, **options | {"allow_change": True} | changes)
    return Trainer(build(config, Log(), Ranks(rank, count)), Log())


def refusal(run, options, count, **changes) -> UserError:
    before = contents(run.path)
    with pytest.raises(UserError) as refused:
        resumed(run, options, 0, count, **changes)
    assert contents(run.path) == before
    return refused.value


def test_it_is_refused_unless_allowed(run, options):
    error = refusal(run, options, 2, allow_change=False)
    assert_four_parts(error, "a run of 1 process, and now there are 2", "its own noise")
    assert "resume with dcgan-train, or give --allow-change" in error.remedy


def test_a_number_that_does_not_divide_the_batch_is_refused(run, options):
    error = refusal(run, options, 3)
    assert_four_parts(error, "there are 3, for batches of 8", "start 1, 2, 4 or 8 processes")


def test_both_of_two_go_on_from_what_one_left(run, options, capsys):
    before, alone = saved_state(run), resumed(run, options)
    capsys.readouterr()
    pair = [resumed(run, options, rank, 2) for rank in (0, 1)]
    said = capsys.readouterr().out
    assert said.count("changed  2 processes (was 1): a new epoch begins") == 2
    assert "BatchNorm takes 4 images at a time; the forms of the layers are chosen anew" in said
    for trainer in pair:
        assert (trainer.steps_done, trainer.nimg) == (STOPPED, 8 * STOPPED)
        assert trainer.step.digest() == alone.step.digest()
        state = trainer.step.state_dict()
        for name in ("generator", "discriminator", "average"):
            torch.testing.assert_close(state[name], before["step"][name], rtol=0, atol=0)
        assert torch.equal(state["rows"], before["step"]["rows"][0])
        assert np.array_equal(trainer.records.history, before["history"].numpy())
        assert (trainer.batches.epoch, trainer.batches.batch) == (2, 0)
        assert trainer.batches.batch_size == 4
        assert trainer.steps_saved == -1  # the checkpoint there is not of these processes
    again = resumed(run, options, 1, 2)
    assert torch.equal(*(each.step.random.get_state() for each in (pair[1], again)))


def test_no_noise_comes_twice(begun, run, options):
    """From the beginning, after that, on each of two, and on one again."""

    def noise(trainer):
        return trainer.step.random.get_state()

    fresh = new_trainer(tiny(begun.parent / "fresh", **options))
    pair = [resumed(run, options, rank, 2) for rank in (0, 1)]
    found = [noise(fresh), noise(resumed(run, options)), *map(noise, pair)]
    state = saved_state(run)
    state["step"] |= {"random": torch.stack(found[2:]), "rows": torch.zeros(2, 0, 5)}
    state |= {"steps": 9, "history": torch.zeros(9, 5)}
    Checkpoints(run.checkpoints, 9, print).save(72, state)
    found.append(noise(resumed(run, options)))
    assert len({bytes(each) for each in found}) == 5


def test_the_end_and_the_epochs_follow_from_the_place_in_the_data(of_two, options, capsys):
    rows = saved_state(of_two)["step"]["rows"].mean(0).numpy()
    trainer = stopped_after(resumed(of_two, options), 8)
    assert "changed  1 process (was 2): a new epoch begins" in capsys.readouterr().out
    assert trainer.run.plan.total_steps == STEPS
    assert trainer.run.plan.epochs == EPOCHS
    found = read_losses(of_two)[4:STOPPED, 1:]
    np.testing.assert_allclose(found, rows, rtol=1e-6)  # the mean of both, as it would have been
    # The number is now the run's, and needs no allowing; nor does the place of the epochs move
    trainer = train_here(tiny(of_two.path, **options))
    assert trainer.steps_done == STEPS
    ticks = [(tick["step"], tick["nimg"], tick["epoch"]) for tick in read_stats(of_two)]
    assert ticks == [(4, 32, 0), (8, 64, 2), (12, 96, 3)]
    assert "[2/3][1/5]" in of_two.log.read_text()
    nets = sorted(path.name for path in of_two.nets.glob("netG-*"))
    assert nets == [f"netG-{8 * steps:09d}.pt" for steps in (5, STOPPED, STEPS)]


def test_stopped_after_the_change_it_ends_with_the_same_bytes(of_two, options, tmp_path):
    other = RunFolder(shutil.copytree(of_two.path, tmp_path / "other"))
    stopped_after(resumed(of_two, options), 9)
    train_here(tiny(of_two.path, **options))
    run_to_end(resumed(other, options))
    assert of_two.generator.read_bytes() == other.generator.read_bytes()
    assert of_two.generator_average.read_bytes() == other.generator_average.read_bytes()


def test_a_change_at_an_epochs_end_leaves_no_epoch_out(tmp_path, options):
    run = RunFolder(tmp_path / "run")
    stopped_after(new_trainer(tiny(run.path, **options)), 5)
    trainer = resumed(run, options, 0, 2)
    assert (trainer.batches.epoch, trainer.batches.batch) == (1, 0)
    assert trainer.run.plan.total_steps == 15


def test_a_change_in_the_last_epoch_says_that_nothing_is_left(of_two, options, capsys):
    trainer = resumed(of_two, options, epochs=2)  # the second is the one that breaks off
    run_to_end(trainer)
    assert trainer.steps_done == STOPPED
    assert "nothing is left to train: raise --epochs" in capsys.readouterr().out


def test_a_checkpoint_of_no_process_is_refused(run, options):
    state = saved_state(run)
    state["step"] |= {name: state["step"][name][:0] for name in ("random", "rows")}
    Checkpoints(run.checkpoints, 9, print).save(8 * STOPPED, state)
    assert_four_parts(refusal(run, options, 1), "the statistics of no process")


def test_killed_before_its_first_checkpoint_it_is_still_the_other_number(run, options):
    """config.json has the new number by then, the checkpoint the old one, which counts."""
    write_object(run.config, json.loads(run.config.read_text()) | {"ranks": 2})
    refusal(run, options, 2, allow_change=False)
    assert resumed(run, options, allow_change=False).steps_saved == STOPPED


# Real ranks


def go_on(ranks):
    """Resume the runs that the environment names, each until its number of steps."""
    ended = []
    for words in os.environ["GO_ON"].split():
        path, steps, allow, shards = words.split(",")
        more = {"allow_change": allow == "allowed", "max_steps": int(steps), "ema_nimg": 100}
        config = tiny(Path(path), shards=shards, log_every=4, keep=9, **more)
        trainer = run_to_end(Trainer(build(config, Log(), ranks), Log(quiet=not ranks.is_first)))
        ended.append((trainer.steps_done, trainer.nimg, trainer.step.digest()))
    return ended


@pytest.mark.slow
def test_one_two_four_and_one_again(begun, tmp_path, options, monkeypatch):
    """Of two runs, one is stopped between changes: they stay equal to the bit."""
    broken, whole = (shutil.copytree(begun, tmp_path / name) for name in ("broken", "whole"))

    def trained(count, *legs):
        words = [",".join(map(str, (*leg, options["shards"]))) for leg in legs]
        monkeypatch.setenv("GO_ON", " ".join(words))
        found = in_ranks(go_on, tmp_path, count) if count > 1 else [go_on(Ranks())]
        assert all(each == found[0] for each in found)  # weights too
        return found[0]

    for count, middle, last in ((2, 9, 11), (4, 13, 16), (1, 18, 19)):
        ended = trained(
            count,
            (broken, middle, "allowed"),
            (broken, last, "same"),
            (whole, last, "allowed"),
        )
        assert [steps for steps, *_ in ended] == [middle, last, last]
        assert ended[1] == ended[2]
        state = saved_state(RunFolder(broken))
        assert state["step"]["random"].shape[0] == count
        assert len({bytes(each) for each in state["step"]["random"]}) == count
    ticks = [(tick["step"], tick["epoch"]) for tick in read_stats(RunFolder(broken))]
    assert ticks == [(4, 0), (8, 2), (12, 3), (16, 4), (19, 4)]
