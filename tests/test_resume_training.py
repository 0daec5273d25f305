"""A run that was interrupted and goes on ends with the bytes of one that was not."""

import json
import random
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch

from dcgan.rundir.folder import RunFolder
from dcgan.training import session
from pipeline.errors import UserError
from tests.running import (
    DCGAN_TRAIN,
    TINY,
    contents,
    environment,
    flags,
    new_trainer,
    read_losses,
    read_stats,
    stopped_after,
    tiny,
    train_here,
)

PACE = ("step_ms", "img_per_s", "data_wait_pct")


@pytest.fixture
def data(numbered_set):
    """A set of five batches of eight, and three images over."""
    return str(numbered_set(43, 16, "raw").folder)


def assert_same_run(one: RunFolder, other: RunFolder) -> None:
    """Weights to the byte; records but for the pace; the last picture."""
    for name in ("netG.pt", "netD.pt", "netG_ema.pt", "losses.csv", "losses.png"):
        assert (one.path / name).read_bytes() == (other.path / name).read_bytes(), name
    ticks = [
        [{name: tick[name] for name in tick if name not in PACE} for tick in read_stats(run)]
        for run in (one, other)
    ]
    assert ticks[0] == ticks[1]
    assert one.grids()[-1][1].read_bytes() == other.grids()[-1][1].read_bytes()


@pytest.mark.parametrize(
    ("stops", "cache"),
    [([4], "off"), ([10], "host"), ([3, 5, 12], "off")],
)
@pytest.mark.usefixtures("undrawn")
def test_stopped_and_resumed_it_ends_with_the_same_bytes(tmp_path, data, cache, stops):
    """In the middle of ticks and epochs (five steps), and at the borders of both."""
    options = {"shards": data, "max_steps": 14, "log_every": 4, "sample_every": 3, "cache": cache}
    whole = train_here(tiny(tmp_path / "whole", **options, mirror=True)).run.folder
    for steps in stops:
        stopped = stopped_after(new_trainer(tiny(tmp_path / "run", **options, mirror=True)), steps)
        assert stopped.steps_done == steps
    resumed = train_here(tiny(tmp_path / "run", **options, mirror=True)).run.folder
    assert_same_run(whole, resumed)
    assert [tick["step"] for tick in read_stats(resumed)] == [4, 8, 12, 14]


@pytest.mark.parametrize("change", [{"precision": "bf16"}, {"ema_nimg": 0, "channels": 1}])
@pytest.mark.usefixtures("undrawn")
def test_whatever_is_trained(tmp_path, change):
    for name, steps in (("whole", (9,)), ("run", (4, 9))):
        for count in steps:
            run = train_here(
                tiny(tmp_path / name, max_steps=count, log_every=3, **change)
            ).run.folder
    whole = RunFolder(tmp_path / "whole")
    for path in (run.generator, run.discriminator):
        assert path.read_bytes() == (whole.path / path.name).read_bytes()


@pytest.mark.usefixtures("undrawn")
def test_a_finished_run_goes_on_with_more_steps_or_says_that_it_is_done(tmp_path, capsys):
    train_here(tiny(tmp_path / "run", max_steps=7, log_every=3))
    before = contents(tmp_path / "run")
    again = train_here(tiny(tmp_path / "run", max_steps=7, log_every=3))
    assert again.steps_done == 7
    after = contents(tmp_path / "run")
    for name in ("netG.pt", "losses.csv", "checkpoints/000000056.pt"):
        assert before[name] == after[name]
    more = train_here(tiny(tmp_path / "run", max_steps=10, log_every=3)).run.folder
    assert_same_run(
        train_here(tiny(tmp_path / "whole", max_steps=10, log_every=3)).run.folder, more
    )


