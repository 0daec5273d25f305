"""One layer, several equal ways to compute it.

Every layer of the nets lies between a *small* map (B, N, h, w) and a *big* one (B, C, H, W), with
weights (N, C, K, L), and consists of three products::

    down     (big, weights)  → small      a convolution; the gradient of a transposed one's input
    up       (small, weights) → big       a transposed convolution; the gradient of a plain one's
    weights  (big, small)    → weights    the gradient of either's weights

Convolutions of 4×4 halve the sides (stride 2, padding 1), except between the smallest map and one
pixel, where the kernel covers that map once. Which form of a product is fastest depends on the
machine, on the number format and on the shape, so each product has its own form:

- *library*: PyTorch's convolution (cuDNN, oneDNN).
- *im2col*: one matrix product over patches (Chellapilla, Puri and Simard, "High Performance
  Convolutional Neural Networks for Document Processing", 2006).
- *blocks*: 2×2 blocks of the big map become channels (space-to-depth), so that the kernel is 2×2
  with stride 1 and 4C channels (Shi et al., arXiv:1609.07009, for transposed convolutions).
- *subpixel*: the same for `up` alone, as an ordinary convolution of the padded small map.
- *padded*: C is padded with zeros to a multiple of eight, as matrix units want it
  (docs.nvidia.com/deeplearning/performance, "Channels In And Out").

The layers have the parameters, names and results of their base classes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

KERNEL = 4
"""Side of the kernels that halve."""

PADDED_TO = 8
"""*padded* pads the channels to a multiple of this."""

Product = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


class Forms(NamedTuple):
    """The names of the forms of a layer's three products."""

    down: str = "library"
    up: str = "library"
    weights: str = "library"


IM2COL = Forms("im2col", "im2col", "im2col")

IM2COL_SIDE = 8
"""Side of the big map up to which untuned layers on a CPU are `IM2COL`. oneDNN's convolutions reach
only a fraction of a matrix product's rate there. Times of forward and backward at batch 128, on one
thread of a Xeon with AMX, best of nine, in ms, library → im2col:

============  ============  =========  =========
from          to            bf16       fp32
============  ============  =========  =========
512 at 4×4    256 at 8×8    138 → 48   258 → 197
256 at 8×8    128 at 16×16  54 → 92    173 → 248
128 at 16×16  256 at 8×8    52 → 99    178 → 250
256 at 8×8    512 at 4×4    143 → 51   263 → 201
============  ============  =========  =========
"""


class Conv2d(nn.Conv2d):
    """`nn.Conv2d`, in any form if it is like the nets' layers: (B, C, H, W) → (B, N, h, w).

    Attributes:
        forms: those used in training; None for the fixed rule of `_forms`. Evaluation always
            follows that rule, so pictures do not depend on training's forms.
    """

    forms: Forms | None = None

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        products = products_of(self, images.shape[2:])
        forms = _forms(self, products, images.device, max(images.shape[2:]))
        if products is None or forms is None:
            return super().forward(images)
        maps: torch.Tensor = _Layer.apply(*_autocast(images, self.weight), products, forms, False)
        return maps


class ConvTranspose2d(nn.ConvTranspose2d):
    """`nn.ConvTranspose2d`, likewise: (B, N, h, w) → (B, C, H, W).

    Attributes:
        forms: as those of `Conv2d`.
    """

    forms: Forms | None = None

    def forward(self, maps: torch.Tensor, output_size: list[int] | None = None) -> torch.Tensor:
        stride, padding = self.stride[0], int(self.padding[0])
        sides = [
            stride * (side - 1) + kernel - 2 * padding
            for side, kernel in zip(maps.shape[2:], self.kernel_size, strict=True)
        ]
        products = products_of(self, sides) if output_size is None else None
        forms = _forms(self, products, maps.device, max(sides))
        if products is None or forms is None:
            return super().forward(maps, output_size)
        images: torch.Tensor = _Layer.apply(*_autocast(maps, self.weight), products, forms, True)
        return images


