"""A run's curves: what is drawn of long ones, and losses.png."""

import numpy as np
import pytest
from PIL import Image

from dcgan.rundir.curves import MOST_POINTS, running_mean, save_losses, spread, thin


def test_items_are_chosen_evenly_with_the_first_and_the_last():
    chosen = spread(range(1000), 40)
    assert (len(chosen), chosen[0], chosen[-1]) == (40, 0, 999)
    assert set(np.diff(chosen)) <= {25, 26}
    assert spread([3, 4], 40) == [3, 4]
    assert spread([], 40) == []


@pytest.mark.parametrize("count", [MOST_POINTS + 1, 100_000, 1_000_003])
def test_a_long_curve_keeps_its_ends_and_its_spikes(count):
    values = np.sin(np.arange(count, dtype=np.float32) / 1e4)
    values[[1, count // 2, count - 3]] = [-90, 100, -100]
    kept = thin(values)
    assert count > len(kept) > MOST_POINTS / 2 - 2
    assert len(kept) <= MOST_POINTS
    assert {0, 1, count // 2, count - 3, count - 1} <= set(kept.tolist())
    assert (np.diff(kept) > 0).all()
    assert len(running_mean(values)[0]) <= MOST_POINTS


def test_a_short_curve_is_drawn_whole():
    assert thin(np.ones(MOST_POINTS)).tolist() == list(range(MOST_POINTS))


def test_gaps_stay_gaps():
    values = np.full(100_000, np.nan, dtype=np.float32)
    values[:60_000] = 1
    kept = values[thin(values)]
    assert np.isnan(kept).sum() >= 390
    assert np.isfinite(kept).sum() >= 590


@pytest.mark.parametrize("count", [0, 1, 99, 100, 1999, 12_345])
def test_means_are_those_of_the_finite_values_around_each_point(count):
    values = np.random.default_rng(count).normal(size=count)
    values[7::11] = np.inf
    values[30:60] = np.nan
    places, means = running_mean(values)
    assert len(places) == len(means) == min(count, MOST_POINTS)
    for place, mean in zip(places.tolist(), means.tolist(), strict=True):
        window = values[max(0, place - count // 100) : place + count // 100 + 1]
        window = window[np.isfinite(window)]
        assert mean == pytest.approx(window.mean() if window.size else np.nan, nan_ok=True)


def test_one_huge_value_does_not_spoil_the_means_after_it():
    values = np.ones(1000)
    values[100] = 1e30
    assert (running_mean(values)[1][120:] == 1).all()


STEPS = 200
SPIKES = np.full((STEPS, 2), 1.0)
SPIKES[3] = np.nan, np.inf

LOSSES = {
    "one step": np.array([[1.4, 0.7]]),
    "zeros": np.zeros((STEPS, 2)),
    "one not finite": SPIKES,
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
