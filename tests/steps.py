"""Small nets and batches for the tests of the step."""

import torch

from dcgan.models import Discriminator, Generator, init_weights

SIZE, NZ, BATCH = 64, 16, 8


def nets(dtype: torch.dtype = torch.float32, size: int = SIZE) -> tuple[Generator, Discriminator]:
    """Draw a generator and a discriminator, always the same ones."""
    seed = torch.Generator().manual_seed(11)
    pair = Generator(size, nz=NZ, ngf=8), Discriminator(size, ndf=8)
    for net in pair:
        init_weights(net, seed)
        net.to(dtype)
    return pair


def batch(
    seed: int, dtype: torch.dtype = torch.float32, size: int = SIZE
) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw real images and noise."""
    draw = torch.Generator().manual_seed(seed)
    real = torch.rand(BATCH, 3, size, size, generator=draw, dtype=torch.float64) * 2 - 1
    noise = torch.randn(BATCH, NZ, 1, 1, generator=draw, dtype=torch.float64)
    return real.to(dtype), noise.to(dtype)