def products_of(layer: Conv2d | ConvTranspose2d, sides: Sequence[int]) -> Products | None:
    """Return the products of a layer whose big map has these sides; None if it is another."""
    if layer.bias is not None or layer.groups != 1 or layer.padding_mode != "zeros":
        return None
    if layer.dilation != (1, 1) or layer.output_padding != (0, 0):
        return None
    moves = *layer.stride, *layer.padding
    square = layer.kernel_size == (KERNEL, KERNEL)
    if square and moves == (2, 2, 1, 1) and not any(side % 2 for side in sides):
        return HALVING
    if moves == (1, 1, 0, 0) and layer.kernel_size == tuple(sides):
        return ONE_PATCH
    return None


def _forms(
    layer: Conv2d | ConvTranspose2d, products: Products | None, device: torch.device, side: int
) -> Forms | None:
    """Return the forms that a layer takes now; None for the base class and autograd."""
    on_cpu = device.type == "cpu"
    if products is ONE_PATCH:
        # cuDNN lays out the gradient of these weights differently from what Inductor expects, and
        # compiled code then refuses it (seen with torch 2.11)
        return (layer.forms if layer.training else None) or IM2COL
    if on_cpu and torch.compiler.is_compiling():
        return None  # Inductor's C++ for the overlaps of even a tiny net takes minutes
    if layer.training and layer.forms is not None:
        return layer.forms
    return IM2COL if on_cpu and side <= IM2COL_SIDE else None


