"""DiffAugment: random changes to what the discriminator sees, through which gradients reach G.

Zhao et al., "Differentiable Augmentation for Data-Efficient GAN Training", NeurIPS 2020
(arXiv:2006.10738), with that paper's ranges: brightness, saturation and contrast, then a
translation, then a cutout. Real and generated images are changed alike in both updates, each time
anew, so D cannot tell them apart by the changes, and G does not learn to draw them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd.function import once_differentiable

DRAWS = 7
"""Numbers that decide on the changes of one image, each uniform in [0, 1)."""

MOVED = 1 / 8
"""Largest translation, as a share of the side."""

CUT = 1 / 2
"""Side of the square that is cut out, as a share of the image's."""


def augment(images: torch.Tensor, draws: torch.Tensor) -> torch.Tensor:
    """Change images at random; differentiable once in the images.

    Args:
        images: (B, C, S, S) float; not modified.
        draws: (DRAWS, B), uniform in [0, 1): brightness, saturation, contrast, row and column of
            the translation, row and column of the cutout's centre.

    Returns:
        (B, C, S, S) in the images' type. What moves in from outside, and what is cut out, is 0.
    """
    brightness, saturation, contrast, row, column, cut_row, cut_column = draws
    side = images.shape[2]
    furthest, cut = int(side * MOVED + 0.5), int(side * CUT + 0.5)
    ways = 2 * furthest + 1
    centres = side + 1 - cut % 2  # the centre of an even square lies between two pixels
    # Planes that are contiguous meanwhile are faster on a CPU
    dtype = torch.promote_types(images.dtype, torch.float32)
    planes = images.to(dtype, memory_format=torch.contiguous_format)
    coloured = _coloured(planes, brightness - 0.5, 2 * saturation, contrast + 0.5)
    rows, columns = ((draw * ways).long() - furthest for draw in (row, column))
    tops, lefts = ((draw * centres).long() - cut // 2 for draw in (cut_row, cut_column))
    kept = _within(rows, columns, side, side) & ~_within(tops, lefts, cut, side)
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
        side = gradient.shape[2]
        within = _within(-rows, -columns, side, side)
        return _moved(gradient * kept, -rows, -columns) * within, None, None, None


def _moved(images: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """Move (B, C, S, S) images down and right by their (B,) pixels; what comes in is the edge."""
    side = images.shape[2]
    places = torch.arange(side, device=images.device)
    from_rows, from_columns = (
        (places - each[:, None]).clamp(0, side - 1) for each in (rows, columns)
    )
    sources = (from_rows[:, None, :, None] * side + from_columns[:, None, None, :]).flatten(2)
    moved = images.flatten(2).gather(2, sources.expand(-1, images.shape[1], -1))
    return moved.view_as(images)


def _within(tops: torch.Tensor, lefts: torch.Tensor, size: int, side: int) -> torch.Tensor:
    """Return (B, 1, side, side): whether a pixel is in the square of `size` at its (B,) corner."""
    places = torch.arange(side, device=tops.device)
    rows, columns = (places - corners[:, None] for corners in (tops, lefts))
    in_rows, in_columns = ((each >= 0) & (each < size) for each in (rows, columns))
    return in_rows[:, None, :, None] & in_columns[:, None, None, :]
