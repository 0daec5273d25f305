"""Which square of an image is seen, and the resize of the CPU: torch's antialiased uint8 kernel.

The geometry is that of torchvision's Resize and CenterCrop, in integers; `loading/dali.py` says the
same in DALI's expressions, for images whose size only its graph knows. The kernel agrees with
Pillow's BILINEAR to within a level, rarely two, in less than half of its time. Packing and the
loaders share it: a `raw` set holds, bit for bit, what an `original` set comes to.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

LONGEST = 100
"""The longer side of an image, in shorter sides; of a longer one the middle is taken first.
Resizing a strip of 1×65,535 as a whole would take gigabytes, to show a hundredth of it."""


def resized(width: int, height: int, size: int) -> tuple[int, int]:
    """Width and height after Resize(size): the shorter side becomes it, the longer is truncated."""
    shorter = min(width, height)
    return size * width // shorter, size * height // shorter


def centred(length: int, kept: int) -> int:
    """Where CenterCrop begins to keep `kept` pixels of `length`, which has at least as many."""
    return round((length - kept) / 2)  # halves to even, as torchvision rounds


def as_tensor(pixels: npt.NDArray[np.uint8]) -> torch.Tensor:
    """Pixels as a tensor: a copy of what is read-only, as torch has no such tensors."""
    return torch.from_numpy(np.require(pixels, requirements=["C", "W"]))


def resize(images: torch.Tensor, width: int, height: int) -> torch.Tensor:
    """Resize images of one size, antialiased where they shrink.

    Torch starts no threads of its own here: the kernel has none, and what is not contiguous is
    copied by NumPy. They would spin on cores that the step and the decoder want.

    Args:
        images: (..., H, W, C) uint8.
        width: of the result, in pixels.
        height: of the result, in pixels.

    Returns:
        (..., height, width, C) uint8.
    """
    if images.shape[-3:-1] == (height, width):
        return images
    images = torch.from_numpy(np.ascontiguousarray(images.numpy()))
    # channels_last in memory, which has the fast kernel
    planes = images.reshape(-1, *images.shape[-3:]).permute(0, 3, 1, 2)
    small = F.interpolate(planes, (height, width), mode="bilinear", antialias=True)
    return small.permute(0, 2, 3, 1).reshape(*images.shape[:-3], height, width, -1)


def fit_square(images: torch.Tensor, size: int, crop: int | None = None) -> torch.Tensor:
    """The middle square of images at `size`: Resize and CenterCrop, or CenterCrop and Resize.

    Args:
        images: (..., H, W, C) uint8, of one size.
        size: side of the result, in pixels.
        crop: side of the square of an image's own pixels to take; None for its shorter side.

    Returns:
        (..., size, size, C) uint8, a view.
    """
    height, width = images.shape[-3:-1]
    if crop is not None:
        return resize(_middle(images, crop, crop), size, size)
    tall, wide = (min(side, LONGEST * min(height, width)) for side in (height, width))
    new_width, new_height = resized(wide, tall, size)
    return _middle(resize(_middle(images, wide, tall), new_width, new_height), size, size)


def batch_of(squares: Iterable[torch.Tensor], *, pinned: bool) -> torch.Tensor:
    """Copy squares, (S, S, C) uint8 each, into a batch, (B, S, S, C) and contiguous.

    Args:
        squares: one or more.
        pinned: in memory that a GPU copies from without a wait.
    """
    arrays = [square.numpy() for square in squares]
    shape = (len(arrays), *arrays[0].shape)
    batch = torch.empty(shape, dtype=torch.uint8, pin_memory=pinned)
    np.stack(arrays, out=batch.numpy())
    return batch


def _middle(images: torch.Tensor, width: int, height: int) -> torch.Tensor:
    top, left = centred(images.shape[-3], height), centred(images.shape[-2], width)
    return images[..., top : top + height, left : left + width, :]
