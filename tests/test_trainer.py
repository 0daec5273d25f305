"""The loop: when it says, shows and saves what, and that none of this disturbs the training."""

import json
from functools import partial
from time import sleep
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from dcgan.metrics.swd import SwdMetric
from dcgan.nets.models import Discriminator, Generator, init_weights
from dcgan.nets.weights import save_weights
from dcgan.options import TrainConfig
from dcgan.rundir.folder import RunFolder, read_lines
from dcgan.sampling.generate import FIXED_SEEDS, generate, latents
from dcgan.step.adversarial import AdversarialStep
from dcgan.training import clock
from dcgan.training.checkpoint import Checkpoints
from pipeline.loading.options import LoaderOptions
from pipeline.remote.access import Access
from tests.running import (
    CountedBatches,
    cells,
    expected_files,
    files_below,
    new_trainer,
    read_losses,
    read_stats,
    run_to_end,
    tiny,
    train_here,
)

pytestmark = pytest.mark.usefixtures("undrawn")


def weights(net: torch.nn.Module) -> list[float]:
    return torch.cat([tensor.flatten() for tensor in net.state_dict().values()]).tolist()


# Options reach what they name


def test_options_reach_the_nets_and_the_optimisers(tmp_path):
    options = {"image_size": 64, "channels": 1, "nz": 5, "ngf": 2, "ndf": 3}
    trainer = new_trainer(tiny(tmp_path / "run", **options, lr=0.003, beta1=0.25, batch_size=4))
    net_g, net_d = trainer.run.generator, trainer.run.discriminator
    flags = {f"--{name.replace('_', '-')}": value for name, value in options.items()}
    assert net_g.options | net_d.options == flags
    images = net_g(torch.zeros(2, 5, 1, 1))
    assert images.shape == (2, 1, 64, 64)
    assert net_d(images).shape == (2,)
    update = trainer.step.update
    for optimizer in (update.optimizer_g, update.optimizer_d):
        (group,) = optimizer.param_groups
        assert (group["lr"], group["betas"]) == (0.003, (0.25, 0.999))
    assert next(trainer.batches).shape == trainer.step.pixels.shape == (4, 64, 64, 1)
    assert trainer.step.noise.shape == (4, 5, 1, 1)


def test_what_the_loader_is_asked_for(tmp_path, monkeypatch):
    asked: list[object] = []

    def open_loader(*arguments: object) -> CountedBatches:
        asked.extend(arguments)
        return CountedBatches()

    monkeypatch.setattr("dcgan.training.build.open_loader", open_loader)
    url, remote = "s3://bucket/set", {"shard_cache": tmp_path, "endpoint": "http://127.0.0.1:9"}
    loading = {"cache": "host", "data_timeout": 7.0} | remote
    new_trainer(tiny(tmp_path / "run", shards=url, workers=3, seed=4, channels=1, **loading))
    *first, progress = asked
    wanted = LoaderOptions(
        batch_size=8,
        image_size=32,
        channels=1,
        device=torch.device("cpu"),
        seed=4,
        dtype=torch.uint8,
        workers=3,
        cache="host",
        data_timeout=7.0,
        local_ranks=(0,),
        access=Access("http://127.0.0.1:9", tmp_path),
    )
    assert first == [url, wanted]
    assert callable(progress)


def test_training_starts_from_given_weights(tmp_path):
    """In whatever type they were saved."""
    draw = torch.Generator().manual_seed(77)
    given = Generator(32, nz=8, ngf=4), Discriminator(32, ndf=4)
    for net, name in zip(given, ("g.pt", "d.pt"), strict=True):
        init_weights(net, draw)
        save_weights(net.double(), tmp_path / name)
    own = new_trainer(tiny(tmp_path / "own"))
    trainer = new_trainer(
        tiny(tmp_path / "run", netG=str(tmp_path / "g.pt"), netD=str(tmp_path / "d.pt"))
    )
    for net, mine, theirs in zip(
        given,
        (own.run.generator, own.run.discriminator),
        (trainer.run.generator, trainer.run.discriminator),
        strict=True,
    ):
        assert weights(theirs) == weights(net)
        assert weights(theirs) != weights(mine)
        assert next(theirs.parameters()).dtype == torch.float32
    only_g = new_trainer(tiny(tmp_path / "g", netG=str(tmp_path / "g.pt")))
    assert weights(only_g.run.generator) == weights(given[0])
    assert weights(only_g.run.discriminator) == weights(own.run.discriminator)


