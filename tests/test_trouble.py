"""Trouble in a run: told, stopped at, or gone back from; and checkpoints that are the best."""

import json
from types import SimpleNamespace

import pytest
import torch

from dcgan.rundir.folder import RunFolder, read_lines
from dcgan.step.adversarial import AdversarialStep
from dcgan.training import session
from dcgan.training.monitor import SATURATED_STEPS, RollBack
from pipeline.errors import UserError
from tests.running import (
    TINY,
    assert_four_parts,
    new_trainer,
    read_stats,
    run_to_end,
    tiny,
    train_here,
)

pytestmark = pytest.mark.usefixtures("undrawn")

UPDATE = AdversarialStep.__call__


@pytest.fixture
def poison(monkeypatch):
    """Have some steps, by their number among all that are done, write NaN into the generator."""

    def at(steps):
        done = SimpleNamespace(steps=0)

        def update(self, real, noise, draws):
            done.steps += 1
            if steps(done.steps):
                with torch.no_grad():
                    next(self.generator.parameters()).fill_(float("nan"))
            return UPDATE(self, real, noise, draws)

        monkeypatch.setattr(AdversarialStep, "__call__", update)
        return done

    return at


def alarms(path):
    return [(line["kind"], line["step"], line["action"]) for line in read_lines(path)]


def test_nan_ends_a_run_and_leaves_the_last_whole_state(tmp_path, poison, capsys):
    """Even one that is only to warn, for nothing can come of it any more."""
    poison(lambda step: step == 7)
    options = {"log_every": 3, "checkpoint_every": 0, "on_trouble": "warn"}
    config = tiny(tmp_path / "run", max_steps=10, **options)
    with pytest.raises(UserError) as told:
        session.train(config)
    assert_four_parts(told.value, "non-finite", "step 7", "--allow-change")
    run = RunFolder(tmp_path / "run")
    assert alarms(run.alarms) == [("non-finite", 7, "stop")]
    assert [int(path.stem) for path in sorted(run.checkpoints.glob("*.pt"))] == [40, 48]
    kept = torch.load(run.generator, weights_only=True)
    assert all(torch.isfinite(tensor).all() for tensor in kept.values())
    said = capsys.readouterr().out
    assert "ALARM    non-finite" in said
    assert "Stopped by an alarm: 7 steps" in said
    # And the same command goes on from there, as if nothing had been
    poison(lambda step: False)
    assert session.train(config) == 0
    whole = train_here(tiny(tmp_path / "whole", max_steps=10)).run.folder
    assert whole.generator.read_bytes() == run.generator.read_bytes()


def test_a_rollback_goes_on_from_before_the_trouble_with_other_random_numbers(
    tmp_path, poison, capsys
):
    """And these are in later checkpoints: stopped after it, the run resumes to the same bytes."""
    options = {"max_steps": 12, "log_every": 4, "checkpoint_every": 0, "on_trouble": "rollback"}
    done = poison(lambda step: step == 7)
    assert session.train(tiny(tmp_path / "run", **options)) == 0
    run = RunFolder(tmp_path / "run")
    assert alarms(run.alarms) == [("non-finite", 7, "rollback")]
    assert done.steps == 7 + 6  # of the first seven, six stand
    assert [tick["step"] for tick in read_stats(run)] == [4, 8, 12]
    assert "Rolling back, 1 of 3 times" in capsys.readouterr().out
    poison(lambda step: step == 7)
    session.train(tiny(tmp_path / "stopped", **options | {"max_steps": 10}))
    poison(lambda step: False)
    resumed, healthy = (
        train_here(tiny(tmp_path / name, **options)).run.folder for name in ("stopped", "healthy")
    )
    assert resumed.generator.read_bytes() == run.generator.read_bytes()
    ours, others = read_stats(run), read_stats(healthy)
    assert ours[0]["loss_d"] == others[0]["loss_d"]
    assert ours[1]["loss_d"] != others[1]["loss_d"]
    assert ours[2]["loss_d"] is not None


def test_a_rollback_without_a_checkpoint_begins_anew(tmp_path, poison):
    poison(lambda step: step == 3)
    config = tiny(tmp_path / "run", max_steps=5, log_every=2, on_trouble="rollback")
    assert session.train(config) == 0
    assert [tick["step"] for tick in read_stats(RunFolder(tmp_path / "run"))] == [2, 4, 5]


def test_after_three_rollbacks_it_gives_up(tmp_path, poison, capsys):
    poison(lambda step: step > 5)
    config = tiny(
        tmp_path / "run", max_steps=50, log_every=2, checkpoint_every=0, on_trouble="rollback"
    )
    with pytest.raises(UserError, match="non-finite"):
        session.train(config)
    actions = [action for _, _, action in alarms(RunFolder(tmp_path / "run").alarms)]
    assert actions == ["rollback"] * 3 + ["stop"]
    assert "gave up after 3 rollbacks" in capsys.readouterr().out


