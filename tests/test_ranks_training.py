"""`dcgan-train` in several processes: one run, the same weights on all, and an end for all."""

import json
import signal
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from dcgan.options import RunLabels
from dcgan.rundir.folder import RunFolder
from dcgan.training.build import build_nets, stream
from pipeline.errors import UserError
from pipeline.images.pixels import to_signed
from pipeline.loading.loader import Loader
from pipeline.loading.options import LoaderOptions
from pipeline.shards.labels import LabelTable
from pipeline.shards.manifest import Recipe
from pipeline.shards.shard_set import ShardSet
from tests.packing_runs import waited
from tests.pictures import numbered_pictures, pack_pictures
from tests.ranks import end, start
from tests.reference.shared_step import shared_step
from tests.running import TINY, cells, contents, flags, new_trainer, read_losses, read_stats, tiny

RANKS, STEPS = 2, 14
OPTIONS = TINY | {"max_steps": STEPS, "log_every": 4, "ema_nimg": 0, "checkpoint_every": 0}


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """43 images in three classes: an epoch of two ranks is five steps."""
    folder = tmp_path_factory.mktemp("ranks") / "set"
    recipe = Recipe(store="raw", crop="centre", size=32)
    labels = LabelTable("classes", ("a", "b", "c"), (np.arange(43) % 3).astype(np.int32))
    return pack_pictures(folder, numbered_pictures(43), labels, per_shard=8, recipe=recipe)


def words(shards: ShardSet, run: Path, **changes):
    options = OPTIONS | {"shards": shards.folder, "run": run} | changes
    return ["-m", "dcgan.train", *flags(**options)]


def train(shards, run, **changes):
    return end(start(RANKS, *words(shards, run, **changes)))


@pytest.fixture(scope="module")
def pair(shards, tmp_path_factory):
    """A conditional run that one rank's SIGTERM stopped, and how its processes ended each time."""
    run = RunFolder(tmp_path_factory.mktemp("pair") / "run")
    processes = start(RANKS, *words(shards, run.path, conditional=True))
    assert waited(lambda: run.stats.exists(), 60)
    processes[1].send_signal(signal.SIGTERM)
    stopped = end(processes)
    return run, stopped, train(shards, run.path, conditional=True)


# One run


def test_a_signal_to_one_stops_all_and_they_go_on_together(pair):
    run, stopped, ended = pair
    assert [status for status, _, _ in stopped] == [0, 128 + signal.SIGTERM]
    assert "Stopped with another rank" in stopped[0][1]
    assert "resumes from here" in stopped[0][1]
    assert [status for status, _, _ in ended] == [0, 0], ended
    assert "resumed  after" in ended[0][1]
    for (_, said, complained), (_, quiet, also_quiet) in (stopped, ended):
        assert (quiet, also_quiet, complained) == ("", "", "")
        assert "ranks    2 processes, 4 images of each batch" in said
    assert run.log.read_text() == stopped[0][1] + ended[0][1]


def test_there_is_one_run(pair):
    run, *_ = pair
    assert json.loads(run.config.read_text())["ranks"] == RANKS
    last = read_stats(run)[-1]
    assert (last["step"], last["nimg"], last["epoch"]) == (STEPS, 8 * STEPS, STEPS // 5)
    assert len(read_losses(run)) == STEPS
    assert len(set(map(bytes, cells(run.reals, 32)))) == 40  # the images of both
    state = torch.load(max(run.checkpoints.glob("*.pt")), weights_only=True)
    assert state["step"]["random"].shape[0] == RANKS
    assert not torch.equal(*state["step"]["random"])


def test_they_train_as_one_process_would_with_the_batch_in_parts(shards, pair):
    """Images, labels, noise, gradients and losses of both ranks, despite the signal."""
    labels = RunLabels(kind="classes", names=("a", "b", "c"), rows=())
    config = tiny(Path("unused"), ema_nimg=0, conditional=True, labels=labels)
    cpu = torch.device("cpu")
    generator, discriminator = build_nets(config, cpu)
    optimizers = [
        torch.optim.Adam(net.parameters(), lr=2e-4, betas=(0.5, 0.999))
        for net in (discriminator, generator)
    ]
    options = LoaderOptions(
        4, 32, seed=999, dtype=torch.uint8, workers=1, num_ranks=RANKS, labels=True
    )
    loaders = [Loader(shards, replace(options, rank=rank)) for rank in range(RANKS)]
    noises = [stream(999, name, cpu) for name in ("noise", "noise/rank 1")]
    losses = []
    for _ in range(STEPS):
        parts = []
        for loader, random in zip(loaders, noises, strict=True):
            pixels, of_real = next(loader)
            noise = torch.randn(4, config.nz, 1, 1, generator=random)
            assert loader.label_table is not None
            of_fakes = loader.label_table[torch.randint(len(shards), (4,), generator=random)]
            parts.append((to_signed(pixels), noise, of_real, of_fakes))
        losses.append(shared_step(generator, discriminator, optimizers[0], optimizers[1], parts))
    for loader in loaders:
        loader.close()
    run, *_ = pair
    found = torch.from_numpy(read_losses(run)[:, 1:3].copy())
    torch.testing.assert_close(found, torch.tensor(losses, dtype=torch.float64), rtol=1e-4, atol=0)
    for net, path in ((generator, run.generator), (discriminator, run.discriminator)):
        saved = torch.load(path, weights_only=True)
        for name, parameter in net.named_parameters():
            torch.testing.assert_close(saved[name], parameter.detach(), rtol=0, atol=1e-5)


def test_another_number_of_processes_is_refused_with_the_reason(shards, pair):
    run, *_ = pair
    before = contents(run.path)
    with pytest.raises(UserError) as refusal:
        new_trainer(tiny(run.path, **OPTIONS | {"shards": str(shards.folder), "conditional": True}))
    told = str(refusal.value)
    assert "a run of 2 processes, and now there is 1" in told
    assert "its own noise" in told
    assert "torchrun, 2 processes in all, or give --allow-change" in told
    assert contents(run.path) == before


# Ends


def test_damage_that_one_rank_meets_ends_all_with_its_words(tmp_path):
    broken = pack_pictures(tmp_path / "set", numbered_pictures(43), per_shard=8)
    tar = broken.tars[-1]  # of the second rank's share
    with tar.open("r+b") as file:
        size = tar.stat().st_size
        for place in range(0, size, 512):
            file.seek(place)
            if file.read(2) == b"\xff\xd8":
                file.seek(place)
                file.write(bytes(256))
    (status, _, told), (other, _, quiet) = train(
        broken, tmp_path / "run", cache="off", checkpoint_every=60
    )
    assert (status, other, quiet) == (1, 1, "")
    assert "Traceback" not in told
    assert tar.name in told
    assert "(rank 1)" in told
    newest = max((tmp_path / "run" / "checkpoints").glob("*.pt"))
    assert newest.with_suffix(".json").exists()
    # The first rank had a batch for the step that did not come
    state = torch.load(newest, weights_only=True)
    assert state["batches"]["batch"] == state["steps"] == int(newest.stem) // TINY["batch_size"]


def test_a_run_that_is_to_be_started_again_needs_a_name(monkeypatch, capsys):
    from dcgan import train as command

    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "3")
    monkeypatch.setattr(sys, "argv", ["dcgan-train", "--shards", "synthetic"])
    with pytest.raises(SystemExit) as ended:
        command.main()
    assert ended.value.code == 1
    assert "give --run" in capsys.readouterr().err
