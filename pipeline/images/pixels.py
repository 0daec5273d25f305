"""The pixel convention, both directions side by side; no other file knows it.

Stored and shown: uint8 in [0, 255], channels last, (..., H, W, C).
In the nets: float in [-1, 1], channels first, (B, C, H, W), in channels_last memory.
This is torchvision's ToTensor followed by Normalize(0.5, 0.5):
x / 127.5 - 1 = (x / 255 - 0.5) / 0.5.
"""

from __future__ import annotations

import numpy as np
import torch

MEAN = STD = 127.5
"""The normalisation is (x - MEAN) / STD, in 8-bit levels; DALI's graph takes them from here."""


def to_signed(pixels: torch.Tensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Bring stored pixels to the nets' range and layout.

    Args:
        pixels: (B, H, W, C) uint8.
        dtype: the floating type of the result.

    Returns:
        (B, C, H, W) in [-1, 1], channels_last: the permutation moves no memory.
    """
    return pixels.to(dtype).sub_(MEAN).div_(STD).permute(0, 3, 1, 2)


def to_signed_alone(pixels: torch.Tensor) -> torch.Tensor:
    """`to_signed` of a CPU's pixels on the calling thread alone, to the bit.

    For loaders: torch would wake its threads for a millisecond's work, and they spin for longer
    than that afterwards, on cores that the step and the decoder want.

    Args:
        pixels: (B, H, W, C) uint8.

    Returns:
        (B, C, H, W) float32 in [-1, 1], channels_last.
    """
    levels = np.subtract(pixels.numpy(), np.float32(MEAN), dtype=np.float32)
    return torch.from_numpy(np.divide(levels, np.float32(STD), out=levels)).permute(0, 3, 1, 2)


def to_uint8(images: torch.Tensor) -> torch.Tensor:
    """Bring the nets' images back to stored pixels, rounding half to even and clamping.

    Args:
        images: (B, C, H, W) float, nominally in [-1, 1].

    Returns:
        (B, H, W, C) uint8, contiguous.
    """
    levels = images.permute(0, 2, 3, 1).to(torch.float32).mul(STD).add_(MEAN)
    return levels.round_().clamp_(0, 255).to(torch.uint8).contiguous()


def luma(pixels: torch.Tensor) -> torch.Tensor:
    """The grey of RGB pixels, as Pillow's convert("L") computes it: ITU-R 601-2, in integers.

    Args:
        pixels: (..., 3) uint8.

    Returns:
        (..., 1) uint8.
    """
    red, green, blue = pixels.to(torch.int32).unbind(-1)
    grey = (19595 * red + 38470 * green + 7471 * blue + 0x8000) >> 16
    return grey.to(torch.uint8)[..., None]
