"""Convolutions between small maps as matrix products (im2col), where those are faster or needed.

oneDNN's 4×4 convolutions with stride 2 are as fast as a matrix product on large maps, but between
8×8 and 4×4 they reach only a fraction of its rate; in bf16 the gradient of the weights there
reaches a tenth. With the image laid out as patches, the same arithmetic is one product forward and
two backward (Chellapilla, Puri and Simard, "High Performance Convolutional Neural Networks for
Document Processing", 2006).

Between 4×4 and 1×1 there is one patch per image, so these layers are plain products, on every
device and in compiled code. On CUDA this is needed: cuDNN lays out the gradient of such a layer's
weights differently from what Inductor expects, and compiled code then refuses it (seen with torch
2.11).

The layers have the parameters, names and results of their base classes. Everywhere else they call
the library's convolution.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

LARGEST = 8
"""Side of the larger of a layer's two maps up to which products are faster. Times of forward and
backward at batch 128, on one thread of a Xeon with AMX, best of nine, in ms, library → product:

============  ============  =========  =========
from          to            bf16       fp32
============  ============  =========  =========
100 at 1×1    512 at 4×4    35 → 3     55 → 6
512 at 4×4    256 at 8×8    138 → 48   258 → 197
256 at 8×8    128 at 16×16  54 → 92    173 → 248
128 at 16×16  256 at 8×8    52 → 99    178 → 250
256 at 8×8    512 at 4×4    143 → 51   263 → 201
512 at 4×4    1 at 1×1      4.5 → 1.0  5.6 → 0.8
============  ============  =========  =========
"""


class Conv2d(nn.Conv2d):
    """`nn.Conv2d` without bias, dilation or groups: (B, C, H, W) → (B, O, h, w)."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        geometry = self.kernel_size[0], self.stride[0], int(self.padding[0])
        matrix = self.weight.permute(0, 2, 3, 1).flatten(1)  # (O, 16·C), a view in channels_last
        if _is_one_patch(images.shape[2:], *geometry):
            return (images.permute(0, 2, 3, 1).flatten(1) @ matrix.t())[:, :, None, None]
        if not _products_win(images, max(images.shape[2:])):
            return super().forward(images)
        patches: torch.Tensor = _Patches.apply(images.permute(0, 2, 3, 1), *geometry)
        return (patches @ matrix.t()).permute(0, 3, 1, 2)


class ConvTranspose2d(nn.ConvTranspose2d):
    """`nn.ConvTranspose2d` without bias, dilation, groups or output padding.

    (B, C, h, w) → (B, O, H, W).
    """

    def forward(self, maps: torch.Tensor, output_size: list[int] | None = None) -> torch.Tensor:
        geometry = self.kernel_size[0], self.stride[0], int(self.padding[0])
        matrix = self.weight.permute(0, 2, 3, 1).flatten(1)  # (C, 16·O), a view in channels_last
        sides = [_side(side, *geometry) for side in maps.shape[2:]]
        if _is_one_patch(sides, *geometry):
            patch = maps.flatten(1) @ matrix
            return patch.view(len(maps), *sides, -1).permute(0, 3, 1, 2)
        if not _products_win(maps, max(sides)):
            return super().forward(maps, output_size)
        patches = maps.permute(0, 2, 3, 1) @ matrix
        images: torch.Tensor = _Overlaps.apply(patches, *geometry)
        return images.permute(0, 3, 1, 2)


def _is_one_patch(sides: Sequence[int], kernel: int, stride: int, padding: int) -> bool:
    """Return whether the kernel covers the larger map, which has these sides, exactly once."""
    return not padding and all(side == kernel for side in sides)


def _products_win(maps: torch.Tensor, side: int) -> bool:
    """Return whether to use products for a layer whose larger map has this side.

    Compiled code does not: Inductor's C++ for the overlaps of even a tiny net takes minutes.
    """
    return maps.device.type == "cpu" and side <= LARGEST and not torch.compiler.is_compiling()


class _Patches(torch.autograd.Function):
    """(B, H, W, C) → (B, h, w, K·K·C): the patch that each output pixel of a convolution reads."""

    @staticmethod
    def forward(context: Any, images: torch.Tensor, *geometry: int) -> torch.Tensor:
        context.geometry = geometry
        return _gather(images, *geometry)

    @staticmethod
    def backward(context: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        return _overlap_add(gradient, *context.geometry), None, None, None


class _Overlaps(torch.autograd.Function):
    """The adjoint, (B, h, w, K·K·C) → (B, H, W, C): patches are put back and added in overlaps."""

    @staticmethod
    def forward(context: Any, patches: torch.Tensor, *geometry: int) -> torch.Tensor:
        context.geometry = geometry
        return _overlap_add(patches, *geometry)

    @staticmethod
    def backward(context: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        return _gather(gradient, *context.geometry), None, None, None


def _gather(images: torch.Tensor, kernel: int, stride: int, padding: int) -> torch.Tensor:
    padded = F.pad(images, (0, 0, padding, padding, padding, padding))
    windows = padded.unfold(1, kernel, stride).unfold(2, kernel, stride)  # (B, h, w, C, K, K)
    return windows.permute(0, 1, 2, 4, 5, 3).flatten(3)


def _overlap_add(patches: torch.Tensor, kernel: int, stride: int, padding: int) -> torch.Tensor:
    batch, height, width, _ = patches.shape
    # A kernel is `reach` strides long, so patch i adds to the strides i, i + 1, ... of its row.
    # Adding whole strides at once reduces kernel² additions to (kernel / stride)².
    reach = kernel // stride
    terms = patches.view(batch, height, width, reach, stride, reach, stride, -1)
    strides = height + reach - 1, width + reach - 1
    sums = patches.new_zeros(batch, strides[0], stride, strides[1], stride, terms.shape[-1])
    for row in range(reach):
        for column in range(reach):
            term = terms[:, :, :, row, :, column].transpose(2, 3)  # (B, h, stride, w, stride, C)
            sums[:, row : row + height, :, column : column + width] += term
    images = sums.flatten(3, 4).flatten(1, 2)  # (B, H + 2·padding, W + 2·padding, C)
    inner = (slice(padding, side * stride - padding) for side in strides)
    return images[:, *inner].contiguous()  # the next operation is slow on other layouts


def _side(smaller: int, kernel: int, stride: int, padding: int) -> int:
    """Return the side of the larger map."""
    return stride * (smaller - 1) + kernel - 2 * padding