@pytest.mark.parametrize("every", [3, 100])
@pytest.mark.usefixtures("undrawn")
def test_ticks_may_have_another_length(tmp_path, every):
    stopped_after(new_trainer(tiny(tmp_path / "run", max_steps=20, log_every=9)), 16)
    run = train_here(tiny(tmp_path / "run", max_steps=20, log_every=every)).run.folder
    steps = [tick["step"] for tick in read_stats(run)]
    assert steps == [9, *(step for step in range(10, 20) if step % every == 0 and step >= 16), 20]
    assert len(read_losses(run)) == 20
    whole = train_here(tiny(tmp_path / "whole", max_steps=20)).run.folder
    assert run.generator.read_bytes() == whole.generator.read_bytes()


@pytest.mark.usefixtures("undrawn")
def test_what_a_killed_run_wrote_after_its_checkpoint_is_written_anew(tmp_path):
    """As if killed: a checkpoint after step 4, then files of more steps and half a line."""
    run = stopped_after(
        new_trainer(tiny(tmp_path / "run", max_steps=9, log_every=2, sample_every=2)), 4
    ).run.folder
    run.fakes(64).write_bytes(b"of a step that is lost")
    run.generator_at(64).write_bytes(b"likewise")
    with run.stats.open("a") as file:
        file.write(json.dumps({"step": 8, "loss_d": 1.0}) + "\n" + '{"step": 9, "lo')
    with run.losses_csv.open("a") as file:
        file.write("5,1,1,1,1,1\n6,1,")
    run.metrics.write_text('{"nimg": 64, "metric": "swd"}\n{"nimg": 32, "metric": "swd"}\n')
    resumed = train_here(
        tiny(tmp_path / "run", max_steps=7, log_every=2, sample_every=2)
    ).run.folder
    options = {"max_steps": 7, "log_every": 2, "sample_every": 2}
    assert_same_run(train_here(tiny(tmp_path / "whole", **options)).run.folder, resumed)
    assert not run.fakes(64).exists()
    assert not run.generator_at(64).exists()
    assert [json.loads(line)["nimg"] for line in run.metrics.read_text().splitlines()] == [32]


@pytest.mark.usefixtures("undrawn")
def test_the_pace_of_a_tick_counts_the_steps_of_both_processes(tmp_path):
    trainer = new_trainer(tiny(tmp_path / "run", max_steps=8, log_every=8))
    step = trainer.step.run

    def slow():
        signal.sigtimedwait([], 0.05)  # sleeps, whatever is patched
        step()

    trainer.step.run = slow  # type: ignore[method-assign]
    stopped_after(trainer, 6)
    run = train_here(tiny(tmp_path / "run", max_steps=8, log_every=8)).run.folder
    (tick,) = read_stats(run)
    assert tick["step_ms"] > 6 * 50 / 8
    assert tick["img_per_s"] == pytest.approx(8e3 / tick["step_ms"])


@pytest.mark.parametrize("checkpoint_every", [0, pytest.param(1000, marks=pytest.mark.slow)])
def test_killed_at_random_steps_it_ends_with_the_same_bytes(tmp_path, data, checkpoint_every):
    """By SIGKILL: with a checkpoint after each step, and with none at all before the end."""
    options = TINY | {"shards": data, "max_steps": 30, "log_every": 1, "sample_every": 10}
    options |= {"checkpoint_every": checkpoint_every}
    draw = random.Random(checkpoint_every)
    command = [str(DCGAN_TRAIN), *flags(**options), "--run", str(tmp_path / "run")]
    for _ in range(1 if checkpoint_every == 0 else 2):
        last = draw.randrange(2, 20)
        with subprocess.Popen(
            command, env=environment(), stdout=subprocess.PIPE, text=True
        ) as process:
            assert process.stdout is not None
            lines = 0
            for line in process.stdout:
                lines += "Loss_D" in line
                if lines == last:
                    process.kill()
                    break
        assert process.wait() == -signal.SIGKILL
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert ("after 0 steps" not in done.stdout) == (checkpoint_every == 0)
    whole = train_here(tiny(tmp_path / "whole", **options)).run.folder
    assert_same_run(whole, RunFolder(tmp_path / "run"))


