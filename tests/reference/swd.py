"""The sliced Wasserstein distance as the paper words it, one number at a time, in float64.

Karras et al. 2018 (arXiv:1710.10196), section 5; the pyramid is Burt and Adelson's (1983).
"""

import math

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

BINOMIAL = [1, 4, 6, 4, 1]


def mirrored(place: int, length: int) -> int:
    """Where a place outside the image is read: the edge's pixel is the mirror."""
    if place < 0:
        return -place
    return 2 * (length - 1) - place if place >= length else place


def blur(plane: Array, gain: float) -> Array:
    height, width = plane.shape
    out = np.zeros_like(plane)
    for y in range(height):
        for x in range(width):
            for j, down in enumerate(BINOMIAL):
                for i, across in enumerate(BINOMIAL):
                    value = plane[mirrored(y + j - 2, height), mirrored(x + i - 2, width)]
                    out[y, x] += gain * down * across / 256 * value
    return out


def smaller(plane: Array) -> Array:
    return blur(plane, 1)[::2, ::2]


def larger(plane: Array) -> Array:
    spread = np.zeros((2 * plane.shape[0], 2 * plane.shape[1]))
    spread[::2, ::2] = plane
    return blur(spread, 4)


def pyramid(plane: Array, levels: int) -> list[Array]:
    """Differences from fine to coarse, and last what is left."""
    out = []
    for _ in range(levels - 1):
        next_plane = smaller(plane)
        height, width = plane.shape
        out.append(plane - larger(next_plane)[:height, :width])
        plane = next_plane
    return [*out, plane]


def patches(images: Array, level: int, levels: int, corners: npt.NDArray[np.int64]) -> Array:
    """Normalised patches, one a row: channel by channel, row by row.

    Args:
        images: (N, H, W, C).
        level: 0 for the finest.
        levels: of the pyramid.
        corners: (N, patches, 2), rows and columns.
    """
    rows = []
    channels = images.shape[3]
    for image, places in zip(images, corners, strict=True):
        planes = [pyramid(image[:, :, c], levels)[level] for c in range(channels)]
        rows += [[plane[y : y + 7, x : x + 7] for plane in planes] for y, x in places]
    cut = np.array(rows)  # (patches, C, 7, 7)
    for c in range(channels):
        values = cut[:, c].flatten().tolist()
        mean = math.fsum(values) / len(values)
        deviation = math.sqrt(math.fsum((v - mean) ** 2 for v in values) / len(values))
        cut[:, c] = (cut[:, c] - mean) / deviation
    flat: Array = cut.reshape(len(cut), -1)
    return flat


def sliced_wasserstein(one: Array, other: Array, directions: Array) -> float:
    """Of two lists of patches: the mean gap between equally ranked projections, × 10³."""
    gaps = []
    for direction in directions:
        ranked = [
            sorted(float(np.dot(row, direction)) for row in patches) for patches in (one, other)
        ]
        gaps += [abs(a - b) for a, b in zip(*ranked, strict=True)]
    return 1e3 * math.fsum(gaps) / len(gaps)
