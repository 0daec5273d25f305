"""Grids and curves."""

import numpy as np
import pytest
import torch
from PIL import Image

from dcgan.pictures import save_grid, save_losses
from tests.running import cells


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("count", "shown"), [(2, 2), (8, 8), (9, 16), (64, 64)])
def test_image_i_stands_in_row_and_column_of_i(tmp_path, count, shown, channels):
    random = np.random.default_rng(count)
    images = random.integers(1, 256, (count, 16, 16, channels), dtype=np.uint8)
    path = tmp_path / "grid.png"
    save_grid(torch.from_numpy(images), path)
    with Image.open(path) as grid:
        assert (grid.format, grid.mode) == ("PNG", "RGB")
        assert grid.width == min(count, 8) * 18 + 2
    found = cells(path, 16)
    assert len(found) == shown
    assert np.array_equal(found[:count], np.broadcast_to(images, (count, 16, 16, 3)))
    assert not found[count:].any()


def test_one_image_stands_alone(tmp_path):
    image = torch.randint(1, 256, (1, 16, 16, 3), dtype=torch.uint8)
    save_grid(image, tmp_path / "one.png")
    found = np.asarray(Image.open(tmp_path / "one.png"))
    assert np.array_equal(found, image[0].numpy())


STEPS = 200
SPIKES = np.full((STEPS, 2), 1.0)
SPIKES[3] = np.nan, np.inf

LOSSES = {
    "one step": np.array([[1.4, 0.7]]),
    "many": np.random.default_rng(0).random((STEPS, 2)),
    "zeros": np.zeros((STEPS, 2)),
    "one not finite": SPIKES,
    "D never finite": np.stack([np.full(STEPS, np.nan), np.ones(STEPS)], axis=1),
    "none finite": np.full((STEPS, 2), np.nan),
    "infinite": np.array([[np.inf, -np.inf]] * STEPS),
    "huge": np.array([[3e38, 1e-38]] * STEPS),
}


@pytest.mark.parametrize("losses", LOSSES.values(), ids=LOSSES.keys())
def test_curves_are_drawn_whatever_the_losses(tmp_path, losses):
    path = tmp_path / "losses.png"
    save_losses(losses.astype(np.float32), path)
    with Image.open(path) as picture:
        assert (picture.format, picture.size) == ("PNG", (1000, 500))
    assert [entry.name for entry in tmp_path.iterdir()] == ["losses.png"]


def drawn(losses: object, path: object) -> np.ndarray:
    save_losses(np.asarray(losses, dtype=np.float32), path)  # type: ignore[arg-type]
    return np.asarray(Image.open(path).convert("RGB")).astype(int)  # type: ignore[arg-type]


def coloured(picture: np.ndarray, blue: bool) -> np.ndarray:
    """Rows of the picture's blue or orange pixels, from the top; the legend is right of 850."""
    red, _, azure = np.moveaxis(picture[:, :850], -1, 0)
    return np.nonzero(azure - red > 100 if blue else red - azure > 100)[0]


def test_both_losses_are_there_in_their_colours(tmp_path):
    picture = drawn([[1.0, 3.0]] * STEPS, tmp_path / "a.png")
    d, g = coloured(picture, blue=True), coloured(picture, blue=False)
    assert len(d) > 500
    assert len(g) > 500
    assert g.mean() < d.mean() - 50  # G's is the higher loss here


def test_a_spike_does_not_flatten_the_rest(tmp_path):
    steady = np.array([[1.0, 3.0]] * 1000)
    spiked = steady.copy()
    spiked[500] = 1e6
    heights = [
        np.median(coloured(drawn(losses, tmp_path / "a.png"), blue=False))
        for losses in (steady, spiked)
    ]
    assert heights[1] == pytest.approx(heights[0], abs=30)
