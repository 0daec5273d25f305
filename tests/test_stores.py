"""The three ways to store a set, through both decoders: the same pictures, and what is refused."""

import functools

import numpy as np
import pytest
import torch

from pipeline.errors import UserError
from pipeline.images.size import sides
from pipeline.loading.loader import Loader
from pipeline.loading.open import open_loader
from pipeline.loading.options import LoaderOptions
from pipeline.shards.manifest import Recipe, make_recipe
from pipeline.shards.order import Schedule
from tests.loaders import keys, open_kind
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
    """A set by its store, what is cut out or how the whole is fitted, and size."""

    @functools.cache
    def make(store, cut, size=None):
        crop, fit = (cut, None) if cut in ("none", "108") else (None, cut)
        recipe = make_recipe(store, size, crop, None, fit, checked=True)
        return pack_pictures(tmp_path_factory.mktemp(store), PICTURES, recipe=recipe)

    return make


@pytest.fixture(scope="module")
def pixels_of(set_of):
    """All pictures of a set as a loader shows them, in their names' order: (n, H, W, C) levels."""

    @functools.cache
    def show(kind, image_size, channels, *how, fit=None):
        if kind.startswith("dali"):
            require("dali")
        shards = set_of(*how)
        count = len(shards)
        options = {"channels": channels, "dtype": torch.uint8, "fit": fit}
        loader = open_kind(kind, shards, count, image_size, **options)
        # From the second epoch on, a cache has it from memory
        batch = take(loader, 2 if "cached" in kind else 1)[-1]
        within(10, loader.close)
        width, height = sides(image_size)
        assert batch.shape == (len(PICTURES), height, width, channels)
        key_of = keys(shards)
        epoch = int("cached" in kind)
        shown = [key_of[row] for row in Schedule.of(shards, count, seed=0).order(epoch)]
        return batch.numpy()[np.argsort(shown)].astype(int)

    return show


def assert_within(error, mean, largest, share):
    """Bounds in levels; `share` of the values may be more than one level away."""
    assert error.mean() <= mean
    assert error.max() <= largest
    assert (error > 1).mean() <= share


CROPS = ["crop", "108"]
SIZES = [32, 64, 108]


@pytest.mark.parametrize("kind", DECODERS)
@pytest.mark.parametrize("image_size", SIZES)
@pytest.mark.parametrize("crop", CROPS)
def test_raw_is_bit_for_bit_what_original_comes_to(pixels_of, crop, image_size, kind):
    original = pixels_of(kind, image_size, 3, "original", crop)
    raw = pixels_of("raw", image_size, 3, "raw", crop, image_size)
    assert np.array_equal(raw, original)


@pytest.mark.parametrize(
    ("cut", "size"),
    [
        ("crop", (64, 40)),
        ("108", (24, 56)),
        ("stretch", (24, 56)),
        ("pad:edge", (24, 56)),
        ("pad:#0ac81e", 48),
    ],
)
def test_of_any_fit_and_shape_all_show_the_same(pixels_of, cut, size):
    raw = pixels_of("raw", size, 3, "raw", cut, size)
    for kind in ("dali-cached", "threads"):
        assert np.array_equal(pixels_of(kind, size, 3, "original", cut), raw)
    if cut != "108":  # the reader may choose, too
        assert np.array_equal(pixels_of("threads", size, 3, "original", "none", fit=cut), raw)
    assert len({picture.tobytes() for picture in raw}) == len(PICTURES)


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
    original = pixels_of("threads", image_size, 3, "original", "crop")
    raw = pixels_of("raw", image_size, 3, "raw", "crop", 64)
    assert_within(np.abs(raw - original), mean=3.0, largest=40, share=1.0)  # resized twice


def test_the_crop_is_not_a_pixel_off(pixels_of):
    """Equality above says something: the neighbouring crop is another picture."""
    right = pixels_of("threads", 108, 3, "original", "108")
    assert np.abs(right[:, :, 1:] - right[:, :, :-1]).mean() > 0.5
    assert np.abs(right[:, 1:] - right[:, :-1]).mean() > 0.5


def test_another_fit_than_was_packed_is_refused(set_of):
    shards = set_of("raw", "pad", 64)
    assert Loader(shards, LoaderOptions(1, 64, fit="pad")).identity["--fit"] == "pad"
    with pytest.raises(UserError) as error:
        Loader(shards, LoaderOptions(1, 64, fit="crop"))
    assert (error.value.where, "--fit pad" in error.value.wanted) == ("--fit crop", True)
    assert "no longer whole" in error.value.found
    whole = set_of("original", "crop")
    assert "--fit" not in Loader(whole, LoaderOptions(1, 64)).identity
    assert Loader(whole, LoaderOptions(1, (64, 96), fit="pad:edge")).identity == {
        **Loader(whole, LoaderOptions(1, 64)).identity,
        "--fit": "pad:edge",
        "--image-size": "64x96",
    }


REFUSED = {
    "jpeg": (("jpeg", "crop", 32), 64, 32),
    "jpeg-whole": (("jpeg", "none", 32), 33, 32),
    "raw": (("raw", "crop", 32), 33, 32),
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
