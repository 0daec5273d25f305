"""Which options may differ when a run goes on, and what stands in the way of going on."""

import json
from pathlib import Path
from shutil import copytree, rmtree

import pytest
import torch
from typer.testing import CliRunner

from dcgan.metrics.evaluation import evaluate
from dcgan.nets.models import Discriminator, Generator
from dcgan.nets.weights import save_weights
from dcgan.options import EvaluateOptions
from dcgan.rundir.folder import RunFolder, write_object
from dcgan.step.ema import EMA
from dcgan.train import app
from pipeline.errors import UserError
from tests.running import (
    TINY,
    assert_four_parts,
    contents,
    flags,
    new_trainer,
    run_to_end,
    stopped_after,
    tiny,
    train_here,
)

pytestmark = pytest.mark.usefixtures("undrawn")


def begun(tmp_path, **options):
    return train_here(tiny(tmp_path / "run", max_steps=2, **options)).run.folder


def refused(config, run, *said):
    """The error with which a run is not gone on with; the folder stays as it was."""
    before = contents(run.path)
    with pytest.raises(UserError) as refusal:
        new_trainer(config)
    assert_four_parts(refusal.value, *said)
    assert contents(run.path) == before
    return refusal.value


def test_other_options_are_refused_unless_allowed(tmp_path, capsys):
    run = begun(tmp_path)
    change = {"beta1": 0.9, "lr_d": 0.125, "mirror": True, "augment": "diff", "ema_nimg": 100}
    told = ["--lr-d 0.125 (was not given)", "--beta1 0.9 (was 0.5)", "--mirror on (was off)"]
    told += ["--augment diff (was none)", "--ema-nimg 100 (was 0)"]
    config = tiny(run.path, max_steps=4, **change)
    refused(config, run, f"--run {run.path}", *told, "--allow-change")
    capsys.readouterr()
    trainer = new_trainer(config.replace(allow_change=True))
    said = capsys.readouterr().out
    assert all(f"changed  {each}" in said for each in told)
    update = trainer.step.update
    (group_d,), (group_g,) = update.optimizer_d.param_groups, update.optimizer_g.param_groups
    assert (group_d["lr"], group_g["lr"]) == (0.125, 0.0002)
    assert update.optimizer_d.state  # and what it had learned is still there
    # An average that is asked for later begins at the net
    average = trainer.run.net_to_sample()
    assert average is not trainer.run.generator
    for mean, weight in zip(average.parameters(), trainer.run.generator.parameters(), strict=True):
        assert torch.equal(mean, weight)
    assert run_to_end(trainer).steps_done == 4
    options = json.loads(run.config.read_text())
    assert all(options[name] == value for name, value in change.items())
    new_trainer(tiny(run.path, max_steps=6, **change))  # the new ones are the run's by now


def test_a_run_from_before_averages_warmed_up_goes_on(tmp_path, monkeypatch):
    """It has no other checkpoints: how many steps it has done stands in Adam's state."""

    def at_one_rate(average, updates):
        with torch.no_grad():
            pairs = zip(average.net.parameters(), average._followed.parameters(), strict=True)
            for mean, weight in pairs:
                mean.lerp_(weight, 1 - 0.5 ** (8 / 10_000))

    with monkeypatch.context() as before:
        before.setattr(EMA, "update", at_one_rate)
        config = tiny(tmp_path / "run", max_steps=40, ema_nimg=10_000)
        train_here(config)
    step = new_trainer(config.replace(max_steps=41)).step
    assert step.ema is not None
    expected = [mean.clone() for mean in step.ema.net.parameters()]
    step.run()
    for mean, weight in zip(expected, step.update.generator.parameters(), strict=True):
        mean.lerp_(weight.detach(), 1 - 0.5 ** (8 / (40 * 8 * 0.05)))
    found = [*step.ema.net.parameters()]
    torch.testing.assert_close(found, expected, atol=1e-7, rtol=1e-5)


def test_other_nets_and_batches_are_refused_even_if_allowed(tmp_path):
    run, told = begun(tmp_path), "--batch-size 4 (was 8), --ngf 8 (was 4)"
    refused(tiny(run.path, max_steps=4, allow_change=True, ngf=8, batch_size=4), run, told)


def test_what_no_run_can_go_on_with_is_refused(tmp_path, monkeypatch):
    run = begun(tmp_path)
    config = tiny(run.path, max_steps=4)
    with monkeypatch.context() as patch:
        patch.setattr("dcgan.training.state.VERSION", 3)
        refused(config, run, "version 2", "version 3")
    options = json.loads(run.config.read_text())
    for name, value in (("precision", "fp9"), ("lr", "fast"), ("nz", [8]), ("ranks", "one")):
        write_object(run.config, options | {name: value})
        refused(config.replace(precision="auto"), run, str(run.config))
    run.config.write_text("[" * 100_000)
    refused(config, run, str(run.config))
    write_object(run.config, options)
    for path in run.checkpoints.iterdir():
        path.unlink()
    refused(config, run, "without checkpoints", f"--netG {run.generator}")


def test_another_set_is_refused_and_begins_a_new_epoch_if_allowed(tmp_path, numbered_set, capsys):
    ours, other = (str(numbered_set(count, 8).folder) for count in (43, 51))
    stopped_after(new_trainer(tiny(tmp_path / "run", shards=ours, max_steps=9)), 7)
    with pytest.raises(UserError, match="--shards"):
        new_trainer(tiny(tmp_path / "run", shards=other, max_steps=9))
    changed = tiny(tmp_path / "run", shards=other, max_steps=9, allow_change=True)
    trainer = new_trainer(changed)
    assert (trainer.batches.epoch, trainer.batches.batch) == (2, 0)
    assert "a new epoch begins" in capsys.readouterr().out
    stopped_after(trainer, 8)
    with pytest.raises(UserError, match=r"whose last checkpoint is of .*, and now it is"):
        new_trainer(changed.replace(shards=ours, allow_change=False))


