"""What is stored of an image by each recipe, and the options that make one."""

import io
from typing import Literal

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import pipeline.images.decode
from pipeline.errors import UserError
from pipeline.images.decode import RejectedError
from pipeline.images.resize import fit, resize, resized
from pipeline.packing.store import cut, store
from pipeline.shards.manifest import Recipe, make_recipe
from tests.pictures import CELEBA, decode, encode, noisy, smooth

JPEG = encode(smooth(*CELEBA))
GREY = encode(smooth(*CELEBA)[:, :, 0])


def raw(size: int, crop: Literal["centre"] | int = "centre") -> Recipe:
    return Recipe(store="raw", crop=crop, size=size, filter="bilinear")


def of_raw(data: bytes, size: int, crop="centre") -> np.ndarray:
    stored = store(data, raw(size, crop))
    assert (stored.width, stored.height, stored.converted) == (size, size, False)
    assert len(stored.data) == 3 * size * size
    return np.frombuffer(stored.data, np.uint8).reshape(size, size, 3)


CROPS: list[Literal["none", "centre"] | int] = ["none", "centre", 40, 17]


@given(st.integers(40, 300), st.integers(40, 300), st.integers(8, 128), st.data())
def test_what_is_stored_is_what_the_loaders_make_of_the_pixels(width, height, size, data):
    crop, grey = data.draw(st.sampled_from(CROPS)), data.draw(st.booleans())
    pixels = noisy(width, height).copy()[:, :, : 1 if grey else 3]  # grey: every third byte
    pixels.setflags(write=data.draw(st.booleans()))
    made = cut(pixels, Recipe(store="jpeg", crop=crop, size=size))
    image = torch.from_numpy(pixels.copy())
    if crop == "none":
        expected = resize(image, *resized(width, height, size))
    else:
        expected = fit(image, size, crop=None if crop == "centre" else crop)
    assert made.dtype == np.uint8
    assert made.flags.c_contiguous
    assert np.array_equal(made, expected.numpy())


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@pytest.mark.parametrize("crop", ["centre", 108, 148])
def test_a_raw_store_is_bit_for_bit_what_the_loaders_make_of_its_source(crop, kind):
    data = encode(smooth(*CELEBA), kind)
    image = torch.from_numpy(pipeline.images.decode.decode(data).pixels.copy())
    expected = fit(image, 64, crop=None if crop == "centre" else crop)
    assert np.array_equal(of_raw(data, 64, crop), expected.numpy())


def test_grey_images_become_rgb_in_raw_stores_and_stay_grey_in_jpegs():
    pixels = of_raw(GREY, 32)
    assert (pixels == pixels[:, :, :1]).all()
    assert len(np.unique(pixels)) > 50
    small = store(GREY, Recipe(store="jpeg", size=32, crop="centre", filter="bilinear", quality=95))
    assert decode(small.data, "L").shape == (32, 32)
    assert small.data[2:4] == b"\xff\xe0"
    assert b"\xff\xc0\x00\x0b\x08\x00\x20\x00\x20\x01" in small.data  # one component


