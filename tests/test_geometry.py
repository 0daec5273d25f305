"""Which part of an image is seen: our integers and DALI's expressions, against torchvision's."""

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torchvision.transforms import functional as transforms

from pipeline.images.resize import centred, resized
from pipeline.images.size import ImageSize, sides
from tests.needs import require, within

SIDES = st.integers(1, 2000)
SIZES = st.integers(8, 512)

Box = tuple[float, float, float, float]
"""Left, top, right, bottom, in pixels of the image."""


@given(SIDES, SIDES, SIZES)
@example(178, 218, 64)
@example(2000, 1, 512)
def test_resized_sides_are_torchvisions(width, height, size):
    new_height, new_width = transforms._compute_resized_output_size((height, width), [size])
    assert resized(width, height, size) == (new_width, new_height)


@given(SIDES, st.data())
@settings(max_examples=100)
def test_the_crop_begins_where_torchvisions_does(length, data):
    kept = data.draw(st.integers(1, length))
    start = centred(length, kept)
    assert 0 <= start <= length - kept
    places = torch.arange(length).expand(2, 1, length)
    row = transforms.center_crop(places, [1, kept])
    column = transforms.center_crop(places.transpose(1, 2), [kept, 1])
    expected = list(range(start, start + kept))
    assert row[0, 0].tolist() == column[0, :, 0].tolist() == expected


def region(width: int, height: int, size: ImageSize, crop: int | None = None) -> Box:
    """What Resize and then CenterCrop keep, of an image or its middle, in pixels of the image."""
    left, top = (0, 0) if crop is None else (centred(width, crop), centred(height, crop))
    part = (width, height) if crop is None else (crop, crop)
    boxes = []
    for start, side, new, kept in zip(
        (left, top), part, resized(*part, size), sides(size), strict=True
    ):
        begin, scale = centred(new, kept), side / new
        boxes.append((start + begin * scale, start + (begin + kept) * scale))
    (left_, right), (top_, bottom) = boxes
    return left_, top_, right, bottom


def square(width: int, height: int, crop: int) -> Box:
    """What CenterCrop(crop) keeps."""
    left, top = centred(width, crop), centred(height, crop)
    return left, top, left + crop, top + crop


@pytest.mark.parametrize(
    ("box", "expected"),
    [
        (region(178, 218, 64), (0, 7 * 218 / 78, 178, 71 * 218 / 78)),
        (region(300, 100, 50), (100, 0, 200, 100)),
        (square(178, 218, 108), (35, 55, 143, 163)),
        (square(178, 218, 148), (15, 35, 163, 183)),
    ],
)
def test_the_region_by_hand(box, expected):
    assert box == pytest.approx(expected)


def by_dali(
    sizes: list[tuple[int, int]], image_size: ImageSize, how: str = "crop", crop: int | None = None
) -> np.ndarray:
    """The graph's own expressions for images of these widths and heights: rows of a box."""
    from nvidia.dali import fn
    from nvidia.dali.pipeline import Pipeline

    from pipeline.loading.dali import _seen

    graph = Pipeline(batch_size=len(sizes), num_threads=1, device_id=None)
    with graph:
        shape = fn.external_source(source=[[np.array((h, w), np.int32) for w, h in sizes]])
        graph.set_outputs(*_seen(shape[0], shape[1], image_size, how, crop))
    graph.build()
    start, end = within(20, graph.run)
    starts, ends = np.array(start.as_tensor()), np.array(end.as_tensor())
    return np.concatenate([starts[:, ::-1], ends[:, ::-1]], axis=1)  # left, top, right, bottom


def some_sizes(least: int) -> list[tuple[int, int]]:
    random = np.random.default_rng(least)
    drawn = random.integers(least, 2001, (600, 2)).tolist()
    edges = [least, least + 1, least + 2, 2000]
    return [*map(tuple, drawn), *((a, b) for a in edges for b in edges), (2000, 1999)]


@pytest.mark.parametrize("image_size", [8, 64, 256, (96, 64), (8, 28)], ids=str)
def test_dalis_expressions_are_ours(image_size):
    require("dali")
    sizes = some_sizes(1)
    expected = [region(*size, image_size) for size in sizes]
    np.testing.assert_allclose(by_dali(sizes, image_size), expected, rtol=2e-6, atol=1e-5)
    whole = [(0, 0, *size) for size in sizes]
    assert np.array_equal(by_dali(sizes, image_size, "pad"), whole)


@pytest.mark.parametrize("crop", [8, 107, 108, 148])
def test_dalis_expressions_of_a_crop_are_ours(crop):
    require("dali")
    sizes = some_sizes(crop)
    expected = [square(*size, crop) for size in sizes]
    for how, image_size in (("crop", 64), ("stretch", (96, 64))):
        assert np.array_equal(by_dali(sizes, image_size, how, crop), expected)
    expected = [region(*size, (96, 64), crop) for size in sizes]
    np.testing.assert_allclose(by_dali(sizes, (96, 64), crop=crop), expected, rtol=2e-6, atol=1e-5)
