"""`dcgan-train` as people run it: what it prints, what it writes, how it ends."""

import json
import re
from contextlib import chdir
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from dcgan.nets.models import Discriminator, Generator, count_parameters
from dcgan.nets.weights import load_weights
from dcgan.rundir.folder import RunFolder
from dcgan.train import app
from tests.pictures import numbers
from tests.running import (
    DCGAN_TRAIN,
    STATUS,
    TINY,
    cells,
    contents,
    expected_files,
    files_below,
    flags,
    read_losses,
    read_stats,
    run_command,
)


@pytest.fixture(scope="module")
def real(tmp_path_factory, numbered_set):
    """Two epochs on a shard set of 40 images, without a name for the run."""
    cwd, shards = tmp_path_factory.mktemp("real"), numbered_set(40, 16).folder
    options = {**TINY, "lr": 0.001, "beta1": 0.4, "seed": 31, "epochs": 2}
    often = {"log_every": 4, "sample_every": 3}
    words = flags(shards=shards, **options, **often)
    done = run_command(DCGAN_TRAIN, *words, cwd=cwd)
    assert done.returncode == 0, done.stderr
    return SimpleNamespace(
        cwd=cwd, run=RunFolder(cwd / "runs/0001"), words=words, out=done.stdout, err=done.stderr
    )


@pytest.fixture(scope="module")
def dry(real):
    """A dry run in grey on noise, started where that run stands, in this process."""
    before = contents(real.run.path)
    options = {**TINY, "image_size": 64, "channels": 1, "seed": "random", "dry_run": True}
    with chdir(real.cwd):
        done = CliRunner().invoke(app, flags(shards="synthetic", ema_nimg=0, **options))
    assert done.exit_code == 0, done.output
    assert contents(real.run.path) == before
    return SimpleNamespace(run=RunFolder(real.cwd / "runs/0002"), out=done.stdout)


def test_what_is_printed_stands_in_the_log_and_names_what_was_written(real):
    assert real.run.log.read_text() == real.out
    assert real.err == ""
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f]", real.out), "escape codes, or a bar"
    opening, started, _ = real.out.partition("Starting training\n")
    assert started
    lines = opening.splitlines()
    assert [line.split() for line in lines[:2]] == [["run", "runs/0001"], ["seed", "31"]]
    name, _, options = lines[2].partition("  ")
    assert name == "options"
    config = json.loads(real.run.config.read_text())
    assert config.pop("labels") is None
    assert set(config.pop("tuning")) >= {"layers", "joint"}  # the log has a line of its own for it
    given = (f"{option} {value}" for option, value in config.items() if value is not None)
    assert options == ", ".join(given)
    for net in (Generator(32, nz=8, ngf=4), Discriminator(32, ndf=4)):
        assert f"{net}, {count_parameters(net):,} parameters\n" in opening
    end, *files, following = real.out.splitlines()[-5:]
    assert following.split()[0] == "next"
    assert re.fullmatch(r"Training finished: 10 steps, 80 images, total time 0:\d\d:\d\d", end)
    assert [line.split()[0] for line in files] == ["samples", "curves", "nets"]
    named = [path for line in files for path in line.split(maxsplit=1)[1].split(", ")]
    assert named[0] == "runs/0001/samples/fakes-000000080.png"
    assert len(named) == 5
    assert all((real.cwd / path).is_file() for path in named)


def test_a_status_line_a_tick(real):
    lines = [line for line in real.out.splitlines() if "Loss_D" in line]
    found = [re.fullmatch(STATUS, line) for line in lines]
    values = [[text.replace(",", "") for text in match.groups()] for match in found if match]
    assert [[int(text) for text in line[:4]] for line in values] == [
        [0, 2, 4, 5],
        [1, 2, 3, 5],
        [2, 2, 0, 5],
    ]
    for line, record in zip(values, read_stats(real.run), strict=True):
        printed = [float(text) for text in line[4:12]]
        names = ("loss_d", "loss_g", "d_x", "d_gz1", "d_gz2")
        assert printed[:5] == pytest.approx([record[name] for name in names], abs=6e-5)
        assert printed[5] == pytest.approx(record["img_per_s"], abs=0.51)
        assert printed[6] == pytest.approx(record["step_ms"], abs=0.051)
        assert printed[7] == pytest.approx(record["data_wait_pct"], abs=0.051)
        assert record["img_per_s"] * record["step_ms"] == pytest.approx(8 * 1000)
        assert 0 < record["data_wait_pct"] < 100
    assert values[-1][-1] == "0:00:00"


