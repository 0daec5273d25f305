"""From an image file to what a shard stores of it, by the recipe."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import simplejpeg

from pipeline.images.decode import Pixels, RejectedError, decode, is_ordinary, require_bounded
from pipeline.images.fit import PAD, padding_of
from pipeline.images.jpeg import read_header
from pipeline.shards.manifest import DEFAULT_QUALITY, Recipe


class Stored(NamedTuple):
    """A sample's component."""

    data: bytes
    width: int
    height: int
    converted: bool
    """Under `original`: whether the bytes are ours rather than the source's."""


def store(data: bytes, recipe: Recipe) -> Stored:
    """Make what a shard keeps of one image file.

    Raises:
        RejectedError: it does not decode, or is smaller than the crop.
    """
    if recipe.store == "original" and not recipe.checked:
        header = read_header(data)
        if header is not None and is_ordinary(header, data):
            require_bounded(header.width, header.height)
            _require_crop(header.width, header.height, recipe)
            return Stored(data, header.width, header.height, converted=False)
    pixels, ordinary = decode(data)
    height, width, _ = pixels.shape
    _require_crop(width, height, recipe)
    if recipe.store == "original":
        stored = data if ordinary else encode(pixels, DEFAULT_QUALITY)
        return Stored(stored, width, height, converted=not ordinary)
    pixels = cut(pixels, recipe)
    height, width, _ = pixels.shape
    if recipe.store == "raw":
        return Stored(_as_rgb(pixels).tobytes(), width, height, converted=False)
    return Stored(encode(pixels, recipe.quality or DEFAULT_QUALITY), width, height, False)


def cut(pixels: Pixels, recipe: Recipe) -> Pixels:
    """Crop and resize as the recipe says, with the loaders' own kernel on the CPU.

    Args:
        pixels: (H, W, C) uint8.
        recipe: with a size.

    Returns:
        (H, W, C) uint8 of the recipe's size, which a whole image just covers.
    """
    assert recipe.size is not None, "only original stores have no size"
    # Here, since it loads torch: `original` stores and `--help` do not wait for that
    from pipeline.images.resize import as_tensor, fit, resize, resized

    if recipe.fit.startswith(PAD) and len({*(padding_of(recipe.fit) or ())}) > 1:
        pixels = _as_rgb(pixels)  # a colour beside grey
    image = as_tensor(pixels)
    if recipe.is_whole:
        height, width, _ = pixels.shape
        small = resize(image, *resized(width, height, recipe.size))
    else:
        crop = recipe.crop if isinstance(recipe.crop, int) else None
        small = fit(image, recipe.size, recipe.fit, crop)
    return small.contiguous().numpy()


def encode(pixels: Pixels, quality: int) -> bytes:
    """A JPEG of (H, W, 1 or 3) uint8 pixels, with 4:4:4 chroma: small images have none to spare."""
    colours = "GRAY" if pixels.shape[2] == 1 else "RGB"
    subsampling = "Gray" if pixels.shape[2] == 1 else "444"
    contiguous = np.ascontiguousarray(pixels)
    encoded: bytes = simplejpeg.encode_jpeg(contiguous, quality, colours, subsampling)
    return encoded


def _as_rgb(pixels: Pixels) -> Pixels:
    return pixels if pixels.shape[2] == 3 else pixels.repeat(3, axis=2)


def _require_crop(width: int, height: int, recipe: Recipe) -> None:
    if isinstance(recipe.crop, int) and min(width, height) < recipe.crop:
        raise RejectedError(f"smaller than the crop ({width}×{height})")
