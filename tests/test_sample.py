"""`dcgan-sample`: one seed, one picture, whatever is asked for beside it."""

import hashlib
import shutil
import sys
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import dcgan.sampling.latents
import dcgan.sampling.sample
from dcgan.cli import version
from dcgan.nets.weights import save_weights
from dcgan.sample import main, sample
from dcgan.sampling.generate import BATCH, FIXED_SEEDS, generate, latents
from dcgan.sampling.pictures import save_image
from pipeline.images.pixels import to_uint8
from tests.pictures import names_in
from tests.reference.tutorial import TutorialGenerator
from tests.running import cells
from tests.sample_runs import SIDE, make_run, pixels
from tests.test_animation import frames_of
from tests.test_generate import NZ, trained


@pytest.fixture
def whole_run(tmp_path, monkeypatch):
    """A run in the current folder, and its two nets."""
    monkeypatch.chdir(tmp_path)
    return make_run(Path("0007"))


@pytest.fixture
def run(whole_run):
    return whole_run[0]


# Image i depends on seed i alone


def test_a_seed_gives_the_same_file_in_any_company(whole_run, run):
    for folder, seeds in (("all", "0-40"), ("one", "7"), ("few", "39,7,3-5"), ("end", "30-40")):
        sample(net=run.path, seeds=seeds, each=Path(folder), device="cpu")
    together = {path.name: path.read_bytes() for path in Path("all").iterdir()}
    assert sorted(together) == [f"seed{seed:06d}.png" for seed in range(41)]
    assert len({hashlib.sha256(data).digest() for data in together.values()}) == 41
    for folder, number in (("one", 1), ("few", 5), ("end", 11)):
        found = {path.name: path.read_bytes() for path in Path(folder).iterdir()}
        assert len(found) == number
        assert found.items() <= together.items()
    expected = generate(whole_run[2], latents(range(41), NZ)).numpy()
    for seed in range(41):
        assert np.array_equal(pixels(Path(f"all/seed{seed:06d}.png")), expected[seed])


def test_files_come_one_by_one(run, monkeypatch):
    """A million seeds need no more memory than a batch of them."""
    saved: list[weakref.ref[torch.Tensor]] = []
    taken = most_ahead = most_held = 0

    def watched_latents(seeds, nz):
        nonlocal taken, most_ahead
        taken += len(seeds)
        most_ahead = max(most_ahead, taken - len(saved))
        return latents(seeds, nz)

    def watched_save(image, path, texts):
        nonlocal most_held
        save_image(image, path, texts)
        saved.append(weakref.ref(image))
        most_held = max(most_held, sum(each() is not None for each in saved))

    monkeypatch.setattr(dcgan.sampling.latents, "latents", watched_latents)
    monkeypatch.setattr(dcgan.sampling.sample, "save_image", watched_save)
    sample(net=run.path, seeds="0-99", each=Path("each"), device="cpu")
    assert taken == len(saved) == len(names_in(Path("each"))) == 100
    assert most_ahead <= BATCH + 1
    assert most_held <= BATCH + 1


def test_the_default_is_the_grid_of_training(whole_run, run, capsys):
    sample(net=run.path, device="cpu")
    assert capsys.readouterr().out == "64 images in samples.png, row by row\n"
    expected = generate(whole_run[2], latents(FIXED_SEEDS, NZ)).numpy()
    assert np.array_equal(cells(Path("samples.png"), SIDE), expected)
    with Image.open("samples.png") as grid:
        assert grid.width == 8 * (SIDE + 2) + 2


def test_grid_and_files_at_once(run):
    sample(net=run.path, seeds="5,3,90-92", out=Path("g.PNG"), each=Path("a/b"), device="cpu")
    in_grid = cells(Path("g.PNG"), SIDE)
    for place, seed in enumerate([5, 3, 90, 91, 92]):
        assert np.array_equal(in_grid[place], pixels(Path(f"a/b/seed{seed:06d}.png")))
    assert not Path("samples.png").exists()


@pytest.mark.parametrize(
    ("seeds", "across", "down"), [("0-4", 5, 1), ("0-63", 8, 8), ("0-64", 9, 8)]
)
def test_grids_are_eight_across_and_large_ones_square(run, seeds, across, down):
    sample(net=run.path, seeds=seeds, out=Path("g.png"), device="cpu")
    with Image.open("g.png") as grid:
        assert grid.size == (across * (SIDE + 2) + 2, down * (SIDE + 2) + 2)


# Which net


