"""The three ways to store a set, through both decoders: the same pictures, and what is refused."""

import functools

import numpy as np
import pytest
import torch

from pipeline.errors import UserError
from pipeline.loading.loader import Loader
from pipeline.loading.open import open_loader
from pipeline.loading.options import LoaderOptions
from pipeline.shards.manifest import Recipe, make_recipe
from pipeline.shards.order import Schedule
from tests.loaders import decoder_of, keys
from tests.needs import require, take, within
from tests.pictures import encode, pack_pictures, smooth

DECODERS = ["dali", "threads"]
SIDES = [(178, 218), (218, 178), (120, 109), (300, 140), (108, 108), (131, 133), (177, 219)]
"""Width and height; CelebA's first."""
PICTURES = {
    f"{k:02d}.jpg": encode(smooth(*SIDES[k % len(SIDES)], seed=k), quality=90 + k % 3 * 5)
    for k in range(14)
} | {f"{k:02d}.jpg": encode(smooth(*SIDES[k - 14], seed=k)[:, :, 0]) for k in range(14, 18)}


@pytest.fixture(scope="module")
def set_of(tmp_path_factory):
    """A set by its store, crop and size."""

    @functools.cache
    def make(store, crop, size=None):
        recipe = make_recipe(store, size, crop, None, checked=True)
        return pack_pictures(tmp_path_factory.mktemp(store), PICTURES, recipe=recipe)

    return make


@pytest.fixture(scope="module")
def pixels_of(set_of):
    """All pictures of a set as a loader shows them, in their names' order: (n, S, S, C) levels."""

    @functools.cache
    def show(kind, image_size, channels, *how):
        if kind == "dali":
            require("dali")
        shards = set_of(*how)
        count = len(shards)
        options = LoaderOptions(count, image_size, channels, dtype=torch.uint8, workers=2)
        loader = Loader(shards, options, decoder_of(kind, shards, options))
        (batch,) = take(loader, 1)
        within(10, loader.close)
        assert batch.shape == (len(PICTURES), image_size, image_size, channels)
        key_of = keys(shards)
        shown = [key_of[row] for row in Schedule.of(shards, count, seed=0).order(0)]
        return batch.numpy()[np.argsort(shown)].astype(int)

    return show


def assert_within(error, mean, largest, share):
    """Bounds in levels; `share` of the values may be more than one level away."""
    assert error.mean() <= mean
    assert error.max() <= largest
    assert (error > 1).mean() <= share


CROPS = ["centre", "108"]
SIZES = [32, 64, 108]


@pytest.mark.parametrize("kind", DECODERS)
@pytest.mark.parametrize("image_size", SIZES)
@pytest.mark.parametrize("crop", CROPS)
def test_raw_is_bit_for_bit_what_original_comes_to(pixels_of, crop, image_size, kind):
    original = pixels_of(kind, image_size, 3, "original", crop)
    raw = pixels_of("raw", image_size, 3, "raw", crop, image_size)
    assert np.array_equal(raw, original)


@pytest.mark.parametrize("kind", DECODERS)
@pytest.mark.parametrize("crop", CROPS)
def test_luma_of_raw_pixels_is_near_that_of_original(pixels_of, crop, kind):
    original = pixels_of(kind, 64, 1, "original", crop)
    raw = pixels_of("raw", 64, 1, "raw", crop, 64)
    # Computed from rounded and resized RGB, where DALI takes the JPEG's own
    assert_within(np.abs(raw - original), mean=0.30, largest=2, share=0.005)


@pytest.mark.parametrize("kind", DECODERS)
@pytest.mark.parametrize("crop", ["none", *CROPS])
def test_small_jpegs_are_near_original(pixels_of, crop, kind):
    original = pixels_of(kind, 64, 3, "original", crop)
    jpeg = pixels_of(kind, 64, 3, "jpeg", crop, 64)
    # JPEG at quality 95 on small pictures; measured: 0.85, 8
    assert_within(np.abs(jpeg - original), mean=1.2, largest=12, share=0.25)


HOWS = [("original", "none"), ("original", "108"), ("jpeg", "none", 64), ("jpeg", "108", 64)]


@pytest.mark.parametrize("how", HOWS, ids=str)
def test_both_decoders_show_the_same(pixels_of, how):
    first, second = (pixels_of(kind, 64, 3, *how) for kind in DECODERS)
    assert np.array_equal(first, second)


@pytest.mark.parametrize("how", HOWS, ids=str)
def test_both_decoders_show_nearly_the_same_luma(pixels_of, how):
    first, second = (pixels_of(kind, 64, 1, *how) for kind in DECODERS)
    # One takes the JPEG's own, the other computes it from rounded RGB
    assert_within(np.abs(first - second), mean=0.30, largest=2, share=0.005)


@pytest.mark.parametrize("image_size", [32, 48])
def test_stored_pixels_are_made_smaller_where_asked(pixels_of, image_size):
    original = pixels_of("threads", image_size, 3, "original", "centre")
    raw = pixels_of("raw", image_size, 3, "raw", "centre", 64)
    assert_within(np.abs(raw - original), mean=3.0, largest=40, share=1.0)  # resized twice


def test_the_crop_is_not_a_pixel_off(pixels_of):
    """Equality above says something: the neighbouring crop is another picture."""
    right = pixels_of("threads", 108, 3, "original", "108")
    assert np.abs(right[:, :, 1:] - right[:, :, :-1]).mean() > 0.5
    assert np.abs(right[:, 1:] - right[:, :-1]).mean() > 0.5


REFUSED = {
    "jpeg": (("jpeg", "centre", 32), 64, 32),
    "jpeg-whole": (("jpeg", "none", 32), 33, 32),
    "raw": (("raw", "centre", 32), 33, 32),
    "original-cropped": (("original", "108"), 128, 108),
}


@pytest.mark.parametrize(("how", "asked", "most"), REFUSED.values(), ids=REFUSED)
def test_more_pixels_than_were_stored_are_refused(set_of, how, asked, most):
    shards = set_of(*how)
    with pytest.raises(UserError) as error:
        Loader(shards, LoaderOptions(1, asked))
    assert error.value.where == f"--image-size {asked}"
    assert f"{most}×{most}" in error.value.found
    assert shards.manifest.recipe.describe() in error.value.found
    assert error.value.wanted == f"at most {most}"
    assert f"--image-size {most}" in error.value.remedy
    loader = open_loader(str(shards.folder), LoaderOptions(1, most, workers=1))
    assert take(loader, 1)[0].shape == (1, 3, most, most)
    within(10, loader.close)


def test_original_sets_serve_every_size(set_of):
    shards = set_of("original", "none")
    assert shards.manifest.recipe == Recipe()
    shards.require_size(4096)
