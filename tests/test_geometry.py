"""Which part of an image is seen: our integers and DALI's expressions, against torchvision's."""

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torchvision.transforms import functional as transforms

from pipeline.geometry import centre_box, crop_box, resized
from pipeline.manifest import Recipe
from tests.needs import require, within

SIDES = st.integers(1, 2000)
SIZES = st.integers(8, 512)


def torchvisions_crop(width: int, height: int, size: int) -> tuple[int, int]:
    """Left and top of torchvision's own CenterCrop, told by an image of coordinates."""
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    cut = transforms.center_crop(torch.stack([x, y]), [size, size])
    return int(cut[0, 0, 0]), int(cut[1, 0, 0])


def torchvisions_resize(width: int, height: int, size: int) -> tuple[int, int]:
    """Width and height after torchvision's own Resize."""
    new_height, new_width = transforms._compute_resized_output_size((height, width), [size])
    return new_width, new_height


@given(SIDES, SIDES, SIZES)
@example(178, 218, 64)
def test_resized_sides_are_torchvisions(width, height, size):
    assert resized(width, height, size) == torchvisions_resize(width, height, size)


@given(st.integers(8, 400), st.integers(8, 400), st.data())
@settings(max_examples=60)
def test_the_crop_is_torchvisions(width, height, data):
    side = data.draw(st.integers(8, min(width, height)))
    left, top, right, bottom = crop_box(width, height, side)
    assert (left, top) == torchvisions_crop(width, height, side)
    assert (right - left, bottom - top) == (side, side)
    assert left >= 0
    assert top >= 0
    assert right <= width
    assert bottom <= height


@given(st.integers(8, 300), st.integers(8, 300), st.integers(8, 96))
@settings(max_examples=60)
def test_the_seen_region_is_torchvisions_resize_and_crop(width, height, size):
    new_width, new_height = torchvisions_resize(width, height, size)
    left, top = torchvisions_crop(new_width, new_height, size)
    box = centre_box(width, height, size)
    scales = width / new_width, height / new_height
    expected = [left, top, left + size, top + size]
    got = [place / scales[axis % 2] for axis, place in enumerate(box)]
    assert got == pytest.approx(expected, abs=1e-9)


@given(SIDES, SIDES, SIZES)
def test_the_seen_region_lies_in_the_image(width, height, size):
    left, top, right, bottom = centre_box(width, height, size)
    assert 0 <= left < right <= width + 1e-9
    assert 0 <= top < bottom <= height + 1e-9


def by_dali(sizes: list[tuple[int, int]], recipe: Recipe, image_size: int) -> np.ndarray:
    """The graph's own expressions for images of these widths and heights: rows of a box."""
    from nvidia.dali import fn
    from nvidia.dali.pipeline import Pipeline

    from pipeline.graph import _seen

    graph = Pipeline(batch_size=len(sizes), num_threads=1, device_id=None)
    with graph:
        shape = fn.external_source(source=[[np.array((h, w), np.int32) for w, h in sizes]])
        graph.set_outputs(*_seen(shape[0], shape[1], recipe, image_size))
    graph.build()
    start, end = within(20, graph.run)
    starts, ends = np.array(start.as_tensor()), np.array(end.as_tensor())
    return np.concatenate([starts[:, ::-1], ends[:, ::-1]], axis=1)  # left, top, right, bottom


def some_sizes(least: int) -> list[tuple[int, int]]:
    random = np.random.default_rng(least)
    drawn = random.integers(least, 2001, (600, 2)).tolist()
    edges = [least, least + 1, least + 2, 2000]
    return [*map(tuple, drawn), *((a, b) for a in edges for b in edges), (2000, 1999)]


@pytest.mark.parametrize("image_size", [8, 32, 64, 109, 256])
def test_dalis_expressions_are_ours(image_size):
    require("dali")
    sizes = some_sizes(1)
    expected = [centre_box(*size, image_size) for size in sizes]
    np.testing.assert_allclose(by_dali(sizes, Recipe(), image_size), expected, rtol=2e-6, atol=1e-5)


@pytest.mark.parametrize("crop", [8, 107, 108, 148])
def test_dalis_expressions_of_a_crop_are_ours(crop):
    require("dali")
    sizes = some_sizes(crop)
    expected = [crop_box(*size, crop) for size in sizes]
    assert np.array_equal(by_dali(sizes, Recipe(crop=crop), 64), expected)
