"""Grids and curves."""

import numpy as np
import pytest
import torch
from PIL import Image

from dcgan.sampling.pictures import (
    POINTS,
    _extremes,
    _running_mean,
    save_grid,
    save_image,
    save_losses,
    save_reals_vs_fakes,
)
from pipeline.errors import UserError
from tests.pictures import names_in
from tests.running import assert_four_parts, cells


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


def test_a_loss_below_zero_is_in_the_picture(tmp_path):
    # Binary cross-entropy has none; a loss of one's own may
    picture = drawn([[1.0, -3.0]] * STEPS, tmp_path / "a.png")
    d, g = coloured(picture, blue=True), coloured(picture, blue=False)
    assert len(g) > 500
    assert g.mean() > d.mean() + 50


# With words


def test_a_picture_says_what_it_was_told(tmp_path):
    texts = {"Seed": "12", "Run": "Läufe/日本"}
    image = torch.randint(0, 256, (16, 16, 3), dtype=torch.uint8)
    save_image(image, tmp_path / "one.png", texts)
    save_grid(image[None], tmp_path / "grid.png", texts=texts)
    for name in ("one.png", "grid.png"):
        with Image.open(tmp_path / name) as picture:
            picture.load()
            assert picture.info == texts
    assert np.array_equal(np.asarray(Image.open(tmp_path / "one.png")), image.numpy())


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (3, "RGB")])
def test_one_image_keeps_its_pixels(tmp_path, channels, mode):
    image = torch.randint(0, 256, (16, 16, channels), dtype=torch.uint8)
    save_image(image, tmp_path / "one.png")
    with Image.open(tmp_path / "one.png") as picture:
        assert (picture.format, picture.mode, picture.info) == ("PNG", mode, {})
        assert np.array_equal(np.asarray(picture).reshape(image.shape), image.numpy())


def test_a_grid_of_other_columns(tmp_path):
    images = torch.randint(1, 256, (6, 16, 16, 3), dtype=torch.uint8)
    save_grid(images, tmp_path / "grid.png", columns=3)
    with Image.open(tmp_path / "grid.png") as grid:
        assert grid.size == (3 * 18 + 2, 2 * 18 + 2)
    assert np.array_equal(cells(tmp_path / "grid.png", 16), images.numpy())


# Real beside fake

RED, BLUE = (200, 0, 0), (0, 0, 200)


@pytest.mark.parametrize(
    ("real", "fake"), [((530, 530), (530, 530)), ((530, 266), (530, 530)), ((34, 34), (34, 34))]
)
def test_real_stands_beside_fake_under_headings(tmp_path, real, fake):
    for name, size, colour in (("a.png", real, RED), ("b.png", fake, BLUE)):
        Image.new("RGB", size, colour).save(tmp_path / name)
    save_reals_vs_fakes(tmp_path / "a.png", tmp_path / "b.png", tmp_path / "both.png")
    sheet = np.asarray(Image.open(tmp_path / "both.png").convert("RGB"))
    boxes = []
    for size, colour in ((real, RED), (fake, BLUE)):
        rows, columns = (sheet == colour).all(axis=2).nonzero()
        assert len(rows) == size[0] * size[1]  # every pixel of it, and in one piece
        assert (np.ptp(columns) + 1, np.ptp(rows) + 1) == size
        boxes.append((columns.min(), columns.max(), rows.min()))
    (left, right, top), (left_fake, _, top_fake) = boxes
    assert left == 0
    assert right < left_fake
    assert top == top_fake
    words = np.any((sheet[:top] < 100).all(axis=2), axis=0)
    assert words[:left_fake].any()
    assert words[left_fake:].any()
    assert not words[-2:].any()  # nothing is cut off
    assert not words[left_fake - 10 : left_fake].any()


@pytest.mark.parametrize("which", ["a.png", "b.png"])
def test_a_grid_that_cannot_be_read_is_named_and_the_old_file_stays(tmp_path, which):
    for name in ("a.png", "b.png"):
        Image.new("RGB", (64, 64), RED).save(tmp_path / name)
    (tmp_path / which).write_bytes((tmp_path / which).read_bytes()[:40])
    (tmp_path / "both.png").write_bytes(b"old")
    with pytest.raises(UserError) as error:
        save_reals_vs_fakes(tmp_path / "a.png", tmp_path / "b.png", tmp_path / "both.png")
    assert_four_parts(error.value, which)
    assert (tmp_path / "both.png").read_bytes() == b"old"
    assert names_in(tmp_path) == ["a.png", "b.png", "both.png"]


# Long runs


def test_a_long_run_is_drawn_with_as_many_points_as_a_shorter_one():
    losses = np.random.default_rng(0).random(1_000_003).astype(np.float32)
    losses[[123_456, 765_432]] = [9, -9]
    places = _extremes(losses)
    assert len(places) <= 2 * (POINTS + 2)
    assert np.all(np.diff(places) > 0)
    assert {123_456, 765_432, len(losses) - 1} <= set(places.tolist())
    assert places[0] < 1000
    centres, means = _running_mean(losses)
    assert len(centres) == len(means) < 2500


@pytest.mark.parametrize("count", [1, 49, 50, 1999, 4999, 12_345])
def test_means_are_those_of_the_window_around_each_step(count):
    values = np.random.default_rng(count).random(count).astype(np.float32)
    centres, means = _running_mean(values)
    block = max(1, count // 50 // 40)
    window = max(1, count // 50) // block * block
    for centre, mean in zip(centres.tolist(), means.tolist(), strict=True):
        first = round(centre - (window + 1) / 2)
        assert mean == pytest.approx(values[first : first + window].mean(), abs=1e-6)
    assert len(means) == (count // block * block - window) // block + 1


def test_gaps_stay_gaps_in_a_long_run():
    losses = np.full(100_000, np.nan, dtype=np.float32)
    losses[:60_000] = 1
    drawn_values = losses[_extremes(losses)]
    assert np.isnan(drawn_values).sum() >= 400
    assert np.isfinite(drawn_values).sum() >= 600


def test_losses_of_a_short_run_are_all_drawn():
    assert np.array_equal(_extremes(np.ones(1999, dtype=np.float32)), np.arange(1999))