@pytest.mark.usefixtures("undrawn")
def test_a_second_signal_ends_it_at_once_and_the_run_still_goes_on(tmp_path):
    script = (
        "import os, signal, sys\n"
        "from dcgan.step.adversarial import AdversarialStep\n"
        "update = AdversarialStep.__call__\n"
        "def twice(self, real, noise):\n"
        "    for _ in range(2): os.kill(os.getpid(), signal.SIGINT)\n"
        "    return update(self, real, noise)\n"
        "AdversarialStep.__call__ = twice\n"
        "from dcgan.train import main\n"
        "main()\n"
    )
    words = [*flags(**TINY | {"shards": "synthetic", "max_steps": 3}), "--run", tmp_path / "run"]
    done = subprocess.run(
        [sys.executable, "-c", script, *map(str, words)], env=environment(), timeout=60
    )
    assert done.returncode == -signal.SIGINT
    assert not RunFolder(tmp_path / "run").generator.exists()
    run = train_here(tiny(tmp_path / "run", max_steps=3)).run.folder
    assert_same_run(train_here(tiny(tmp_path / "whole", max_steps=3)).run.folder, run)


# An end by time


@pytest.mark.usefixtures("undrawn")
def test_max_time_saves_and_ends_and_the_run_goes_on(tmp_path, capsys):
    options = {"max_steps": 3, "max_time": 0.0}
    assert session.train(tiny(tmp_path / "run", **options)) == session.TIME_IS_UP
    said = capsys.readouterr().out
    assert "Time is up: 0 steps" in said
    assert f"the same command with --run {tmp_path / 'run'} resumes from here" in said
    assert session.train(tiny(tmp_path / "run", **options | {"max_time": 60.0})) == 0
    whole = train_here(tiny(tmp_path / "whole", max_steps=3)).run.folder
    assert_same_run(whole, RunFolder(tmp_path / "run"))


# Damaged data


def test_a_run_that_its_data_stopped_goes_on_where_it_was(tmp_path, counted):
    def damaged(number):
        if number == 4:
            raise UserError("shard-000001.tar", "damage", "shards", "pack again")

    counted.before = damaged
    with pytest.raises(UserError, match="damage"):
        train_here(tiny(tmp_path / "run", max_steps=9))
    counted.before, counted.closed = lambda number: None, False
    counted.epoch = counted.batch = 0
    counted._taken = False
    resumed = new_trainer(tiny(tmp_path / "run", max_steps=9))
    assert (resumed.steps_done, resumed.batches.epoch, resumed.batches.batch) == (4, 0, 4)


# The whole state


@pytest.mark.usefixtures("undrawn")
def test_the_state_of_a_resumed_run_is_that_of_one_that_was_not(tmp_path):
    """Every tensor and value of the checkpoint, not only what ends up in the nets."""
    train_here(tiny(tmp_path / "whole", max_steps=11, log_every=4, mirror=True))
    stopped_after(new_trainer(tiny(tmp_path / "run", max_steps=11, log_every=4, mirror=True)), 6)
    train_here(tiny(tmp_path / "run", max_steps=11, log_every=4, mirror=True))
    states = [
        torch.load(RunFolder(tmp_path / name).checkpoints / f"{88:09d}.pt", weights_only=True)
        for name in ("whole", "run")
    ]
    for state in states:
        for name in ("seconds", "spent", "options"):
            del state[name]
    flat = [dict(flattened(state)) for state in states]
    assert list(flat[0]) == list(flat[1])
    assert len(flat[0]) > 60
    for name, value in flat[0].items():
        other = flat[1][name]
        same = value.equal(other) if isinstance(value, torch.Tensor) else value == other
        assert same, name
    rows = states[0]["step"]["rows"]
    assert rows.shape == (1, 3, 5)
    assert np.isfinite(rows.numpy()).all()


def flattened(value, name=""):
    if isinstance(value, dict):
        for key, part in value.items():
            yield from flattened(part, f"{name}/{key}")
    else:
        yield name, value
