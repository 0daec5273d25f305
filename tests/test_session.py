"""Options around the step: presets, step sizes, smoothing; room on the disk."""

import errno
import os
import shutil
from collections import namedtuple

import pytest
import torch
import torch.nn.functional as F
from typer.testing import CliRunner

from dcgan.options import PRESETS, TrainConfig
from dcgan.step.adversarial import AdversarialStep, discriminator_loss
from dcgan.train import app
from dcgan.training import session
from pipeline.errors import UserError
from tests.running import assert_four_parts, contents, new_trainer, tiny, train_here
from tests.steps import batch, nets

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


def test_without_a_preset_the_defaults_hold(asked):
    assert asked() == TrainConfig(shards="set")


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_sets_its_options_and_no_others(asked, name):
    config, defaults = asked("--preset", name), TrainConfig(shards="set")
    changed = {
        field: value
        for field, value in config.to_json().items()
        if value != getattr(defaults, field)
    }
    expected = {
        field: value for field, value in PRESETS[name].items() if value != getattr(defaults, field)
    }
    assert changed == expected


def test_what_is_given_wins_over_a_preset_even_if_it_is_the_default(asked):
    config = asked("--preset", "128", "--batch-size", "128", "--image-size", "64", "--lr-d", "1e-3")
    assert (config.batch_size, config.image_size, config.lr_d) == (128, 64, 1e-3)
    assert config.label_smoothing == PRESETS["128"]["label_smoothing"]


def test_an_unknown_preset_names_the_known_ones(asked):
    with pytest.raises(UserError) as refusal:
        asked("--preset", "512")
    assert_four_parts(refusal.value, "--preset 512", *PRESETS)


def test_every_preset_is_a_run_that_can_begin():
    for name, options in PRESETS.items():
        assert TrainConfig(shards="set", **options), name


# The step's


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.3])
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


def test_smoothing_reaches_the_step_and_moves_only_the_discriminators_loss(tmp_path):
    plain, smooth = (
        AdversarialStep(*nets(), label_smoothing=smoothing)(*batch(0)) for smoothing in (0.0, 0.2)
    )
    assert smooth[0] != plain[0]
    assert smooth[2:4].equal(plain[2:4])  # judged before D's update
    assert smooth[4] != plain[4]
    trainer = new_trainer(tiny(tmp_path / "run", label_smoothing=0.2))
    logits = torch.tensor([3.0]), torch.tensor([-1.0])
    assert trainer.step.update.loss_d(*logits) == discriminator_loss(*logits, label_smoothing=0.2)


@pytest.mark.parametrize(
    ("options", "rates"),
    [
        ({"lr": 0.01}, (0.01, 0.01)),
        ({"lr": 0.01, "lr_d": 0.02}, (0.02, 0.01)),
        ({"lr_g": 0.03}, (2e-4, 0.03)),
    ],
)
def test_each_net_has_its_step_size(tmp_path, options, rates):
    update = new_trainer(tiny(tmp_path / "run", **options)).step.update
    found = (update.optimizer_d.param_groups[0]["lr"], update.optimizer_g.param_groups[0]["lr"])
    assert found == rates


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


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EDQUOT])
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


def test_the_room_asked_for_is_what_checkpoints_take(tmp_path, monkeypatch):
    """Of a net whose weights are nearly all that is saved."""
    trainer = train_here(tiny(tmp_path / "run", max_steps=1, ngf=64, ndf=64, nz=100))
    (checkpoint,) = trainer.run.folder.checkpoints.glob("*.pt")
    size = checkpoint.stat().st_size
    needed = []
    monkeypatch.setattr("dcgan.training.capacity.PICTURES", 0)
    for keep in (1, 2):
        for free in range(1, 20):
            monkeypatch.setattr(
                shutil, "disk_usage", lambda path, free=free: Usage(0, 0, free * size)
            )
            try:
                new_trainer(tiny(tmp_path / "other", ngf=64, ndf=64, nz=100, keep=keep))
            except UserError:
                continue
            needed.append(free)
            break
    assert needed == [4, 5]
