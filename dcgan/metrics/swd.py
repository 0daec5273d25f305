"""Sliced Wasserstein distance between two sets of images, scale by scale; needs no download.

Karras, Aila, Laine and Lehtinen, "Progressive Growing of GANs for Improved Quality, Stability, and
Variation", ICLR 2018 (arXiv:1710.10196), section 5: patches of a Laplacian pyramid, one level a
scale, normalised per channel, and the mean distance of their sorted projections on random
directions. The finest level tells of edges and noise, the coarsest of the image as a whole.

A constant added to all images of a set, or a factor on their contrast, is invisible here: the
paper normalises each set by its own mean and deviation.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch.nn.functional import pad

from dcgan.metrics.reals import Measured, N, Reals, fake_blocks
from dcgan.metrics.reference_cache import Arrays, kept
from dcgan.nets.models import Generator
from pipeline.images.size import ImageSize, image_size, sides, size_text

PATCH = 7
"""Side of a patch, in pixels of its scale (section 5)."""

PATCHES = 128
"""Patches of an image at each scale (section 5)."""

DIRECTIONS = 512
"""Random projections (section 5)."""

SMALLEST = 16
"""Shorter side of the coarsest scale, in pixels (section 5)."""

SEED = 1710_10196
"""Seed of places and directions; the scale's side is added, or both if they differ."""

KERNEL = (1 / 16, 4 / 16, 6 / 16, 4 / 16, 1 / 16)
"""The pyramid's kernel along each axis: Burt and Adelson, "The Laplacian Pyramid as a Compact Image
Code", 1983, with a = 3/8. With uint8 pixels its sums are exact in float32 at the two finest
levels, in whatever order they are taken."""

IMAGES_AT_ONCE = 64
DIRECTIONS_AT_ONCE = 16
"""What bounds the memory beside the patches themselves: of these, both sets' at one scale are held
at a time, 75 KB an image of three channels each."""

RECIPE = (
    f"Laplacian pyramid to {SMALLEST}×{SMALLEST}, {PATCHES} patches of {PATCH}×{PATCH} an image,"
    f" {DIRECTIONS} projections, float32, seed {SEED}, ×10³"
)
"""In one line, for records and for the cache's key."""