def saturate(monkeypatch):
    def update(self, real, noise, draws):
        return UPDATE(self, real, noise, draws) * 0 + torch.tensor([0.0, 9.0, 1.0, 0.0, 0.0])

    monkeypatch.setattr(AdversarialStep, "__call__", update)


@pytest.mark.parametrize(("log_every", "asked"), [(50, "warn"), (33, "stop")])
def test_saturation_is_told_once_and_stops_only_if_asked(tmp_path, monkeypatch, log_every, asked):
    saturate(monkeypatch)
    steps = SATURATED_STEPS + 40
    config = tiny(tmp_path / "run", max_steps=steps, log_every=log_every, on_trouble=asked)
    if asked == "stop":
        with pytest.raises(UserError, match="saturation"):
            session.train(config)
    else:
        assert session.train(config) == 0
    run = RunFolder(tmp_path / "run")
    if asked == "warn":  # nor again, if its tick is told again
        session.train(config.replace(max_steps=steps + 5))
    assert alarms(run.alarms) == [("saturation", SATURATED_STEPS, asked)]
    last = read_stats(run)[-1]["step"]
    assert last == (steps + 5 if asked == "warn" else 132)
    saved = max(int(path.stem) for path in run.checkpoints.glob("*.pt"))
    assert saved == 8 * last  # also where it stops for this: nets are whole


def test_a_rollback_from_saturation_leaves_all_of_it_behind(tmp_path, monkeypatch):
    """Not only to the last checkpoint, which lies within the hundred steps."""
    saturate(monkeypatch)
    trainer = new_trainer(
        tiny(tmp_path / "run", max_steps=150, log_every=50, on_trouble="rollback", keep=200)
    )
    save = trainer.run.checkpoints.save
    saved = []

    def at_some_steps(nimg, state):
        saved.append(nimg)
        return save(nimg, state)

    trainer._checkpoint_is_due = lambda: trainer.steps_done in (30, 70)  # type: ignore[method-assign]
    trainer.run.checkpoints.save = at_some_steps  # type: ignore[method-assign]
    with pytest.raises(RollBack):
        run_to_end(trainer)
    assert saved == [240, 560]
    assert [int(path.stem) for path in trainer.run.folder.checkpoints.glob("*.pt")] == [240]


# The best


def test_the_best_checkpoint_is_the_one_with_the_lowest_distance(tmp_path, monkeypatch, capsys):
    values = {16: 30.0, 32: 10.0, 48: 20.0, 64: 25.0, 72: 40.0}
    judged: list[object] = []

    class Metric:
        def __init__(self, reals):
            assert (reals.fingerprint, reals.options.image_size) == ("synthetic", 32)

        def measure(self, net):
            nimg = list(values)[len(judged)]
            judged.append(net)

            def record(seen, name):
                assert (seen, name) == (nimg, "netG_ema.pt")
                return {"nimg": seen, "net": name, "metric": "swd", "value": values[seen]} | {
                    "floor": 1.0,
                    "n": 2048,
                }

            return SimpleNamespace(record=record)

    monkeypatch.setattr("dcgan.metrics.swd.SwdMetric", Metric)
    trainer = train_here(
        tiny(tmp_path / "run", max_steps=9, evaluate_every=2, keep=1, ema_nimg=100)
    )
    run = trainer.run.folder
    assert all(net is trainer.run.net_to_sample() for net in judged)
    assert [line["nimg"] for line in read_lines(run.metrics)] == list(values)
    assert sorted(int(path.stem) for path in run.checkpoints.glob("*.pt")) == [32, 72]
    best = json.loads((run.checkpoints / "000000032.json").read_text())
    assert best["swd"] == 10.0
    state = torch.load(run.checkpoints / "000000032.pt", weights_only=True)
    kept = torch.load(run.generator_best, weights_only=True)
    assert all(tensor.equal(kept[name]) for name, tensor in state["step"]["average"].items())
    assert "SWD      10.00 at 32 images" in capsys.readouterr().out


def test_nets_that_are_no_numbers_are_not_judged(tmp_path, poison):
    poison(lambda step: step == 2)
    with pytest.raises(UserError, match="non-finite"):
        session.train(tiny(tmp_path / "run", max_steps=4, evaluate_every=2))
    assert not RunFolder(tmp_path / "run").metrics.exists()


# All sizes


@pytest.mark.parametrize(("size", "channels"), [(128, 3), (256, 1)])
def test_each_size_and_channel_count_trains(tmp_path, size, channels):
    options = TINY | {"image_size": size, "channels": channels, "ngf": 1, "ndf": 1, "batch_size": 2}
    run = train_here(tiny(tmp_path / "run", **options, max_steps=2)).run.folder
    assert len(read_stats(run)) == 1
    assert read_stats(run)[0]["loss_d"] > 0
