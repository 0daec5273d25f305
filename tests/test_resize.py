"""The CPU's resize: torchvision's transforms on Pillow's images, of which it is a faster kind."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision import transforms

from pipeline.errors import UserError
from pipeline.images.fit import parse_fit
from pipeline.images.resize import LONGEST, fit, resize
from pipeline.images.size import base_of, parse_size, size_text
from tests.pictures import CELEBA, noisy, smooth

SIZES = st.sampled_from([8, 16, 32, 64, 109, 128, 256])
SIDES = st.integers(1, 400)
CHANNELS = st.sampled_from([3, 1])


def drawn(width: int, height: int, channels: int = 3, seed: int = 0) -> torch.Tensor:
    """(H, W, C) uint8; noise where the seed is odd."""
    picture = (noisy if seed % 2 else smooth)(width, height, seed)
    return torch.from_numpy(picture[:, :, :channels].copy())


def by_pillow(image: torch.Tensor, *chain: torch.nn.Module) -> np.ndarray:
    pixels = image.numpy()
    picture = Image.fromarray(pixels if pixels.shape[2] == 3 else pixels[:, :, 0])
    made = np.asarray(transforms.Compose(chain)(picture))
    return made.reshape(*made.shape[:2], -1).astype(int)


def assert_near(made: torch.Tensor, expected: np.ndarray) -> None:
    """Both round between their two passes, and torch's weights have 16 bits: seldom, 2 levels."""
    assert made.dtype == torch.uint8
    assert made.shape == expected.shape
    error = np.abs(made.numpy() - expected)
    assert error.max() <= 2
    assert (error > 1).mean() <= 0.006  # one value of the smallest square
    # A level in a quarter of the values; by chance in more of the few that a small square has
    assert error.mean() <= 0.3 + 0.7 / np.sqrt(error.size)


@given(SIDES, SIDES, SIZES, CHANNELS, st.integers(0, 99))
@settings(max_examples=60)
@example(*CELEBA, 64, 3, 1)
@example(*CELEBA, 64, 1, 1)
@example(400, 60, 64, 3, 1)  # wide, and enlarged
@example(60, 400, 32, 3, 1)
@example(1, 1, 64, 3, 0)
@example(1, 7, 8, 1, 1)
@example(40, 40, 32, 3, 0)  # which has values 2 levels apart
def test_the_whole_image_is_resized_and_its_middle_taken(width, height, size, channels, seed):
    assume(max(width, height) <= LONGEST * min(width, height))
    image = drawn(width, height, channels, seed)
    chain = transforms.Resize(size), transforms.CenterCrop(size)
    made = fit(image, size)
    assert made.shape == (size, size, channels)
    assert_near(made, by_pillow(image, *chain))


@pytest.mark.parametrize("side", [0, 1], ids=["tall", "wide"])
def test_of_an_endless_strip_only_the_middle_is_resized(side):
    strip = np.zeros((65_535, 2, 3), np.uint8)
    strip[32_766:32_769] = 255  # at its very middle
    made = fit(torch.from_numpy(strip.transpose(1, 0, 2).copy() if side else strip), 32)
    assert made.shape == (32, 32, 3)
    across = made.permute(1, 0, 2) if side else made
    assert across[8:24].amin() == 255


@given(st.integers(8, 400), st.integers(8, 400), SIZES, CHANNELS, st.data())
@settings(max_examples=60)
def test_a_crop_is_cut_out_and_then_resized(width, height, size, channels, data):
    crop = data.draw(st.integers(8, min(width, height)))
    image = drawn(width, height, channels, data.draw(st.integers(0, 99)))
    chain = transforms.CenterCrop(crop), transforms.Resize(size)
    made = fit(image, size, crop=crop)
    assert made.shape == (size, size, channels)
    assert_near(made, by_pillow(image, *chain))


@pytest.mark.parametrize("channels", [3, 1])
@pytest.mark.parametrize("crop", [None, 108, 148])
def test_of_celebas_faces_hardly_a_value_differs_from_pillows(crop, channels):
    image = drawn(*CELEBA, channels)
    chain = [transforms.Resize(64), transforms.CenterCrop(64)]
    if crop:
        chain = [transforms.CenterCrop(crop), transforms.Resize(64)]
    error = np.abs(fit(image, 64, crop=crop).numpy() - by_pillow(image, *chain))
    assert error.max() <= 1
    assert error.mean() <= 0.001  # measured: 0.0005


@given(st.integers(8, 300), st.integers(8, 300), CHANNELS)
def test_the_same_size_has_the_same_pixels(width, height, channels):
    image = drawn(width, height, channels)
    assert torch.equal(resize(image, width, height), image)
    size = min(width, height)
    top, left = round((height - size) / 2), round((width - size) / 2)
    middle = image[top : top + size, left : left + size]
    assert torch.equal(fit(image, size), middle)
    assert torch.equal(fit(image, size, crop=size), middle)


@given(st.integers(1, 300), st.integers(1, 300), st.integers(1, 200), st.integers(1, 200), CHANNELS)
def test_an_image_resized_alone_is_as_in_a_batch(width, height, new_width, new_height, channels):
    images = [drawn(width, height, channels, seed) for seed in range(3)]
    alone = [resize(image, new_width, new_height) for image in images]
    planes = torch.stack(images).permute(0, 3, 1, 2)
    batch = F.interpolate(planes, (new_height, new_width), mode="bilinear", antialias=True)
    assert batch.shape == (3, channels, new_height, new_width)
    assert torch.equal(torch.stack(alone), batch.permute(0, 2, 3, 1))


