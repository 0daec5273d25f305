"""The sliced Wasserstein distance: beside a literal one, and where its answer is known."""

import numpy as np
import pytest
import torch

from dcgan.metrics import swd
from tests.pictures import noisy, smooth
from tests.reference import swd as literal


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)  # several wait for each other wherever the machine is busy


def textured(first: int, count: int, side: int = 32) -> torch.Tensor:
    """Smooth pictures with some noise on them, (count, side, side, 3) uint8."""
    pictures = [
        smooth(side, side, seed) * 0.7 + noisy(side, side, seed) * 0.3
        for seed in range(first, first + count)
    ]
    return torch.from_numpy(np.stack(pictures).astype(np.uint8))


def blurred(images: torch.Tensor) -> torch.Tensor:
    planes = images.permute(0, 3, 1, 2).float()
    mean = torch.nn.functional.avg_pool2d(planes, 3, 1, 1, count_include_pad=False)
    return mean.permute(0, 2, 3, 1).to(torch.uint8)


def noise(count: int, side: int = 32) -> torch.Tensor:
    random = torch.Generator().manual_seed(5)
    return torch.randint(0, 256, (count, side, side, 3), generator=random, dtype=torch.uint8)


def test_scales_go_down_to_sixteen():
    assert swd.scales(16) == [16]
    assert swd.scales(64) == [64, 32, 16]
    assert swd.scales(256) == [256, 128, 64, 32, 16]


@pytest.mark.parametrize(
    ("channels", "shape", "scales"),
    [
        (3, (32, 32), [32, 16]),
        (1, (32, 32), [32, 16]),
        (1, (32, 20), [(20, 32)]),
        (1, (32, 33), [(33, 32), (17, 16)]),
    ],
)
def test_it_is_what_the_paper_says(monkeypatch, channels, shape, scales):
    monkeypatch.setattr(swd, "PATCHES", 24)  # the literal one takes seconds for all of them
    monkeypatch.setattr(swd, "DIRECTIONS", 64)
    height, width = shape
    one, other = (
        images.repeat(1, 1, 2, 1)[:, :height, :width, :channels]
        for images in (textured(0, 2), noise(2))
    )
    found = swd.distances(one, other)
    assert list(found) == scales
    for level, (size, distance) in enumerate(found.items()):
        random = swd.random_of(size)
        if isinstance(size, int):
            assert random.initial_seed() == swd.SEED + size
        directions = swd.draw_directions(channels, random).double().numpy()
        corners = swd.draw_corners(2, size, random).numpy()
        cut = [
            literal.patches(images.double().numpy(), level, len(scales), corners)
            for images in (one, other)
        ]
        expected = literal.sliced_wasserstein(cut[0], cut[1], directions)
        assert distance == pytest.approx(expected, rel=1e-5)
        assert expected > 1


def test_patches_lie_anywhere_inside_and_directions_have_length_one():
    random = torch.Generator().manual_seed(0)
    corners = swd.draw_corners(100, 16, random)
    assert corners.shape == (100, 128, 2)
    assert corners.unique().tolist() == [*range(10)]
    directions = swd.draw_directions(3, random)
    assert directions.shape == (512, 147)
    assert directions.norm(dim=1).sub(1).abs().max() < 1e-6
    assert directions.mean().abs() < 1e-3


def test_a_set_is_at_zero_from_itself_and_as_far_there_as_back():
    one, other = textured(0, 8), textured(100, 8)
    assert swd.distances(one, one) == {32: 0.0, 16: 0.0}
    there = swd.distances(one, other)
    assert there == swd.distances(other, one)
    assert min(there.values()) > 0


def test_brightness_and_contrast_of_a_whole_set_do_not_count():
    one = textured(0, 8) // 4
    assert max(swd.distances(one, one * 3 + 20).values()) < 0.01
    assert min(swd.distances(one, textured(100, 8)).values()) > 1


def test_noise_is_farther_than_blur_and_blur_farther_than_the_like():
    one, like = textured(0, 24), textured(100, 24)
    near, soft, far = (swd.distances(one, other) for other in (like, blurred(like), noise(24)))
    assert near[32] * 1.5 < soft[32] < far[32]
    assert max(near[16], soft[16]) < far[16]


def test_how_the_work_is_divided_does_not_matter(monkeypatch):
    one, other = textured(0, 10), textured(100, 10)
    whole = swd.distances(one, other)
    monkeypatch.setattr(swd, "IMAGES_AT_ONCE", 3)
    monkeypatch.setattr(swd, "DIRECTIONS_AT_ONCE", 100)
    assert swd.distances(one, other) == pytest.approx(whole, rel=1e-6)


def test_images_without_any_variation_have_a_distance():
    black = torch.zeros(4, 32, 32, 3, dtype=torch.uint8)
    found = swd.distances(textured(0, 4), black)
    assert all(0 < value < 2000 for value in found.values())