def test_files_of_a_run(real, dry):
    expected = expected_files(samples=[24, 48, 72, 80], epochs=[40, 80], average=True)
    assert files_below(real.run.path) == expected
    assert files_below(dry.run.path) == expected_files(samples=[8], epochs=[8])
    assert len(read_losses(dry.run)) == len(read_stats(dry.run)) == 1


def test_config_and_environment_say_what_was_asked_for_and_where(real, dry):
    config = json.loads(real.run.config.read_text())
    asked = dict(zip(real.words[::2], real.words[1::2], strict=True))
    assert len(asked) == 16
    for flag, value in asked.items():
        assert str(config[flag.removeprefix("--").replace("-", "_")]) == value
    told = json.loads(real.run.environment.read_text())
    assert told["command"][1:] == real.words
    assert told["device"] == "cpu"
    seed = dry.out.splitlines()[1]
    assert re.fullmatch(r"seed     \d+", seed)
    assert json.loads(dry.run.config.read_text())["seed"] == int(seed.split()[1])


def test_table_and_ticks_agree(real):
    records, rows = read_stats(real.run), read_losses(real.run)
    assert rows[:, 0].tolist() == list(range(1, 11))
    assert np.isfinite(rows).all()
    assert ((rows[:, 3:] > 0) & (rows[:, 3:] < 1)).all()
    places = [("step", 4, 8, 10), ("epoch", 0, 1, 2), ("nimg", 32, 64, 80)]
    for name, *values in places:
        assert [record[name] for record in records] == values
    for record, (begin, end) in zip(records, [(0, 4), (4, 8), (8, 10)], strict=True):
        means = [record[name] for name in ("loss_d", "loss_g", "d_x", "d_gz1", "d_gz2")]
        assert means == pytest.approx(rows[begin:end, 1:].mean(axis=0), rel=1e-6)


def test_reals_are_images_of_the_set_and_grids_show_64_fakes(real):
    shown = numbers(torch.from_numpy(cells(real.run.reals, 32)))
    assert sorted(shown) == list(range(40))
    grids = [real.run.fakes_init, *(real.run.fakes(nimg) for nimg in (24, 48, 72, 80))]
    assert all(cells(path, 32).shape == (64, 32, 32, 3) for path in grids)
    assert len({path.read_bytes() for path in grids}) == 5
    with Image.open(real.run.losses_png) as picture:
        assert picture.size == (1000, 500)


def test_grey_at_64_is_grey(dry):
    for path, count in ((dry.run.reals, 64), (dry.run.fakes(8), 64), (dry.run.fakes_init, 64)):
        images = cells(path, 64)
        assert images.shape == (count, 64, 64, 3)
        assert np.array_equal(images, images[..., :1].repeat(3, axis=-1))
    assert np.ptp(cells(dry.run.reals, 64)) > 0  # an untrained net's may be all of one level


def test_nets_load_without_running_code(real, dry):
    for run, size, channels in ((real.run, 32, 3), (dry.run, 64, 1)):
        for net, last in (
            (Generator(size, nz=8, ngf=4, channels=channels), run.generator),
            (Discriminator(size, ndf=4, channels=channels), run.discriminator),
        ):
            load_weights(net, last, "")  # weights_only=True, and every name and shape fits
            epochs = torch.load(max(run.nets.glob(f"{last.stem}-*.pt")), weights_only=True)
            assert all(epochs[name].equal(tensor) for name, tensor in net.state_dict().items())