@given(st.integers(9, 300), st.integers(9, 300), SIZES, CHANNELS)
def test_a_view_is_resized_as_its_copy_is(width, height, size, channels):
    view = drawn(width, height, channels)[1:, :-1]
    assert not view.is_contiguous()
    for crop in (None, 8):
        made = fit(view, size, crop=crop)
        assert torch.equal(made, fit(view.contiguous(), size, crop=crop))


# Other fits and other shapes

WIDE, TALL = (96, 64), (24, 56)


def truncated(*sides: float) -> list[int]:
    """[height, width] for torchvision, which truncates too."""
    return [max(1, int(side + 1e-9)) for side in sides]


def reference(image: torch.Tensor, size: tuple[int, int], how: str) -> np.ndarray:
    """Torchvision's Resize, CenterCrop and Pad, with the sides that a pocket calculator gives."""
    (width, height), (tall, wide, channels) = size, image.shape
    if how == "stretch":
        return by_pillow(image, transforms.Resize([height, width]))
    scales = width / wide, height / tall
    if how == "crop":
        covering = transforms.Resize(truncated(tall * max(scales), wide * max(scales)))
        return by_pillow(image, covering, transforms.CenterCrop([height, width]))
    inside = truncated(tall * min(scales), wide * min(scales))
    if how == "pad":  # a crop that is larger than the image pads it with black
        return by_pillow(image, transforms.Resize(inside), transforms.CenterCrop([height, width]))
    down, across = height - inside[0], width - inside[1]
    around = [across // 2, down // 2, across - across // 2, down - down // 2]
    colour = (10, 200, 30) if channels == 3 else 124  # ITU-R 601: 0.299, 0.587 and 0.114
    filled = {"padding_mode": "edge"} if how == "pad:edge" else {"fill": colour}
    return by_pillow(image, transforms.Resize(inside), transforms.Pad(around, **filled))


@pytest.mark.parametrize("how", ["crop", "stretch", "pad", "pad:edge", "pad:#0ac81e"])
@pytest.mark.parametrize("size", [WIDE, TALL, (64, 64)], ids=size_text)
def test_every_fit_is_torchvisions(size, how):
    for number, sides in enumerate([CELEBA, (400, 60), (60, 400), (7, 9), (64, 64), (1, 50)]):
        image = drawn(*sides, (1, 3)[number % 2], seed=1)
        made = fit(image, size if size[0] != size[1] else size[0], how)
        assert made.shape == (size[1], size[0], image.shape[2])
        assert_near(made, reference(image, size, how))


def test_the_middle_square_is_cut_out_before_any_fit():
    image = drawn(*CELEBA, seed=1)
    middle = fit(image, 108, crop=108)
    for how in ("crop", "stretch", "pad"):
        assert torch.equal(fit(image, WIDE, how, 108), fit(middle, WIDE, how))
    batch = torch.stack([image, drawn(*CELEBA, seed=3)])
    assert torch.equal(fit(batch, WIDE, "pad:edge")[0], fit(image, WIDE, "pad:edge"))


# Sizes and fits as they are written


@pytest.mark.parametrize(
    ("written", "size", "base"),
    [
        ("28", 28, (7, 7, 2)),
        ("96x96", 96, (6, 6, 4)),
        (64, 64, (4, 4, 4)),
        ("512", 512, (4, 4, 7)),
        ("64×96", (64, 96), (4, 6, 4)),
        ((128, 64), (128, 64), (4, 2, 5)),
        ("8", 8, (2, 2, 2)),
    ],
)
def test_a_size_and_the_map_that_nets_grow_from(written, size, base):
    assert parse_size(written) == size
    assert parse_size(size_text(size)) == size
    assert base_of(size) == base


@pytest.mark.parametrize(
    ("size", "nearest"),
    [
        (50, "48 or 56"),
        (100, "96 or 112"),
        ((218, 178), "224x192 or 224x160"),
        ((64, 256), "64x224 or 64x192"),
    ],
)
def test_a_size_that_cannot_be_names_the_nearest_that_can(size, nearest):
    with pytest.raises(UserError) as error:
        base_of(size)
    assert (error.value.where, error.value.found) == ("--image-size", size_text(size))
    assert nearest in error.value.remedy
    for each in error.value.remedy.partition("nearest, ")[2].split(" or "):
        base_of(parse_size(each))


@pytest.mark.parametrize("written", ["7", "64x5000", "64x", "x", "64x64x64", "", True, 6.4, None])
def test_what_is_no_size_is_refused(written):
    with pytest.raises(UserError, match="--size"):
        parse_size(written, "--size")


def test_fits_have_one_form_each():
    written = ["crop", "PAD", "pad:black", "pad:#000000", "pad:White", "pad:0ac81e", "pad:edge"]
    forms = ["crop", "pad", "pad", "pad", "pad:#ffffff", "pad:#0ac81e", "pad:edge"]
    assert [*map(parse_fit, written)] == forms
    for bad in ("", "centre", "pad:", "pad:purple", "pad:#12345", "crop:edge", 5):
        with pytest.raises(UserError, match="--fit"):
            parse_fit(bad)