@pytest.mark.parametrize(
    ("crop", "expected"), [("centre", (64, 64)), (108, (64, 64)), ("none", (64, 78))]
)
def test_jpeg_stores_are_near_the_raw_pixels(crop, expected):
    recipe = Recipe(store="jpeg", size=64, crop=crop, filter="bilinear", quality=95)
    stored = store(JPEG, recipe)
    assert (stored.width, stored.height) == expected
    pixels = decode(stored.data).astype(int)
    assert pixels.shape == (*expected[::-1], 3)
    raw = of_raw(JPEG, 64, "centre" if crop == "none" else crop)
    assert np.abs(pixels[-64 - (expected[1] - 64) // 2 :][:64] - raw).mean() < 1.1  # quality 95
    poor = store(JPEG, recipe.model_copy(update={"quality": 30}))
    assert len(poor.data) < len(stored.data)
    layers = Image.open(io.BytesIO(stored.data)).layer  # type: ignore[attr-defined]
    assert {layer[1:3] for layer in layers} == {(1, 1)}  # 4:4:4


@pytest.mark.parametrize("recipe", [Recipe(crop=108), Recipe(crop=108, checked=False)], ids=str)
def test_an_original_store_keeps_all_of_the_image_for_its_readers_to_crop(recipe):
    stored = store(JPEG, recipe)
    assert stored.data is JPEG
    assert (stored.width, stored.height) == CELEBA


SMALLER = {
    "original": Recipe(crop=179),
    "unchecked": Recipe(crop=179, checked=False),
    "jpeg": Recipe(store="jpeg", crop=179, size=64, filter="bilinear", quality=95),
    "raw": raw(64, 179),
}


@pytest.mark.parametrize("recipe", SMALLER.values(), ids=SMALLER)
def test_an_image_smaller_than_the_crop_is_rejected(recipe):
    for data in (JPEG, encode(smooth(*CELEBA), "PNG")):
        with pytest.raises(RejectedError) as error:
            store(data, recipe)
        assert str(error.value) == "smaller than the crop (178×218)"
        assert error.value.kind == "smaller than the crop"
    assert store(JPEG, recipe.model_copy(update={"crop": 178})).width in (178, 64)


# Options

RECIPES = {
    # store, size, crop, quality, and perhaps fit → the recipe
    "default": (("original", None, None, None), Recipe()),
    "original-108": (("original", None, "108", None), Recipe(crop=108)),
    "original-centre": (("original", None, None, None, "crop"), Recipe(crop="centre")),
    "original-pad": (("original", None, "108", None, "pad:black"), Recipe(crop=108, fit="pad")),
    "jpeg": (
        ("jpeg", None, None, None),
        Recipe(store="jpeg", crop="centre", size=64, filter="bilinear", quality=95),
    ),
    "jpeg-whole": (
        ("jpeg", 128, "none", 80),
        Recipe(store="jpeg", crop="none", size=128, filter="bilinear", quality=80),
    ),
    "raw": (("raw", None, None, None), raw(64)),
    "raw-108": (("raw", 108, "108", None), raw(108, 108)),
    "raw-square": (("raw", "64x64", "none", None, "crop"), raw(64)),
    "raw-wide": (
        ("raw", "96×64", None, None),
        Recipe(store="raw", crop="centre", size=(96, 64), filter="bilinear"),
    ),
    "jpeg-pad": (
        ("jpeg", None, None, None, "pad:White"),
        Recipe(store="jpeg", fit="pad:#ffffff", size=64, filter="bilinear", quality=95),
    ),
}


@pytest.mark.parametrize(("options", "expected"), RECIPES.values(), ids=RECIPES)
def test_options_make_recipes(options, expected):
    assert make_recipe(*options, checked=True) == expected
    assert make_recipe(*options, checked=False) == expected.model_copy(update={"checked": False})


def test_squares_that_are_cropped_are_of_format_1_and_all_else_is_told_in_its_own_words():
    told = {
        name: (recipe.format, recipe.describe())
        for name, (_, recipe) in RECIPES.items()
        if recipe.format == 2 or recipe.crop == "centre"
    }
    assert told == {
        "original-centre": (1, "--store original --crop centre"),
        "original-pad": (2, "--store original --crop 108 --fit pad"),
        "jpeg": (1, "--store jpeg --crop centre --size 64 --quality 95"),
        "raw": (1, "--store raw --crop centre --size 64"),
        "raw-square": (1, "--store raw --crop centre --size 64"),
        "raw-wide": (2, "--store raw --fit crop --size 96x64"),
        "jpeg-pad": (2, "--store jpeg --crop none --fit pad:#ffffff --size 64 --quality 95"),
    }
    assert "fit" not in RECIPES["raw"][1].model_dump()


def test_a_grey_image_beside_a_colour_becomes_rgb():
    recipe = Recipe(store="jpeg", fit="pad:#c80000", size=(96, 64), filter="bilinear", quality=95)
    pixels = decode(store(GREY, recipe).data).astype(int)
    assert np.abs(pixels[:, 0] - (200, 0, 0)).max() < 4
    assert np.ptp(pixels[:, 40:56], axis=2).max() < 12
    black = store(GREY, recipe.model_copy(update={"fit": "pad"})).data
    assert (Image.open(io.BytesIO(black)).mode, pixels.shape) == ("L", (64, 96, 3))


REFUSED = {
    # store, size, crop, quality, and perhaps fit → where, words of `found`, words of `do`
    "original-size": (
        ("original", 64, None, None),
        "--size 64",
        "--store original",
        "--store jpeg",
    ),
    "raw-quality": (("raw", None, None, 9), "--quality 9", "--store raw", "leave --quality out"),
    "raw-none": (("raw", None, "none", None), "--crop none", "--store raw", "--fit crop"),
    "centre": (("raw", None, "centre", None), "--crop centre", "a fit", "--fit crop"),
    "fit-word": (("raw", None, None, None, "cover"), "--fit", "cover", "correct it"),
    "crop-below-side": (
        ("raw", "64x128", "108", None),
        "--crop 108",
        "--size 64x128",
        "--size 108 or less",
    ),
    "crop-below-size": (
        ("raw", 128, "108", None),
        "--crop 108",
        "--size 128",
        "--size 108 or less",
    ),
    "crop-word": (("raw", None, "middle", None), "--crop middle", "neither", "--crop 108"),
    "crop-tiny": (("original", None, "7", None), "--crop 7", "out of range", "correct it"),
    "size-tiny": (("jpeg", 7, None, None), "--size", "7", "correct it"),
    "quality-101": (("jpeg", None, None, 101), "--quality 101", "out of range", "correct it"),
}


@pytest.mark.parametrize(("options", "where", "found", "remedy"), REFUSED.values(), ids=REFUSED)
def test_contradicting_options_are_refused(options, where, found, remedy):
    with pytest.raises(UserError) as error:
        make_recipe(*options, checked=True)
    assert error.value.where == where
    assert found in error.value.found
    assert remedy in error.value.remedy
