"""DiffAugment: random changes to what the discriminator sees, through which gradients reach G.

Zhao et al., "Differentiable Augmentation for Data-Efficient GAN Training", NeurIPS 2020
(arXiv:2006.10738), with that paper's ranges: brightness, saturation and contrast, then a
translation, then a cutout. Real and generated images are changed alike in both updates, each time
anew, so D cannot tell them apart by the changes, and G does not learn to draw them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.autograd.function import once_differentiable

DRAWS = 7
"""Numbers that decide on the changes of one image, each uniform in [0, 1)."""

MOVED = 1 / 8
"""Largest translation, as a share of the side."""

CUT = 1 / 2
"""Sides of the part that is cut out, as a share of the image's."""


def augment(images: torch.Tensor, draws: torch.Tensor) -> torch.Tensor:
    """Change images at random; differentiable once in the images.

    Args:
        images: (B, C, H, W) float; not modified.
        draws: (DRAWS, B), uniform in [0, 1): brightness, saturation, contrast, row and column of
            the translation, row and column of the cutout's centre.

    Returns:
        (B, C, H, W) in the images' type. What moves in from outside, and what is cut out, is 0.
    """
    brightness, saturation, contrast, row, column, cut_row, cut_column = draws
    sides = images.shape[2:]
    furthest, cut = ([int(side * share + 0.5) for side in sides] for share in (MOVED, CUT))
    # Planes that are contiguous meanwhile are faster on a CPU
    dtype = torch.promote_types(images.dtype, torch.float32)
    planes = images.to(dtype, memory_format=torch.contiguous_format)
    coloured = _coloured(planes, brightness - 0.5, 2 * saturation, contrast + 0.5)
    rows, columns = (
        (draw * (2 * most + 1)).long() - most
        for draw, most in zip((row, column), furthest, strict=True)
    )
    tops, lefts = (
        # The centre of an even length lies between two pixels
        (draw * (side + 1 - length % 2)).long() - length // 2
        for draw, side, length in zip((cut_row, cut_column), sides, cut, strict=True)
    )
    kept = _within(rows, columns, sides, sides) & ~_within(tops, lefts, cut, sides)
    changed: torch.Tensor = _Translation.apply(coloured, rows, columns, kept)
    return changed.to(images.dtype, memory_format=torch.channels_last)


def _coloured(
    images: torch.Tensor, brightness: torch.Tensor, saturation: torch.Tensor, contrast: torch.Tensor
) -> torch.Tensor:
    """Add to all values, scale each pixel's distance from its grey, then that from the mean.

    The three are one linear combination of the image, its greys and its mean.
    """
    brightness, saturation, contrast = (
        each.view(-1, 1, 1, 1) for each in (brightness, saturation, contrast)
    )
    grey = images.mean(1, keepdim=True)
    mean = grey.mean((2, 3), keepdim=True)
    rest = grey * (contrast * (1 - saturation)) + (mean * (1 - contrast) + brightness)
    return torch.addcmul(rest, images, contrast * saturation)


class _Translation(torch.autograd.Function):
    """Moves images and cuts them. The gradient moves back, where autograd's would scatter."""

    @staticmethod
    def forward(
        ctx: Any,
        images: torch.Tensor,
        rows: torch.Tensor,
        columns: torch.Tensor,
        kept: torch.Tensor,
    ) -> torch.Tensor:
        ctx.save_for_backward(rows, columns, kept)
        return _moved(images, rows, columns) * kept

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:
        rows, columns, kept = ctx.saved_tensors
        sides = gradient.shape[2:]
        within = _within(-rows, -columns, sides, sides)
        return _moved(gradient * kept, -rows, -columns) * within, None, None, None


def _moved(images: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """Move (B, C, H, W) images down and right by their (B,) pixels; what comes in is the edge."""
    width = images.shape[3]
    from_rows, from_columns = (
        (torch.arange(side, device=images.device) - each[:, None]).clamp(0, side - 1)
        for each, side in zip((rows, columns), images.shape[2:], strict=True)
    )
    sources = (from_rows[:, None, :, None] * width + from_columns[:, None, None, :]).flatten(2)
    moved = images.flatten(2).gather(2, sources.expand(-1, images.shape[1], -1))
    return moved.view_as(images)


def _within(
    tops: torch.Tensor, lefts: torch.Tensor, lengths: Sequence[int], sides: Sequence[int]
) -> torch.Tensor:
    """Return (B, 1, H, W): whether a pixel is in the part of `lengths` at its (B,) corner."""
    inside = []
    for corners, length, side in zip((tops, lefts), lengths, sides, strict=True):
        places = torch.arange(side, device=corners.device) - corners[:, None]
        inside.append((places >= 0) & (places < length))
    return inside[0][:, None, :, None] & inside[1][:, None, None, :]
