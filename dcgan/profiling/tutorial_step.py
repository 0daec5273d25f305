"""The PyTorch DCGAN tutorial's nets and loop body, call by call: what `dcgan-profile step` beats.

Source: "DCGAN Tutorial" by Nathan Inkawhich, pytorch/tutorials, after pytorch/examples/dcgan
(both BSD 3-Clause, by the PyTorch contributors). The names are the source's; sizes and device are
arguments. Nothing trains with this: it stands here for comparison, with all its habits (labels
made in each step, NCHW, the default Adam, five values read by the host).
"""

# ruff: noqa: N803, N806 - the tutorial's own names

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import TypeAlias

import torch
from torch import nn, optim

from pipeline.images.size import ImageSize, base_of

Losses: TypeAlias = tuple[float, float, float, float, float]
"""errD, errG, D_x, D_G_z1 and D_G_z2."""


def tutorial_generator(
    image_size: ImageSize = 64, nz: int = 100, ngf: int = 64, nc: int = 3
) -> nn.Sequential:
    """Make netG's layers; the tutorial writes out those of size 64."""
    kernel, widths = _smallest(image_size)
    layers: list[nn.Module] = [
        nn.ConvTranspose2d(nz, ngf * widths[-1], kernel, 1, 0, bias=False),
        nn.BatchNorm2d(ngf * widths[-1]),
        nn.ReLU(True),
    ]
    for narrow, wide in reversed(list(pairwise(widths))):
        layers += [
            nn.ConvTranspose2d(ngf * wide, ngf * narrow, 4, 2, 1, bias=False),
            nn.BatchNorm2d(ngf * narrow),
            nn.ReLU(True),
        ]
    return nn.Sequential(*layers, nn.ConvTranspose2d(ngf, nc, 4, 2, 1, bias=False), nn.Tanh())


def tutorial_discriminator(image_size: ImageSize = 64, ndf: int = 64, nc: int = 3) -> nn.Sequential:
    """Make netD's layers, which end in a sigmoid."""
    kernel, widths = _smallest(image_size)
    layers: list[nn.Module] = [
        nn.Conv2d(nc, ndf, 4, 2, 1, bias=False),
        nn.LeakyReLU(0.2, inplace=True),
    ]
    for narrow, wide in pairwise(widths):
        layers += [
            nn.Conv2d(ndf * narrow, ndf * wide, 4, 2, 1, bias=False),
            nn.BatchNorm2d(ndf * wide),
            nn.LeakyReLU(0.2, inplace=True),
        ]
    last = nn.Conv2d(ndf * widths[-1], 1, kernel, 1, 0, bias=False)
    return nn.Sequential(*layers, last, nn.Sigmoid())


def _smallest(image_size: ImageSize) -> tuple[tuple[int, int], list[int]]:
    """Height and width of the smallest map; multiples of ngf and ndf: 1, 2, 4, 8 at size 64."""
    width, height, doublings = base_of(image_size)
    return (height, width), [2**power for power in range(doublings)]


def tutorial_step(
    netG: nn.Module,
    netD: nn.Module,
    nz: int,
    device: torch.device,
    lr: float = 0.0002,
    beta1: float = 0.5,
) -> Callable[[torch.Tensor], Losses]:
    """Prepare as the tutorial does before its loop; the result is the body of the loop."""
    criterion = nn.BCELoss()
    real_label = 1.0
    fake_label = 0.0
    optimizerD = optim.Adam(netD.parameters(), lr=lr, betas=(beta1, 0.999))
    optimizerG = optim.Adam(netG.parameters(), lr=lr, betas=(beta1, 0.999))

    def step(data: torch.Tensor) -> Losses:
        # (1) Update D network: maximize log(D(x)) + log(1 - D(G(z)))
        # Train with all-real batch
        netD.zero_grad()
        real_cpu = data.to(device)
        b_size = real_cpu.size(0)
        label = torch.full((b_size,), real_label, dtype=torch.float, device=device)
        output = netD(real_cpu).view(-1)
        errD_real = criterion(output, label)
        errD_real.backward()
        D_x = output.mean().item()

        # Train with all-fake batch
        noise = torch.randn(b_size, nz, 1, 1, device=device)
        fake = netG(noise)
        label.fill_(fake_label)
        output = netD(fake.detach()).view(-1)
        errD_fake = criterion(output, label)
        errD_fake.backward()
        D_G_z1 = output.mean().item()
        errD = errD_real + errD_fake
        optimizerD.step()

        # (2) Update G network: maximize log(D(G(z)))
        netG.zero_grad()
        label.fill_(real_label)  # fake labels are real for generator cost
        output = netD(fake).view(-1)
        errG = criterion(output, label)
        errG.backward()
        D_G_z2 = output.mean().item()
        optimizerG.step()

        # It keeps both losses of each step for its plot
        return errD.item(), errG.item(), D_x, D_G_z1, D_G_z2

    return step
