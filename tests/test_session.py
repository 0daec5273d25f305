"""Options around the step: presets, step sizes, smoothing; room on the disk."""

import errno
import os
import shutil
from collections import namedtuple
from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F
from typer.testing import CliRunner

from dcgan.options import PRESETS, TrainConfig
from dcgan.step.adversarial import discriminator_loss
from dcgan.train import app
from dcgan.training import session
from pipeline.errors import UserError
from tests.running import assert_four_parts, contents, new_trainer, tiny, train_here

pytestmark = pytest.mark.usefixtures("undrawn")

CLI = CliRunner()


@pytest.fixture
def asked(monkeypatch):
    """What a command line comes to."""
    configs: list[TrainConfig] = []

    def train(config: TrainConfig) -> int:
        configs.append(config)
        return 0

    monkeypatch.setattr(session, "train", train)

    def ask(*words):
        result = CLI.invoke(app, ["--shards", "set", *words])
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return configs[-1]

    return ask


@pytest.mark.parametrize("name", [None, *PRESETS])
def test_a_preset_sets_its_options_and_no_others(asked, name):
    preset = {} if name is None else PRESETS[name]
    config = asked(*([] if name is None else ["--preset", name]))
    assert config == TrainConfig(shards="set", **preset)


def test_what_is_given_wins_over_a_preset_even_if_it_is_the_default(asked):
    config = asked("--preset", "256", "--batch-size", "128", "--image-size", "64", "--lr-d", "1e-3")
    assert (config.batch_size, config.image_size, config.lr_d) == (128, 64, 1e-3)
    assert config.label_smoothing == PRESETS["256"]["label_smoothing"]
    with pytest.raises(UserError) as refusal:
        asked("--preset", "512")
    assert_four_parts(refusal.value, "--preset 512", *PRESETS)


# The step's


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_smoothing_is_cross_entropy_with_that_label(smoothing):
    draw = torch.Generator().manual_seed(1)
    logits_x, logits_gz = (
        torch.randn(64, generator=draw, dtype=torch.float64) * 9 for _ in range(2)
    )
    expected = F.binary_cross_entropy_with_logits(
        logits_x, torch.full_like(logits_x, 1 - smoothing)
    ) + F.binary_cross_entropy_with_logits(logits_gz, torch.zeros_like(logits_gz))
    found = discriminator_loss(logits_x, logits_gz, smoothing)
    assert found.item() == pytest.approx(expected.item(), rel=1e-10)


def test_smoothing_and_each_nets_step_size_reach_the_step(tmp_path):
    options = {"label_smoothing": 0.2, "lr": 0.01, "lr_d": 0.02}
    update = new_trainer(tiny(tmp_path / "run", **options)).step.update
    found = (update.optimizer_d.param_groups[0]["lr"], update.optimizer_g.param_groups[0]["lr"])
    assert found == (0.02, 0.01)
    logits = torch.tensor([3.0]), torch.tensor([-1.0])
    assert update.loss_d(*logits) == discriminator_loss(*logits, label_smoothing=0.2)


# Room

Usage = namedtuple("Usage", "total used free")


def test_too_full_a_disk_is_told_before_anything_is_written(tmp_path, monkeypatch):
    asked_of = []

    def usage(path):
        asked_of.append(path)
        return Usage(10**9, 10**9, 10**6)

    monkeypatch.setattr(shutil, "disk_usage", usage)
    with pytest.raises(UserError) as told:
        new_trainer(tiny(tmp_path / "new" / "run"))
    assert_four_parts(told.value, f"--run {tmp_path}", "1 MB free", "--keep 2")
    assert asked_of == [tmp_path]  # the nearest folder that there is
    assert not (tmp_path / "new").exists()


def test_the_room_asked_for_is_what_checkpoints_take(tmp_path, monkeypatch):
    """Of nets whose weights are nearly all that is saved."""
    nets = {"ngf": 32, "ndf": 32, "nz": 100, "cache": "off"}
    trainer = train_here(tiny(tmp_path / "run", max_steps=1, **nets))
    (checkpoint,) = trainer.run.folder.checkpoints.glob("*.pt")
    monkeypatch.setattr("dcgan.training.capacity.PICTURES", 0)
    size = checkpoint.stat().st_size
    for keep, needed in ((1, 4), (2, 5)):
        for free in (needed * size, (needed - 1) * size):
            monkeypatch.setattr(shutil, "disk_usage", lambda path, free=free: Usage(0, 0, free))
            config = tiny(tmp_path / "other", keep=keep, **nets)
            with nullcontext() if free == needed * size else pytest.raises(UserError):
                new_trainer(config)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS])
def test_a_disk_that_takes_no_more_is_told_plainly(tmp_path, monkeypatch, number):
    def full(path, record):
        raise OSError(number, os.strerror(number), str(path))

    monkeypatch.setattr("dcgan.training.records.append_line", full)
    with pytest.raises(UserError) as told:
        session.train(tiny(tmp_path / "run", max_steps=2))
    assert_four_parts(told.value, "stats.jsonl", os.strerror(number), "then resume")


def test_two_processes_do_not_train_one_run(tmp_path):
    first = new_trainer(tiny(tmp_path / "run", max_steps=2))
    first.run.folder.make()
    with first.run.folder.locked():
        before = contents(tmp_path / "run")
        with pytest.raises(UserError) as refusal:
            train_here(tiny(tmp_path / "run", max_steps=2))
        assert_four_parts(refusal.value, f"--run {tmp_path / 'run'}", "another process")
        assert contents(tmp_path / "run") == before
    assert train_here(tiny(tmp_path / "run", max_steps=2)).steps_done == 2