def scales(size: ImageSize) -> list[ImageSize]:
    """The sizes that are measured, from the images' own down to `SMALLEST`."""
    found = [size]
    while min(sides(found[-1])) // 2 >= SMALLEST:
        width, height = sides(found[-1])
        found.append(image_size(-(-width // 2), -(-height // 2)))
    return found


def distances(
    one: torch.Tensor, other: torch.Tensor, device: torch.device | None = None
) -> dict[ImageSize, float]:
    """Measure how far apart two sets of images are, at each scale.

    Image i of both sets is looked at in the same places, so a set is at 0 from itself.

    Args:
        one: (N, H, W, C) uint8 on the CPU.
        other: of the same shape.
        device: where to compute; the CPU by default.

    Returns:
        For each size of `scales`, the distance × 10³ (the paper's unit), 0 or more.
    """
    assert one.shape == other.shape, f"{tuple(one.shape)} beside {tuple(other.shape)}"
    device = device or torch.device("cpu")
    found = {}
    for level, size in enumerate(scales(_size_of(one))):
        random = random_of(size)
        directions = draw_directions(one.shape[3], random).to(device)
        corners = draw_corners(len(one), size, random)
        pair = [descriptors(images, level, corners, device) for images in (one, other)]
        found[size] = 1e3 * _mean_distance(pair[0], pair[1], directions)
    return found


def random_of(size: ImageSize) -> torch.Generator:
    """What the directions and the places of a scale are drawn from."""
    width, height = sides(size)
    seed = width if width == height else (width << 16) + height
    return torch.Generator().manual_seed(SEED + seed)


def _size_of(images: torch.Tensor) -> ImageSize:
    return image_size(images.shape[2], images.shape[1])


def draw_directions(channels: int, random: torch.Generator) -> torch.Tensor:
    """Draw the directions to project on.

    Returns:
        (DIRECTIONS, channels · PATCH²) float32, each row of length 1.
    """
    drawn = torch.randn(DIRECTIONS, channels * PATCH**2, generator=random, dtype=torch.float64)
    return torch.nn.functional.normalize(drawn).float()


def draw_corners(count: int, size: ImageSize, random: torch.Generator) -> torch.Tensor:
    """Draw where patches lie: each wholly inside the image, all places alike.

    Returns:
        (count, PATCHES, 2) int64: row and column of the upper left pixel.
    """
    if isinstance(size, int):
        return torch.randint(0, size - PATCH + 1, (count, PATCHES, 2), generator=random)
    places = [
        torch.randint(0, side - PATCH + 1, (count, PATCHES), generator=random)
        for side in size[::-1]
    ]
    return torch.stack(places, dim=-1)


def descriptors(
    images: torch.Tensor, level: int, corners: torch.Tensor, device: torch.device
) -> torch.Tensor:
    """Cut patches out of one level of the pyramid, and normalise them.

    Args:
        images: (N, H, W, C) uint8.
        level: 0 for the finest; the coarsest is what is left after all differences.
        corners: (N, PATCHES, 2), as `draw_corners` gives them.
        device: where to compute.

    Returns:
        (N · PATCHES, C · PATCH²) float32: over all patches, each channel has mean 0 and standard
        deviation 1, or is 0 throughout where it does not vary.
    """
    count, channels = len(images), images.shape[3]
    last = level == len(scales(_size_of(images))) - 1
    found = torch.empty(count * PATCHES, channels, PATCH, PATCH, device=device)
    for start in range(0, count, IMAGES_AT_ONCE):
        part = slice(start, start + IMAGES_AT_ONCE)
        pixels = images[part].to(device).permute(0, 3, 1, 2).float().contiguous()
        cut = _cut(_level(pixels, level, last), corners[part].to(device))
        found[start * PATCHES : start * PATCHES + len(cut)] = cut
    for channel in range(channels):
        values = found[:, channel]
        mean, deviation = _moments(values)
        values.sub_(mean).mul_(1 / deviation if deviation > 0 else 0.0)
    return found.reshape(len(found), -1)


def _moments(values: torch.Tensor) -> tuple[float, float]:
    """Mean and standard deviation, in double precision but without a second copy of all values."""
    parts = torch.split(values, IMAGES_AT_ONCE * PATCHES)
    mean = sum(float(part.double().sum()) for part in parts) / values.numel()
    squares = sum(float((part.double() - mean).square_().sum()) for part in parts)
    return mean, float((squares / values.numel()) ** 0.5)


def _level(images: torch.Tensor, level: int, last: bool) -> torch.Tensor:
    """One level of the pyramid of (B, C, H, W) float32 images."""
    for _ in range(level):
        images = _halved(images)
    height, width = images.shape[2:]  # of odd ones, the half is rounded up
    return images if last else images - _doubled(_halved(images))[:, :, :height, :width]


def _halved(images: torch.Tensor) -> torch.Tensor:
    return _blurred(images)[:, :, ::2, ::2]


def _doubled(images: torch.Tensor) -> torch.Tensor:
    batch, channels, height, width = images.shape
    spread = images.new_zeros(batch, channels, 2 * height, 2 * width)
    spread[:, :, ::2, ::2] = 4 * images  # three of four pixels are 0
    return _blurred(spread)


def _blurred(images: torch.Tensor) -> torch.Tensor:
    """Convolve with `KERNEL` along both axes, mirrored at the edge's pixel.

    In sums of slices: a convolution might be taken in TF32.
    """
    height, width = images.shape[2:]
    padded = pad(images, (2, 2, 2, 2), mode="reflect")
    rows = sum(weight * padded[:, :, i : i + height] for i, weight in enumerate(KERNEL))
    assert isinstance(rows, torch.Tensor)
    columns = sum(weight * rows[..., i : i + width] for i, weight in enumerate(KERNEL))
    assert isinstance(columns, torch.Tensor)
    return columns


def _cut(images: torch.Tensor, corners: torch.Tensor) -> torch.Tensor:
    """Patches of (B, C, H, W) images, (B · PATCHES, C, PATCH, PATCH)."""
    windows = images.unfold(2, PATCH, 1).unfold(3, PATCH, 1)  # (B, C, rows, columns, 7, 7)
    which = torch.arange(len(images), device=images.device)[:, None]
    return windows[which, :, corners[..., 0], corners[..., 1]].flatten(0, 1)


def _mean_distance(one: torch.Tensor, other: torch.Tensor, directions: torch.Tensor) -> float:
    """The Wasserstein-1 distance along each direction, averaged."""
    total = 0.0
    for some in torch.split(directions, DIRECTIONS_AT_ONCE):
        gap = _sorted(some @ one.T).sub_(_sorted(some @ other.T)).abs_()
        total += float(gap.sum(dtype=torch.float64))
    return total / (len(directions) * len(one))


def _sorted(rows: torch.Tensor) -> torch.Tensor:
    """Each row in order; may alter `rows`."""
    if rows.device.type == "cpu":
        rows.numpy().sort(axis=1)  # vectorised, which torch's is not: a tenth of its time
        return rows
    return rows.sort(dim=1).values


def mean(by_scale: dict[ImageSize, float]) -> float:
    """The average over scales, by which runs are compared."""
    return float(np.mean(list(by_scale.values())))


@dataclass(frozen=True)
class Swd(Measured):
    """The sliced Wasserstein distance: `value` is its mean over scales, × 10³."""

    scales: dict[ImageSize, float] = field(default_factory=dict)
    """By the scale's size."""
    floor_scales: dict[ImageSize, float] = field(default_factory=dict)

    def record(self, nimg: int, net: str) -> dict[str, Any]:
        """A line of `metrics.jsonl`; the scales' sizes become strings, as JSON has it."""
        return super().record(nimg, net) | {
            "scales": {size_text(size): value for size, value in self.scales.items()},
            "floor_scales": {size_text(size): value for size, value in self.floor_scales.items()},
        }


class SwdMetric:
    """Measures the distance of one generator after another from the same real images.

    Reads the set and computes the floor once, or takes both from the cache. Holds `n` real images
    (12 KB each at 64×64×3); a measurement takes another 150 KB an image for as long as it lasts.

    Args:
        reals: the set's; distances are computed on its device if that is CUDA.
        n: images a side; half of the set where that is less.

    Attributes:
        reals: the real images, (n, H, W, C) uint8 on the CPU.
    """

    def __init__(self, reals: Reals, n: int = N) -> None:
        self.n = reals.at_most(n)
        self._source = reals.provenance(RECIPE)
        # Apple's MPS has no float64, in which the sums are taken
        device = reals.options.device
        self._device = device if device.type == "cuda" else torch.device("cpu")

        def reference() -> Arrays:
            one, other = reals.halves(self.n)
            floor = distances(one, other, self._device)
            return {"images": one.numpy(), "floor": np.array([*floor.values()])}

        key = {"metric": "swd", "how": RECIPE, "reals": reals.recipe, "n": self.n}
        arrays = kept(key | {"shards": reals.fingerprint}, reference)
        self.reals = torch.from_numpy(arrays["images"])
        self._floor = dict(
            zip(scales(reals.options.image_size), arrays["floor"].tolist(), strict=True)
        )

    def measure(self, net: Generator) -> Swd:
        """Measure a generator: the same number for the same weights, in any process.

        The net and torch's random state stay as they are.

        Args:
            net: of the real images' size and channels, on any device.
        """
        return self.compare(torch.cat([*fake_blocks(net, self.n)]))

    def compare(self, fakes: torch.Tensor) -> Swd:
        """Measure images, (n, H, W, C) uint8 on the CPU."""
        found = distances(self.reals, fakes, self._device)
        return Swd(
            "swd",
            mean(found),
            mean(self._floor),
            self.n,
            self._source,
            scales=found,
            floor_scales=self._floor,
        )
