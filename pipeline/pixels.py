"""The pixel convention, both directions side by side; no other file knows it.

Stored and shown: uint8 in [0, 255], channels last, (..., H, W, C).
In the nets: float in [-1, 1], channels first, (B, C, H, W), in channels_last memory.
This is torchvision's ToTensor followed by Normalize(0.5, 0.5):
x / 127.5 - 1 = (x / 255 - 0.5) / 0.5.
"""

from __future__ import annotations

import torch

MEAN = STD = 127.5
"""Of the normalisation (x - MEAN) / STD, in 8-bit levels; DALI's graph takes them from here."""


def to_signed(pixels: torch.Tensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Bring stored pixels to the nets' range and layout.

    Args:
        pixels: (B, H, W, C) uint8.
        dtype: the floating type of the result.

    Returns:
        (B, C, H, W) in [-1, 1], channels_last: the permutation moves no memory.
    """
    return pixels.to(dtype).sub_(MEAN).div_(STD).permute(0, 3, 1, 2)


def to_uint8(images: torch.Tensor) -> torch.Tensor:
    """Bring the nets' images back to stored pixels, rounding half to even and clamping.

    Args:
        images: (B, C, H, W) float, nominally in [-1, 1].

    Returns:
        (B, H, W, C) uint8, contiguous.
    """
    levels = images.permute(0, 2, 3, 1).to(torch.float32).mul(STD).add_(MEAN)
    return levels.round_().clamp_(0, 255).to(torch.uint8).contiguous()