def test_a_set_may_be_named_otherwise_and_lie_elsewhere(
    tmp_path, monkeypatch, numbered_set, capsys
):
    monkeypatch.chdir(tmp_path)
    folder = copytree(numbered_set(43, 8).folder, tmp_path / "shards")
    stopped_after(new_trainer(tiny(Path("run"), shards="shards", max_steps=9)), 7)
    capsys.readouterr()
    folder.rename("moved")
    Path("link").symlink_to("moved")
    name = "link"
    trainer = train_here(tiny(Path("run"), shards=name, max_steps=9))
    assert "changed" not in capsys.readouterr().out
    assert json.loads(trainer.run.folder.config.read_text())["shards"] == name
    whole = train_here(tiny(Path("whole"), shards=name, max_steps=9)).run.folder
    assert trainer.run.folder.generator.read_bytes() == whole.generator.read_bytes()


def test_another_set_in_the_same_place_is_refused(tmp_path, numbered_set, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = copytree(numbered_set(43, 8).folder, tmp_path / "shards")
    config = tiny(tmp_path / "run", shards=str(folder), max_steps=9)
    stopped_after(new_trainer(config), 7)
    rmtree(folder)
    other = numbered_set(51, 8)
    copytree(other.folder, folder)
    run = RunFolder(tmp_path / "run")
    error = refused(config, run, f"--run {run.path}", "--shards", "--allow-change")
    assert other.fingerprint in error.found
    options = EvaluateOptions(net=run.path, n=16, device="cpu")
    with pytest.raises(UserError) as refusal:
        evaluate(options)
    assert_four_parts(refusal.value, other.fingerprint, f"--shards {folder}")
    evaluate(options.replace(shards=str(folder)))
    assert other.fingerprint in (tmp_path / "run/metrics.jsonl").read_text()
    assert new_trainer(config.replace(allow_change=True)).batches.epoch == 2


# Files of first weights


@pytest.fixture
def begun_with(tmp_path, monkeypatch):
    """A run of two steps in a working folder, from weights in files that are gone by now."""
    monkeypatch.chdir(tmp_path)
    for name, net in (("g.pt", Generator(32, 8, 4)), ("d.pt", Discriminator(32, 4))):
        save_weights(net, Path(name))
    run = train_here(tiny(Path("run"), max_steps=2, netG="g.pt", netD="d.pt")).run.folder
    Path("g.pt").unlink()
    Path("d.pt").unlink()
    return run


@pytest.mark.parametrize("given", [{}, {"netG": "./g.pt", "netD": "$PWD/d.pt"}])
def test_first_weights_are_not_needed_any_more(begun_with, tmp_path, given):
    given = {name: path.replace("$PWD", str(tmp_path)) for name, path in given.items()}
    trainer = train_here(tiny(Path("run"), max_steps=4, **given))
    assert trainer.steps_done == 4
    options = json.loads(begun_with.config.read_text())
    assert (options["netG"], options["netD"]) == ("g.pt", "d.pt")  # still what it began with


@pytest.mark.parametrize("allow_change", [False, True])
def test_other_first_weights_are_refused_where_nothing_would_read_them(begun_with, allow_change):
    save_weights(Generator(32, 8, 4), Path("other.pt"))
    config = tiny(Path("run"), max_steps=4, netG="other.pt", allow_change=allow_change)
    refused(config, begun_with, "--netG other.pt (was g.pt)", "leave --netG out")


def test_first_weights_are_read_again_where_there_is_no_checkpoint(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    given = Generator(32, 8, 4)
    save_weights(given, Path("g.pt"))
    trainer = new_trainer(tiny(Path("run"), max_steps=2, netG="g.pt"))
    trainer.run.folder.make()  # as a process leaves it that was killed before its first checkpoint
    write_object(trainer.run.folder.config, trainer.config.to_json())
    again = new_trainer(tiny(Path("run"), max_steps=2)).run.generator.state_dict()
    assert all(torch.equal(again[name], tensor) for name, tensor in given.state_dict().items())
    Path("g.pt").unlink()
    with pytest.raises(UserError, match=r"--netG g\.pt"):
        new_trainer(tiny(Path("run"), max_steps=2))


def test_what_auto_and_random_came_to_is_kept(tmp_path):
    run = begun(tmp_path, precision="fp32", step="eager", device="cpu", seed=31)
    options = {"precision": "auto", "step": "auto", "device": "auto", "seed": "random"}
    words = flags(**TINY | options | {"shards": "synthetic", "run": run.path, "max_steps": 3})
    done = CliRunner().invoke(app, [*words, "--ema-nimg", "0"])
    assert done.exit_code == 0, done.output
    assert "seed     31\n" in done.stdout
    config = json.loads(run.config.read_text())
    assert (config["precision"], config["step"], config["device"]) == ("fp32", "eager", "cpu")


@pytest.mark.parametrize("change", [{"seed": 5}, {"ema_nimg": 0}])
def test_a_finished_run_whose_options_change_can_go_on_with_them(tmp_path, numbered_set, change):
    data = str(numbered_set(43, 8).folder)
    options = {"shards": data, "ema_nimg": 100}
    run = begun(tmp_path, **options)
    options |= change
    train_here(tiny(run.path, max_steps=2, allow_change=True, **options))
    assert run.generator_average.exists() == ("ema_nimg" not in change)
    assert train_here(tiny(run.path, max_steps=4, **options)).steps_done == 4
