"""What of an image is seen, and the resize of the CPU: torch's antialiased uint8 kernel.

The geometry is that of torchvision's Resize, CenterCrop and Pad, in integers; `loading/dali.py`
says the same in DALI's expressions, for images whose size only its graph knows. The kernel agrees
with Pillow's BILINEAR to within a level, rarely two, in less than half of its time. Packing and the
loaders share it: a `raw` set holds, bit for bit, what an `original` set comes to.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from pipeline.images.fit import CROP, STRETCH, padding_of
from pipeline.images.pixels import luma
from pipeline.images.size import ImageSize, sides

LONGEST = 100
"""The longer side of an image, in shorter sides; of a longer one the middle is taken first.
Resizing a strip of 1×65,535 as a whole would take gigabytes, to show a hundredth of it."""


def resized(width: int, height: int, size: ImageSize) -> tuple[int, int]:
    """Width and height of an image that is resized until it just covers a size, both truncated.

    For a square this is Resize(size): the shorter side becomes it.
    """
    across, down = sides(size)
    return max(across, down * width // height), max(down, across * height // width)


def contained(width: int, height: int, size: ImageSize) -> tuple[int, int]:
    """Width and height of an image that is resized until it just fits inside a size, likewise."""
    across, down = sides(size)
    inside = min(across, down * width // height), min(down, across * height // width)
    return max(1, inside[0]), max(1, inside[1])


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


def fit(
    images: torch.Tensor, size: ImageSize, how: str = CROP, crop: int | None = None
) -> torch.Tensor:
    """Bring images to a size.

    Args:
        images: (..., H, W, C) uint8, of one size.
        size: of the result.
        how: as `pipeline.images.fit` has it.
        crop: side of the middle square of an image's own pixels that is cut out first, if one is.

    Returns:
        (..., height, width, C) uint8; of a crop, a view.
    """
    if crop is not None:
        images = _middle(images, crop, crop)
    height, width = images.shape[-3:-1]
    if how == STRETCH:
        return resize(images, *sides(size))
    if how != CROP:
        return _padded(resize(images, *contained(width, height, size)), size, padding_of(how))
    tall, wide = (min(side, LONGEST * min(height, width)) for side in (height, width))
    covering = resized(wide, tall, size)
    return _middle(resize(_middle(images, wide, tall), *covering), *sides(size))


def batch_of(images: Iterable[torch.Tensor], *, pinned: bool) -> torch.Tensor:
    """Copy images of one size, (H, W, C) uint8 each, into a batch, (B, H, W, C) and contiguous.

    Args:
        images: one or more.
        pinned: in memory that a GPU copies from without a wait.
    """
    arrays = [image.numpy() for image in images]
    shape = (len(arrays), *arrays[0].shape)
    batch = torch.empty(shape, dtype=torch.uint8, pin_memory=pinned)
    np.stack(arrays, out=batch.numpy())
    return batch


def _middle(images: torch.Tensor, width: int, height: int) -> torch.Tensor:
    top, left = centred(images.shape[-3], height), centred(images.shape[-2], width)
    return images[..., top : top + height, left : left + width, :]


def _padded(
    images: torch.Tensor, size: ImageSize, colour: tuple[int, int, int] | None
) -> torch.Tensor:
    """Images in the middle of a size, with a colour around them, or the pixels of their edge."""
    (width, height), pixels = sides(size), images.numpy()
    tall, wide, channels = pixels.shape[-3:]
    top, left = (height - tall) // 2, (width - wide) // 2
    if colour is None:
        rows = np.clip(np.arange(height) - top, 0, tall - 1)
        columns = np.clip(np.arange(width) - left, 0, wide - 1)
        return torch.from_numpy(pixels[..., rows[:, None], columns, :])
    filling = torch.tensor(colour, dtype=torch.uint8)
    canvas = np.empty((*pixels.shape[:-3], height, width, channels), np.uint8)
    canvas[...] = (luma(filling) if channels == 1 else filling).numpy()
    canvas[..., top : top + tall, left : left + wide, :] = pixels
    return torch.from_numpy(canvas)
