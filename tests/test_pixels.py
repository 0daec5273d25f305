"""The pixel convention: what 0 and 255 become, in which layout, and back."""

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import functional as transforms

from pipeline.images.pixels import MEAN, STD, to_signed, to_uint8
from tests.pictures import smooth

EVERY_LEVEL = torch.arange(256, dtype=torch.uint8).reshape(1, 16, 16, 1)


def test_ends_and_middle_of_the_range():
    corners = to_signed(torch.tensor([0, 255, 51], dtype=torch.uint8).reshape(1, 1, 3, 1))
    assert corners.flatten().tolist() == pytest.approx([-1.0, 1.0, -0.6], abs=1e-7)
    assert (MEAN, STD) == (127.5, 127.5)


def test_to_signed_is_torchvisions_to_tensor_and_normalize():
    picture = smooth(20, 30)
    tensor = transforms.to_tensor(Image.fromarray(picture))
    expected = transforms.normalize(tensor, [0.5] * 3, [0.5] * 3)
    got = to_signed(torch.from_numpy(picture)[None])[0]
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("channels", [1, 3])
def test_layout_is_channels_last_and_no_memory_moves(channels):
    pixels = torch.zeros(2, 4, 5, channels, dtype=torch.uint8)
    images = to_signed(pixels)
    assert images.shape == (2, channels, 4, 5)
    assert images.is_contiguous(memory_format=torch.channels_last)
    assert to_uint8(images).shape == pixels.shape
    assert to_uint8(images).is_contiguous()


def test_to_signed_leaves_its_input_alone():
    pixels = EVERY_LEVEL.clone()
    to_signed(pixels)
    assert torch.equal(pixels, EVERY_LEVEL)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_every_level_keeps_its_value_within_the_types_precision(dtype):
    signed = to_signed(EVERY_LEVEL, dtype)
    assert signed.dtype == dtype
    exact = (EVERY_LEVEL.to(torch.float64) / 127.5 - 1).permute(0, 3, 1, 2)
    error = (signed.to(torch.float64) - exact).abs()
    assert (error <= exact.abs() * torch.finfo(dtype).eps + 1e-12).all()


def test_round_trip_is_exact_in_float32():
    assert torch.equal(to_uint8(to_signed(EVERY_LEVEL)), EVERY_LEVEL)


@pytest.mark.parametrize(
    ("value", "level"),
    [(-1.5, 0), (-1.0, 0), (0.0, 128), (1.0, 255), (7.0, 255), (-1 + 0.49 / 127.5, 0)],
)
def test_to_uint8_clamps_and_rounds_half_to_even(value, level):
    assert to_uint8(torch.full((1, 1, 1, 1), value)).item() == level


def test_to_uint8_does_not_drift_towards_black():
    # Truncation instead of rounding would lose half a level on average
    images = torch.from_numpy(np.linspace(-1, 1, 10_001, dtype=np.float32)).reshape(1, 1, 1, -1)
    levels = to_uint8(images).to(torch.float32).mean()
    assert levels.item() == pytest.approx(127.5, abs=0.05)