def test_one_seed_one_result(tmp_path, monkeypatch):
    """Samples, statistics and evaluations change nothing of what is learned."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("dcgan.metrics.swd.SwdMetric", partial(SwdMetric, n=64))

    def nets(name: str, **changes: object) -> list[bytes]:
        run = train_here(tiny(tmp_path / name, max_steps=3, **changes)).run.folder
        return [run.generator.read_bytes(), run.discriminator.read_bytes()]

    first = nets("first", seed=1)
    assert nets("busy", seed=1, sample_every=1, log_every=1, evaluate_every=2) == first
    lines = read_lines(RunFolder(tmp_path / "busy").metrics)
    assert [line["nimg"] for line in lines] == [16, 24]
    other = nets("other", seed=2)
    assert other[0] != first[0]
    assert other[1] != first[1]


def test_weights_noise_and_batches_follow_the_seed_and_are_different_draws(tmp_path):
    one, again, other = (
        new_trainer(tiny(tmp_path / name, seed=seed, nz=64, ngf=8))
        for name, seed in (("one", 1), ("again", 1), ("other", 2))
    )
    for draw in (
        lambda trainer: weights(trainer.run.generator),
        lambda trainer: weights(trainer.run.discriminator),
        lambda trainer: torch.randn(64, generator=trainer.step.random).tolist(),
        lambda trainer: next(trainer.batches).tolist(),
    ):
        drawn = draw(one)
        assert drawn == draw(again)
        assert drawn != draw(other)
    first_layer = next(one.run.generator.parameters()).detach().flatten()[:64] / 0.02
    noise = torch.randn(64, generator=one.step.random)
    fixed = latents(FIXED_SEEDS, 64).flatten()[:64]
    for left, right in ((first_layer, noise), (first_layer, fixed), (noise, fixed)):
        assert np.corrcoef(left, right)[0, 1] < 0.6


def test_both_nets_are_channels_last_and_in_train_mode(tmp_path):
    trainer = train_here(tiny(tmp_path / "run", max_steps=2, sample_every=1))
    for net in (trainer.run.generator, trainer.run.discriminator):
        assert all(part.training for part in net.modules())
        for weight in net.parameters():
            if weight.ndim == 4:
                assert weight.is_contiguous(memory_format=torch.channels_last)


# What is done when


@pytest.mark.parametrize(
    ("options", "ticks", "samples", "epochs"),
    [
        ({"epochs": 2, "log_every": 4, "sample_every": 3}, [4, 8, 10], [3, 6, 9, 10], [5, 10]),
        ({"max_steps": 3, "log_every": 1, "sample_every": 2}, [1, 2, 3], [2, 3], []),
        ({"max_steps": 2, "log_every": 10**12, "sample_every": 10**12}, [2], [2], []),
        ({"dry_run": True}, [1], [1], [1]),  # all files, whatever the epochs
    ],
)
def test_ticks_samples_and_epochs(tmp_path, counted, options, ticks, samples, epochs):
    trainer = train_here(tiny(tmp_path / "run", **options))
    run, steps = trainer.run.folder, trainer.steps_done
    assert steps == ticks[-1]
    assert [record["step"] for record in read_stats(run)] == ticks
    rows = read_losses(run)
    assert rows[:, 0].tolist() == list(range(1, steps + 1))
    assert files_below(run.path) == expected_files(
        [8 * s for s in samples], [8 * e for e in epochs]
    )
    begin = 0
    for record, end in zip(read_stats(run), ticks, strict=True):
        assert (record["nimg"], record["epoch"]) == (8 * end, end // 5)
        means = [record[name] for name in ("loss_d", "loss_g", "d_x", "d_gz1", "d_gz2")]
        assert means == pytest.approx(rows[begin:end, 1:].mean(axis=0), rel=1e-6)
        begin = end
    assert counted.closed


def test_every_batch_is_trained_on_and_an_epochs_are_shown(tmp_path, counted, monkeypatch):
    trainer = new_trainer(tiny(tmp_path / "run", max_steps=12, sample_every=5, log_every=5))
    trained_on, update = [], AdversarialStep.__call__

    def noting(self, real, noise, draws):
        trained_on.append(CountedBatches.number(real))
        return update(self, real, noise, draws)

    monkeypatch.setattr(AdversarialStep, "__call__", noting)
    run_to_end(trainer)
    assert trained_on == list(range(12))
    assert counted.served == 12
    shown = cells(trainer.run.folder.reals, 32)
    assert shown[:, 0, 0, 0].tolist() == [level for level in range(5) for _ in range(8)]


def test_the_untrained_nets_pictures_are_noise_and_not_flat(tmp_path):
    """Of the average, whose BatchNorm is fitted as before every later picture."""
    trainer = train_here(tiny(tmp_path / "run", max_steps=1, ngf=8, ema_nimg=8))
    assert cells(trainer.run.folder.fakes_init, 32).std() > 5


def test_first_and_last_grid_are_those_of_the_untrained_and_the_trained_net(tmp_path):
    config = tiny(tmp_path / "run", max_steps=3, ngf=8, channels=1)
    untrained = new_trainer(tiny(tmp_path / "untrained", ngf=8, channels=1)).run.generator
    trainer = train_here(config)
    for net, path in (
        (untrained, trainer.run.folder.fakes_init),
        (trainer.run.net_to_sample(), trainer.run.folder.fakes(24)),
    ):
        expected = generate(net, latents(FIXED_SEEDS, 8)).expand(-1, -1, -1, 3)
        assert np.array_equal(cells(path, 32), expected.numpy())
    assert not np.array_equal(
        cells(trainer.run.folder.fakes_init, 32), cells(trainer.run.folder.fakes(24), 32)
    )


def test_an_epochs_nets_are_those_of_its_end(tmp_path, counted):
    trainer = train_here(tiny(tmp_path / "run", max_steps=10))
    counted.served = 0
    shorter = train_here(tiny(tmp_path / "shorter", max_steps=5))
    for steps, ended in ((5, shorter), (10, trainer)):
        for path, last in (
            (trainer.run.folder.generator_at(8 * steps), ended.run.folder.generator),
            (trainer.run.folder.discriminator_at(8 * steps), ended.run.folder.discriminator),
        ):
            kept, wanted = (torch.load(each, weights_only=True) for each in (path, last))
            assert list(kept) == list(wanted)
            assert all(torch.equal(kept[name], wanted[name]) for name in kept)
    first, second = (trainer.run.folder.generator_at(nimg).read_bytes() for nimg in (40, 80))
    assert first != second


def test_the_pace_is_that_of_training_alone(tmp_path, counted, monkeypatch):
    now = [0.0]

    def taking(seconds, call=lambda *arguments, **named: None):
        def wrapped(*arguments, **named):
            now[0] += seconds
            return call(*arguments, **named)

        return wrapped

    monkeypatch.setattr(clock, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    for name in ("records.save_grid", "records.save_losses", "run.save_weights"):
        monkeypatch.setattr(f"dcgan.training.{name}", taking(100))
    monkeypatch.setattr(Checkpoints, "save", taking(100, Checkpoints.save))
    judged = {"metric": "swd", "value": 1.0, "floor": 0.5, "n": 8, "net": "netG.pt"}
    measured = SimpleNamespace(record=lambda nimg, name: judged | {"nimg": nimg})
    metric = SimpleNamespace(measure=taking(100, lambda net: measured))
    monkeypatch.setattr("dcgan.metrics.swd.SwdMetric", lambda reals: metric)
    often = {"log_every": 4, "sample_every": 3, "evaluate_every": 3, "checkpoint_every": 0}
    trainer = new_trainer(tiny(tmp_path / "run", epochs=2, **often))
    counted.before = taking(1)
    monkeypatch.setattr(AdversarialStep, "__call__", taking(3, AdversarialStep.__call__))
    run_to_end(trainer)
    names = ("step", "step_ms", "img_per_s", "data_wait_pct")
    paces = [[record[name] for name in names] for record in read_stats(trainer.run.folder)]
    # The first tick waits for a fifth batch, which reals.png shows and the second tick trains on
    wanted = [[4, 4250, 8 / 4.25, 500 / 17], [8, 3750, 8 / 3.75, 20], [10, 4000, 2, 25]]
    assert paces == [pytest.approx(pace) for pace in wanted]


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_a_slow_loader_is_seen_as_data_wait(tmp_path, counted, device):
    options = {"device": device, "max_steps": 8, "log_every": 4}
    quick = train_here(tiny(tmp_path / "quick", **options))
    counted.before = lambda number: sleep(0.1)
    slow = train_here(tiny(tmp_path / "slow", **options))
    pairs = list(zip(read_stats(quick.run.folder), read_stats(slow.run.folder), strict=True))
    assert len(pairs) == 2
    for fast, late in pairs:
        assert fast["data_wait_pct"] < 40
        waited_ms = late["data_wait_pct"] / 100 * late["step_ms"]
        assert late["step_ms"] >= waited_ms >= 75  # on CUDA, the sleep begins while a step runs


# What is written down at the start


def test_config_and_environment_are_written_before_the_first_batch(tmp_path, counted):
    run = RunFolder(tmp_path / "run")

    def look(number: int) -> None:
        config = json.loads(run.config.read_text())
        assert config.pop("shard_set") == "counted"
        assert config.pop("tuning")["joint"] is False
        assert TrainConfig(**config) == tiny(run.path, max_steps=2)
        assert json.loads(run.environment.read_text())["device"] == "cpu"
        assert not run.reals.exists()

    counted.before = look
    train_here(tiny(run.path, max_steps=2))
    assert counted.served == 5  # an epoch, for reals.png
    assert run.reals.exists()
