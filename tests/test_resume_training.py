"""A run that was interrupted and goes on ends with the bytes of one that was not."""

import json
import random
import signal
import subprocess
from itertools import islice

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
    run_to_end,
    stopped_after,
    tiny,
    train_here,
)

PACE = ("step_ms", "img_per_s", "data_wait_pct")


@pytest.fixture
def data(numbered_set):
    """A set of five batches of eight, and three images over."""
    return str(numbered_set(43, 16, "raw").folder)


EVERY = {"max_steps": 12, "log_every": 4, "sample_every": 3}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Called with options, gives a run that nothing interrupted."""
    made: dict[str, RunFolder] = {}

    def train(**options):
        if str(options) not in made:
            folder = tmp_path_factory.mktemp("whole") / "run"
            made[str(options)] = train_here(tiny(folder, **options)).run.folder
        return made[str(options)]

    return train


def assert_same_run(one: RunFolder, other: RunFolder) -> None:
    """Weights to the byte; records but for the pace; the last picture."""
    averages = {path.name for run in (one, other) for path in run.path.glob("netG_ema.pt")}
    for name in ("netG.pt", "netD.pt", *averages, "losses.csv", "losses.png"):
        assert (one.path / name).read_bytes() == (other.path / name).read_bytes(), name
    ticks = [
        [{name: tick[name] for name in tick if name not in PACE} for tick in read_stats(run)]
        for run in (one, other)
    ]
    assert ticks[0] == ticks[1]
    assert one.grids()[-1][1].read_bytes() == other.grids()[-1][1].read_bytes()


@pytest.mark.parametrize(("stops", "cache"), [([10], "host"), ([3, 5, 8], "off")])
@pytest.mark.usefixtures("undrawn")
def test_stopped_and_resumed_it_ends_with_the_same_bytes(tmp_path, data, whole, cache, stops):
    """In the middle of ticks and epochs (five steps), and at the borders of both."""
    options = EVERY | {"shards": data, "mirror": True, "augment": "diff", "ema_nimg": 100}
    for steps in stops:
        config = tiny(tmp_path / "run", **options, cache=cache)
        assert stopped_after(new_trainer(config), steps).steps_done == steps
    resumed = train_here(tiny(tmp_path / "run", **options, cache=cache)).run.folder
    assert_same_run(whole(**options, cache="off"), resumed)
    assert [tick["step"] for tick in read_stats(resumed)] == [4, 8, 12]
    # Every tensor and value of the checkpoint, not only what ends up in the nets
    states = [
        torch.load(max(run.checkpoints.glob("*.pt")), weights_only=True)
        for run in (whole(**options, cache="off"), resumed)
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


@pytest.mark.usefixtures("undrawn")
def test_in_bf16_and_grey_with_ticks_of_another_length(tmp_path, whole):
    options = {"max_steps": 12, "precision": "bf16", "channels": 1}
    stopped_after(new_trainer(tiny(tmp_path / "run", **options, log_every=5)), 8)
    run = train_here(tiny(tmp_path / "run", **options, log_every=3)).run.folder
    assert [tick["step"] for tick in read_stats(run)] == [5, 9, 12]
    assert len(read_losses(run)) == 12
    assert run.generator.read_bytes() == whole(**options).generator.read_bytes()


@pytest.mark.usefixtures("undrawn")
def test_a_finished_run_goes_on_with_more_steps_or_says_that_it_is_done(tmp_path, whole):
    train_here(tiny(tmp_path / "run", **EVERY | {"max_steps": 7}))
    before = contents(tmp_path / "run")
    again = train_here(tiny(tmp_path / "run", **EVERY | {"max_steps": 7}))
    assert again.steps_done == 7
    after = contents(tmp_path / "run")
    for name in ("netG.pt", "losses.csv", "checkpoints/000000056.pt"):
        assert before[name] == after[name]
    assert_same_run(whole(**EVERY), train_here(tiny(tmp_path / "run", **EVERY)).run.folder)


@pytest.mark.usefixtures("undrawn")
def test_what_a_killed_run_wrote_after_its_checkpoint_is_written_anew(tmp_path, whole):
    """As if killed: a checkpoint after step 4, then files of more steps and half a line."""
    run = stopped_after(new_trainer(tiny(tmp_path / "run", **EVERY)), 4).run.folder
    lost = 8 * 10
    run.fakes(lost).write_bytes(b"of a step that is lost")
    run.generator_at(lost).write_bytes(b"likewise")
    with run.stats.open("a") as file:
        file.write(json.dumps({"step": 8, "loss_d": 1.0}) + "\n" + '{"step": 9, "lo')
    with run.losses_csv.open("a") as file:
        file.write("5,1,1,1,1,1\n6,1,")
    run.metrics.write_text('{"nimg": 80, "metric": "swd"}\n{"nimg": 32, "metric": "swd"}\n')
    assert_same_run(whole(**EVERY), train_here(tiny(tmp_path / "run", **EVERY)).run.folder)
    assert not run.fakes(lost).exists()
    assert not run.generator_at(lost).exists()
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
    options = TINY | {"shards": data, "max_steps": 20, "log_every": 1, "sample_every": 10}
    options |= {"checkpoint_every": checkpoint_every, "ema_nimg": 0}
    last = random.Random(checkpoint_every).randrange(2, 15)
    command = [str(DCGAN_TRAIN), *flags(**options), "--run", str(tmp_path / "run")]
    with subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        status_lines = (line for line in process.stdout if "Loss_D" in line)
        assert len(list(islice(status_lines, last))) == last
        process.kill()
    assert process.wait() == -signal.SIGKILL
    resumed = new_trainer(tiny(tmp_path / "run", **options))
    assert (resumed.steps_done > 0) == (checkpoint_every == 0)
    run_to_end(resumed)
    whole = train_here(tiny(tmp_path / "whole", **options)).run.folder
    assert_same_run(whole, RunFolder(tmp_path / "run"))


@pytest.mark.usefixtures("undrawn")
def test_max_time_saves_and_ends_and_the_run_goes_on(tmp_path, whole, capsys):
    options = {"max_steps": 3, "max_time": 0.0}
    assert session.train(tiny(tmp_path / "run", **options)) == session.TIME_IS_UP
    said = capsys.readouterr().out
    assert "Time is up: 1 step," in said
    assert f"the same command resumes from here, with --run {tmp_path / 'run'}" in said
    assert session.train(tiny(tmp_path / "run", **options)) == session.TIME_IS_UP
    assert "next  " not in capsys.readouterr().out
    assert session.train(tiny(tmp_path / "run", **options)) == 0  # each start did a step
    assert f"next     dcgan-sample {tmp_path / 'run'}; dcgan-report" in capsys.readouterr().out
    assert_same_run(whole(max_steps=3), RunFolder(tmp_path / "run"))


@pytest.mark.usefixtures("undrawn")
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


def flattened(value, name=""):
    if isinstance(value, dict):
        for key, part in value.items():
            yield from flattened(part, f"{name}/{key}")
    else:
        yield name, value
