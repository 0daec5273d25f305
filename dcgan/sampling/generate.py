"""From seeds to latents, walks between them, and images: image i depends on seed i alone."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

import torch
from torch import nn

from dcgan.sampling.pictures import COLUMNS, ROWS
from dcgan.step.precision import same_in_every_process
from pipeline.images.pixels import to_uint8

FIXED_SEEDS = range(ROWS * COLUMNS)
"""Seeds of the fixed noise that every grid shows: cell (row, column) is seed 8·row + column."""

BATCH = 16
"""Images generated at a time, always: another batch size selects other kernels, and would change a
few pixels by a level."""


def latents(seeds: Sequence[int], nz: int) -> torch.Tensor:
    """Draw one latent for each seed, each from a random generator of its own.

    Returns:
        (len(seeds), nz, 1, 1) float32 on the CPU, N(0, 1).
    """
    rows = [torch.randn(nz, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    return torch.stack(rows).reshape(len(seeds), nz, 1, 1)


def arithmetic(terms: Sequence[tuple[int, Sequence[int]]], nz: int) -> torch.Tensor:
    """Add and subtract mean latents.

    Radford et al., "Unsupervised representation learning with deep convolutional generative
    adversarial networks", ICLR 2016 (arXiv:1511.06434), section 6.3.2 and figure 7. As there,
    lengths are not normalised.

    Args:
        terms: for each its sign, 1 or -1, and its seeds, at least one.
        nz: length of the latent.

    Returns:
        (len(terms) + 1, nz, 1, 1) float32 on the CPU: the mean of each term, and last the result.
    """
    means = torch.stack([latents(seeds, nz).double().mean(0) for _, seeds in terms])
    result = torch.stack([sign * mean for (sign, _), mean in zip(terms, means, strict=True)]).sum(0)
    return torch.cat([means, result[None]]).float()


def slerp(start: torch.Tensor, end: torch.Tensor, share: float) -> torch.Tensor:
    """Interpolate spherically between two latents of one shape, at a share of the way from 0 to 1.

    Shoemake, "Animating rotation with quaternion curves", SIGGRAPH 1985, section 3.3; for latents
    White, "Sampling Generative Networks", 2016 (arXiv:1609.04468), section 2: a straight line
    between two normal vectors passes nearer to the origin than samples do. As there, the angle is
    that between the directions, and lengths are not normalised: between latents of equal length
    the length stays, and both ends are exact. Latents on one line through the origin, as all are
    where nz is 1, have no arc between them and are joined straight.
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
    for leg, share in _legs(len(seeds), frames):
        yield slerp(stops[leg], stops[leg + 1], share) if share else stops[leg]


def walk_between_labels(stops: torch.Tensor, frames: int) -> Iterator[torch.Tensor]:
    """Go straight from label to label, beside a `walk` of as many stops and frames.

    The stops are (stops, n) float, shares of classes or attributes; each frame is (n,).
    """
    for leg, share in _legs(len(stops), frames):
        yield torch.lerp(stops[leg], stops[leg + 1], share) if share else stops[leg]


def _legs(stops: int, frames: int) -> Iterator[tuple[int, float]]:
    """Yield for each frame the stop behind it, and how much of the way to the next is done."""
    places = [round(stop * (frames - 1) / (stops - 1)) for stop in range(stops)]
    for leg in range(stops - 1):
        length = places[leg + 1] - places[leg]
        for step in range(length):
            yield leg, step / length
    yield stops - 1, 0.0


def generate(
    generator: nn.Module, noise: torch.Tensor, labels: Iterable[torch.Tensor] | None = None
) -> torch.Tensor:
    """Generate images with BatchNorm's running statistics, from a copy of the net.

    The ancestors sample in train mode, which mixes the images of a batch and disturbs training.

    Args:
        generator: (B, nz, 1, 1) → (B, C, S, S) in [-1, 1]; in any mode, type and memory layout;
            it stays as it is.
        noise: (N, nz, 1, 1) float.
        labels: for a conditional net, (N,) int64 or (N, n) float, or as many single ones; see
            `dcgan.nets.conditional.LabelEmbedding`.

    Returns:
        (N, S, S, C) uint8 on the CPU, drawn in float32.
    """
    return torch.stack([*generate_each(generator, noise, labels)])


def generate_each(
    generator: nn.Module,
    noise: Iterable[torch.Tensor],
    labels: Iterable[torch.Tensor] | None = None,
) -> Iterator[torch.Tensor]:
    """Generate images one after another, as `generate` does, however many: in constant memory.

    Latents, (nz, 1, 1) float each, and one label for each, () int64 or (n,) float, are taken a
    batch at a time; an image is (S, S, C) uint8 on the CPU.
    """
    device = next(generator.parameters()).device
    # In the trainer's layout: a net fresh from a file has another, which selects other kernels too
    net = copy.deepcopy(generator).eval().float().to(memory_format=torch.channels_last)
    left = zip(noise, strict=False) if labels is None else zip(noise, labels, strict=False)
    while batch := [*islice(left, BATCH)]:
        inputs = [_padded(each).to(device) for each in zip(*batch, strict=True)]
        with torch.no_grad(), same_in_every_process(device):
            images = to_uint8(net(*inputs))[: len(batch)].cpu()
        yield from images


def _padded(rows: Sequence[torch.Tensor]) -> torch.Tensor:
    """Stack up to `BATCH` rows, and zeros below; floats become float32."""
    dtype = torch.float32 if rows[0].is_floating_point() else rows[0].dtype
    padded = torch.zeros(BATCH, *rows[0].shape, dtype=dtype)
    padded[: len(rows)] = torch.stack([*rows])
    return padded