@pytest.mark.parametrize("raw", [False, True])
def test_the_moving_average_is_drawn_unless_the_raw_net_is_asked_for(whole_run, run, raw):
    sample(net=run.path, seeds="0-3", out=Path("g.png"), raw_net=raw, device="cpu")
    of_raw, of_average = (generate(net, latents(range(4), NZ)).numpy() for net in whole_run[1:])
    assert not np.array_equal(of_raw, of_average)
    assert np.array_equal(cells(Path("g.png"), SIDE), of_raw if raw else of_average)


def test_a_run_without_average_has_its_raw_net(whole_run, run):
    run.generator_average.unlink()
    sample(net=run.path, seeds="0-3", out=Path("g.png"), device="cpu")
    assert np.array_equal(
        cells(Path("g.png"), SIDE), generate(whole_run[1], latents(range(4), NZ)).numpy()
    )


def test_a_net_of_pytorch_examples_draws_what_it_draws_there(run):
    theirs = TutorialGenerator(NZ, 8)
    theirs.load_state_dict(trained(64, 8).state_dict())
    state = {f"module.{name}": tensor for name, tensor in theirs.state_dict().items()}
    torch.save(state, "netG_epoch_3.pth")
    sample(net=Path("netG_epoch_3.pth"), seeds="0-9", each=Path("each"), device="cpu")
    with torch.no_grad():
        expected = to_uint8(theirs.eval()(latents(range(10), NZ))).numpy().astype(int)
    assert expected.std() > 30
    found = np.stack([pixels(Path(f"each/seed{seed:06d}.png")) for seed in range(10)])
    # Another order of the sums: a value on the border between two levels may fall to either
    assert abs(found - expected).max() <= 1
    assert (found == expected).mean() > 0.999


@pytest.mark.parametrize(("size", "channels"), [(32, 1), (128, 3)])
def test_size_and_channels_are_those_of_the_file(run, size, channels):
    net = trained(size, 2, channels)
    save_weights(net, Path("net.pt"))
    sample(net=Path("net.pt"), seeds="2", each=Path("each"), device="cpu")
    found = pixels(Path("each/seed000002.png")).reshape(size, size, channels)
    assert np.array_equal(found, generate(net, latents([2], NZ))[0].numpy())


# What a picture says of itself


def test_pictures_say_where_they_come_from(run):
    sample(net=run.path, seeds="3-5,9", out=Path("g.png"), each=Path("each"), device="cpu")
    common = {
        "Software": f"dcgan-shards {version()}",
        "Run": "0007",
        "Net": "netG_ema.pt",
        "Net SHA-256": hashlib.sha256(run.generator_average.read_bytes()).hexdigest(),
    }
    for name, own in (("g.png", {"Seeds": "3-5,9"}), ("each/seed000009.png", {"Seed": "9"})):
        with Image.open(name) as picture:
            assert picture.info == common | own


def test_a_picture_of_a_file_names_no_run(run):
    shutil.copy(run.generator, "my net.pt")
    sample(net=Path("my net.pt"), seeds="1", each=Path("each"), device="cpu")
    with Image.open("each/seed000001.png") as picture:
        assert picture.info["Net"] == "my net.pt"
        assert "Run" not in picture.info


# Walks


def test_a_walk_ends_at_the_seeds_own_images(whole_run, run):
    sample(net=run.path, interpolate="12:34:56", frames=9, out=Path("walk.webp"), device="cpu")
    expected = generate(whole_run[2], latents([12, 34, 56], NZ)).numpy()
    found = frames_of(Path("walk.webp"))[0][:, ::8, ::8]  # which are enlarged
    assert len(found) == 9
    assert np.array_equal(found[0], expected[0])
    assert np.array_equal(found[4], expected[1])
    assert np.array_equal(found[8], expected[2])
    between = abs(found[2] - expected[:2].astype(int)).mean(axis=(1, 2, 3))
    assert between.min() > 1


def test_sixty_frames_unless_told(run, capsys):
    sample(net=run.path, interpolate="1:2", out=Path("walk.gif"), device="cpu")
    assert capsys.readouterr().out == "60 frames in walk.gif\n"
    frames, shown = frames_of(Path("walk.gif"))
    assert frames.shape[1:] == (8 * SIDE, 8 * SIDE, 3)
    assert sum(shown) == 60 * 50  # equal neighbours are one longer frame


# The command


def test_the_command_draws_and_refuses_plainly(run, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["dcgan-sample", "0007", "--seeds", "0-9", "--each", "each"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert (ended.value.code, *capsys.readouterr()) == (0, "10 images in each/\n", "")
    assert len(names_in(Path("each"))) == 10
    monkeypatch.setattr(sys, "argv", ["dcgan-sample", "0007", "--seeds", "9-0"])
    with pytest.raises(SystemExit) as ended:
        main()
    out, err = capsys.readouterr()
    assert (ended.value.code, out) == (1, "")
    assert err.startswith("error: --seeds 9-0\n  found ")
