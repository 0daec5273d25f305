"""Between latents, on a sphere: what an interpolation is drawn from."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch

from dcgan.sampling.generate import latents


def slerp(start: torch.Tensor, end: torch.Tensor, share: float) -> torch.Tensor:
    """Interpolate spherically.

    Shoemake, "Animating rotation with quaternion curves", SIGGRAPH 1985, section 3.3; for latents
    White, "Sampling Generative Networks", 2016 (arXiv:1609.04468), section 2: a straight line
    between two normal vectors passes nearer to the origin than samples do. As there, the angle is
    that between the directions, and lengths are not normalised: between latents of equal length
    the length stays, and both ends are exact.

    Args:
        start: one latent, of any shape.
        end: another.
        share: of the way, 0 to 1.

    Returns:
        Shape and dtype of `start`. Latents on one line through the origin, as all are where nz
        is 1, have no arc between them and are joined straight.
    """
    a, b = start.double(), end.double()
    cosine = float((a * b).sum() / (a.norm() * b.norm()))
    angle = math.acos(min(1.0, max(-1.0, cosine)))
    sine = math.sin(angle)
    if sine < 1e-6:  # below, acos has lost its digits; the arc and its chord differ by less
        return torch.lerp(a, b, share).to(start.dtype)
    ours, theirs = math.sin((1 - share) * angle) / sine, math.sin(share * angle) / sine
    return (ours * a + theirs * b).to(start.dtype)


def walk(seeds: Sequence[int], frames: int, nz: int) -> Iterator[torch.Tensor]:
    """Go from seed to seed in frames; each seed is one of them, to the bit.

    Args:
        seeds: at least two.
        frames: of the whole walk, at least as many as seeds.
        nz: length of the latent.

    Yields:
        `frames` latents, (nz, 1, 1) float32.
    """
    stops = latents(seeds, nz)
    legs = len(seeds) - 1
    places = [round(stop * (frames - 1) / legs) for stop in range(len(seeds))]
    for leg in range(legs):
        length = places[leg + 1] - places[leg]
        for step in range(length):
            yield slerp(stops[leg], stops[leg + 1], step / length)
    yield stops[-1]
