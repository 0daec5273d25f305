"""One step on a batch in parts, as several ranks do it: slow, literal, in one process.

Each part goes through the nets by itself, so that BatchNorm sees no more than the part; the
gradients of the parts are averaged, and there is one update of each net.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits as bce

Part = Sequence[torch.Tensor]
"""Real images (b, C, S, S), and noise (b, nz, 1, 1); for conditional nets also the labels of the
real images and those of the generated ones."""


def shared_step(
    generator: nn.Module,
    discriminator: nn.Module,
    optimizer_d: torch.optim.Optimizer,
    optimizer_g: torch.optim.Optimizer,
    parts: Sequence[Part],
) -> tuple[float, float]:
    """Update D, then G; the losses, averaged over the parts."""
    reals = [(real, *labels[:1]) for real, _, *labels in parts]
    of_fakes = [labels[1:] for _, _, *labels in parts]
    fakes = [
        generator(noise, *labels) for (_, noise, *_), labels in zip(parts, of_fakes, strict=True)
    ]

    losses_d, gradients = [], []
    for real, fake, labels in zip(reals, fakes, of_fakes, strict=True):
        on_real, on_fake = discriminator(*real), discriminator(fake.detach(), *labels)
        loss = bce(on_real, torch.ones_like(on_real)) + bce(on_fake, torch.zeros_like(on_fake))
        losses_d.append(loss.item())
        gradients.append(torch.autograd.grad(loss, list(discriminator.parameters())))
    _descend(discriminator, optimizer_d, gradients)

    losses_g, gradients = [], []
    for fake, labels in zip(fakes, of_fakes, strict=True):
        on_fake = discriminator(fake, *labels)
        loss = bce(on_fake, torch.ones_like(on_fake))
        losses_g.append(loss.item())
        gradients.append(torch.autograd.grad(loss, list(generator.parameters())))
    _descend(generator, optimizer_g, gradients)

    return sum(losses_d) / len(parts), sum(losses_g) / len(parts)


def _descend(
    net: nn.Module, optimizer: torch.optim.Optimizer, gradients: list[tuple[torch.Tensor, ...]]
) -> None:
    for parameter, each in zip(net.parameters(), zip(*gradients, strict=True), strict=True):
        parameter.grad = sum(each) / len(each)
    optimizer.step()
