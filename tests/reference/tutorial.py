"""The PyTorch DCGAN tutorial's init and loop body, call by call: slow, literal, the oracle.

Source: "DCGAN Tutorial" by Nathan Inkawhich, pytorch/tutorials, after pytorch/examples/dcgan
(both BSD 3-Clause, by the PyTorch contributors). The names are the source's. Three things differ:
its globals are arguments; the noise is given instead of drawn; `tutorial_step` takes a netD that
ends in logits and puts the sigmoid after it, so that both implementations can train equal nets.
"""

# ruff: noqa: N803, N806 - the tutorial's own names

from __future__ import annotations

from typing import Any

import torch
from torch import nn, optim

from dcgan.profiling.tutorial_step import tutorial_discriminator, tutorial_generator


def weights_init(m: Any) -> None:
    classname = m.__class__.__name__
    if classname.find("Conv") != -1:
        nn.init.normal_(m.weight.data, 0.0, 0.02)
    elif classname.find("BatchNorm") != -1:
        nn.init.normal_(m.weight.data, 1.0, 0.02)
        nn.init.constant_(m.bias.data, 0)


class TutorialGenerator(nn.Module):
    def __init__(self, nz: int = 100, ngf: int = 64, nc: int = 3) -> None:
        super().__init__()
        self.main = tutorial_generator(64, nz, ngf, nc)

    def forward(self, input: torch.Tensor) -> Any:
        return self.main(input)


class TutorialDiscriminator(nn.Module):
    def __init__(self, ndf: int = 64, nc: int = 3) -> None:
        super().__init__()
        self.main = tutorial_discriminator(64, ndf, nc)

    def forward(self, input: torch.Tensor) -> Any:
        return self.main(input)


def tutorial_optimizers(
    netG: nn.Module, netD: nn.Module, lr: float = 0.0002, beta1: float = 0.5
) -> tuple[optim.Adam, optim.Adam]:
    optimizerD = optim.Adam(netD.parameters(), lr=lr, betas=(beta1, 0.999))
    optimizerG = optim.Adam(netG.parameters(), lr=lr, betas=(beta1, 0.999))
    return optimizerG, optimizerD


def tutorial_step(
    netG: nn.Module,
    netD: nn.Module,
    optimizerG: optim.Adam,
    optimizerD: optim.Adam,
    real: torch.Tensor,
    noise: torch.Tensor,
) -> tuple[float, float, float, float, float]:
    """Return errD, errG, D_x, D_G_z1 and D_G_z2 as Python floats."""
    criterion = nn.BCELoss()
    real_label = 1.0
    fake_label = 0.0

    # (1) Update D network: maximize log(D(x)) + log(1 - D(G(z)))
    # with an all-real batch
    netD.zero_grad()
    label = torch.full((real.size(0),), real_label, dtype=real.dtype, device=real.device)
    output = torch.sigmoid(netD(real)).view(-1)
    errD_real = criterion(output, label)
    errD_real.backward()
    D_x = output.mean().item()
    # with an all-fake batch
    fake = netG(noise)
    label.fill_(fake_label)
    output = torch.sigmoid(netD(fake.detach())).view(-1)
    errD_fake = criterion(output, label)
    errD_fake.backward()
    D_G_z1 = output.mean().item()
    errD = errD_real + errD_fake
    optimizerD.step()

    # (2) Update G network: maximize log(D(G(z)))
    netG.zero_grad()
    label.fill_(real_label)  # fake labels are real for generator cost
    output = torch.sigmoid(netD(fake)).view(-1)
    errG = criterion(output, label)
    errG.backward()
    D_G_z2 = output.mean().item()
    optimizerG.step()

    return errD.item(), errG.item(), D_x, D_G_z1, D_G_z2