def _autocast(maps: torch.Tensor, weights: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Cast both as autocast casts the operands of a convolution."""
    device = maps.device.type
    available = torch.amp.is_autocast_available(device)
    if not available or not torch.is_autocast_enabled(device) or maps.dtype == torch.float64:
        return maps, weights
    dtype = torch.get_autocast_dtype(device)
    return maps.to(dtype), weights.to(dtype)


class _Layer(torch.autograd.Function):
    """A convolution, or a transposed one, each of whose three products has its own form."""

    @staticmethod
    def forward(
        context: Any,
        maps: torch.Tensor,
        weights: torch.Tensor,
        products: Products,
        forms: Forms,
        transposed: bool,
    ) -> torch.Tensor:
        context.save_for_backward(maps, weights)
        down, up = products.down[forms.down], products.up[forms.up]
        context.back = down if transposed else up
        context.of_weights, context.transposed = products.weights[forms.weights], transposed
        return not_a_view((up if transposed else down)(maps, weights))

    @staticmethod
    def backward(context: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        maps, weights = context.saved_tensors
        of_maps, of_weights, *others = context.needs_input_grad
        big, small = (gradient, maps) if context.transposed else (maps, gradient)
        return (
            context.back(gradient, weights) if of_maps else None,
            context.of_weights(big, small) if of_weights else None,
            *(None for _ in others),
        )


def not_a_view(tensor: torch.Tensor) -> torch.Tensor:
    """Return the same memory as a tensor that autograd does not take for a view.

    Activations work in place, which autograd refuses on views that a Function returns.
    """
    return torch.ops.aten._unsafe_view(tensor, tensor.shape)  # type: ignore[no-any-return]  # noqa: SLF001


# The library's


class _Library:
    """The library's convolutions with a kernel, a stride and a padding.

    A kernel of None is as large as the big map.
    """

    def __init__(self, kernel: int | None, stride: int, padding: int) -> None:
        self._kernel, self._stride, self._padding = kernel, stride, padding

    def down(self, big: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        return F.conv2d(big, weights, None, self._stride, self._padding)

    def up(self, small: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        return F.conv_transpose2d(small, weights, None, self._stride, self._padding)

    def weights(self, big: torch.Tensor, small: torch.Tensor) -> torch.Tensor:
        # Only the shape, type and layout of the weights are read
        kernel = big.shape[2:] if self._kernel is None else (self._kernel, self._kernel)
        like = big.new_empty(small.shape[1], big.shape[1], *kernel)
        like = like.contiguous(memory_format=torch.channels_last)
        stride, padding = [self._stride] * 2, [self._padding] * 2
        gradients: Sequence[torch.Tensor] = torch.ops.aten.convolution_backward(
            small, big, like, None, stride, padding, [1, 1], False, [0, 0], 1, (False, True, False)
        )
        return gradients[1]


_library, _library_of_one_patch = _Library(KERNEL, 2, 1), _Library(None, 1, 0)
_library_of_blocks = _Library(2, 1, 0)


# Matrix products over patches


def _im2col_down(big: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    return (_patches(_last(big)) @ _matrix(weights).t()).permute(0, 3, 1, 2)


def _im2col_up(small: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    return _overlap_add(_last(small) @ _matrix(weights)).permute(0, 3, 1, 2)


def _im2col_weights(big: torch.Tensor, small: torch.Tensor) -> torch.Tensor:
    product = _last(small).flatten(0, 2).t() @ _patches(_last(big)).flatten(0, 2)
    return product.view(-1, KERNEL, KERNEL, big.shape[1]).permute(0, 3, 1, 2)


def _patch_down(big: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    return (_last(big).flatten(1) @ _matrix(weights).t())[:, :, None, None]


def _patch_up(small: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    patches = small.flatten(1) @ _matrix(weights)
    return patches.view(-1, *weights.shape[2:], weights.shape[1]).permute(0, 3, 1, 2)


def _patch_weights(big: torch.Tensor, small: torch.Tensor) -> torch.Tensor:
    product = small.flatten(1).t() @ _last(big).flatten(1)
    return product.view(-1, *big.shape[2:], big.shape[1]).permute(0, 3, 1, 2)


def _last(maps: torch.Tensor) -> torch.Tensor:
    """(B, C, H, W) → (B, H, W, C), a view."""
    return maps.permute(0, 2, 3, 1)


def _matrix(weights: torch.Tensor) -> torch.Tensor:
    """(N, C, K, L) → (N, K·L·C), a view of weights in channels_last."""
    return _last(weights).flatten(1)


def _patches(images: torch.Tensor) -> torch.Tensor:
    """(B, H, W, C) → (B, h, w, 16·C): the patch that each pixel of a convolution's output reads."""
    windows = _ringed(images).unfold(1, KERNEL, 2).unfold(2, KERNEL, 2)  # (B, h, w, C, 4, 4)
    return windows.permute(0, 1, 2, 4, 5, 3).flatten(3)


def _overlap_add(patches: torch.Tensor) -> torch.Tensor:
    """The adjoint, (B, h, w, 16·C) → (B, H, W, C): patches are put back and added in overlaps."""
    batch, height, width, _ = patches.shape
    # A kernel is two strides long, so patch i adds to the strides i and i + 1 of its row. Adding
    # whole strides at once reduces sixteen additions to four.
    terms = patches.view(batch, height, width, 2, 2, 2, 2, -1)
    sums = patches.new_zeros(batch, height + 1, 2, width + 1, 2, terms.shape[-1])
    for row in range(2):
        for column in range(2):
            term = terms[:, :, :, row, :, column].transpose(2, 3)  # (B, h, 2, w, 2, C)
            sums[:, row : row + height, :, column : column + width] += term
    # The next operation is slow on other layouts
    return _unringed(sums.flatten(3, 4).flatten(1, 2)).contiguous()


def _ringed(images: torch.Tensor) -> torch.Tensor:
    """(B, H, W, C) → (B, H + 2, W + 2, C): add a ring of zeros."""
    return F.pad(images, (0, 0, 1, 1, 1, 1))


def _unringed(images: torch.Tensor) -> torch.Tensor:
    """Cut off the ring, as a view."""
    return images[:, 1:-1, 1:-1]


# Blocks of 2×2 pixels as channels


def _blocks_down(big: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    return _library_of_blocks.down(_to_blocks(big), _block_weights(weights))


def _blocks_up(small: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    return _from_blocks(_library_of_blocks.up(small, _block_weights(weights)))


def _subpixel_up(small: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    kernel = _block_weights(weights).flip(2, 3).transpose(0, 1)  # (4·C, N, 2, 2)
    kernel = kernel.contiguous(memory_format=torch.channels_last)
    return _from_blocks(F.conv2d(small, kernel, padding=1))


def _blocks_weights(big: torch.Tensor, small: torch.Tensor) -> torch.Tensor:
    gradient = _library_of_blocks.weights(_to_blocks(big), small)
    kernel = gradient.view(-1, 2, 2, big.shape[1], 2, 2)  # (N, row, column, C, 2, 2)
    kernel = kernel.permute(0, 3, 4, 1, 5, 2).flatten(4, 5).flatten(2, 3)
    return kernel.contiguous(memory_format=torch.channels_last)


def _block_weights(weights: torch.Tensor) -> torch.Tensor:
    """(N, C, 4, 4) → (N, 4·C, 2, 2), in channels_last."""
    kernel = weights.view(*weights.shape[:2], 2, 2, 2, 2)  # (N, C, 2, row, 2, column)
    return kernel.permute(0, 2, 4, 3, 5, 1).flatten(3).permute(0, 3, 1, 2)


def _to_blocks(images: torch.Tensor) -> torch.Tensor:
    """(B, C, H, W) → (B, 4·C, h + 1, w + 1), in channels_last."""
    batch, channels, height, width = images.shape
    blocks = _ringed(_last(images)).view(batch, height // 2 + 1, 2, width // 2 + 1, 2, channels)
    return blocks.transpose(2, 3).flatten(3).permute(0, 3, 1, 2)


def _from_blocks(blocks: torch.Tensor) -> torch.Tensor:
    """(B, 4·C, h + 1, w + 1) → (B, C, H, W), in channels_last."""
    batch, channels, height, width = blocks.shape
    pixels = _last(blocks).reshape(batch, height, width, 2, 2, channels // 4).transpose(2, 3)
    return _unringed(pixels.flatten(3, 4).flatten(1, 2)).contiguous().permute(0, 3, 1, 2)


# Channels padded with zeros


def _padded_down(big: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    return _library.down(_padded(big), _padded(weights))


def _padded_up(small: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    images = _library.up(small, _padded(weights))
    return images[:, : weights.shape[1]].contiguous(memory_format=torch.channels_last)


def _padded_weights(big: torch.Tensor, small: torch.Tensor) -> torch.Tensor:
    gradient = _library.weights(_padded(big), small)[:, : big.shape[1]]
    return gradient.contiguous(memory_format=torch.channels_last)


def _padded(maps: torch.Tensor) -> torch.Tensor:
    """Pad the second dimension with zeros, in channels_last."""
    lacking = -maps.shape[1] % PADDED_TO
    return F.pad(_last(maps), (0, lacking)).permute(0, 3, 1, 2)


class Products(NamedTuple):
    """The forms of each product of a layer, by name."""

    down: dict[str, Product]
    up: dict[str, Product]
    weights: dict[str, Product]


HALVING = Products(
    down={
        "library": _library.down,
        "im2col": _im2col_down,
        "blocks": _blocks_down,
        "padded": _padded_down,
    },
    up={
        "library": _library.up,
        "im2col": _im2col_up,
        "blocks": _blocks_up,
        "subpixel": _subpixel_up,
        "padded": _padded_up,
    },
    weights={
        "library": _library.weights,
        "im2col": _im2col_weights,
        "blocks": _blocks_weights,
        "padded": _padded_weights,
    },
)
"""The products of the layers with stride 2."""

ONE_PATCH = Products(
    down={"library": _library_of_one_patch.down, "im2col": _patch_down},
    up={"library": _library_of_one_patch.up, "im2col": _patch_up},
    weights={"library": _library_of_one_patch.weights, "im2col": _patch_weights},
)
"""The products of the layers between one pixel and the smallest map."""
