"""The adversarial step: one update of D and one of G, once, literally.

Algorithm 1 of Goodfellow et al., "Generative Adversarial Nets", 2014 (arXiv:1406.2661), with k = 1
and the non-saturating loss of its section 3; Adam as in Radford et al. 2016, section 4.
Nothing here waits for the device: no value is read, no Python branch looks at one. Hence a faster
mode may wrap the object, compiled or captured in a CUDA graph, and this file stays the only maths.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import nn

STATISTICS = ("loss_d", "loss_g", "d_x", "d_gz1", "d_gz2")
"""What a step returns, in this order.

- `loss_d`: D's loss, -log D(x) - log(1 - D(G(z))), each term averaged over its batch.
- `loss_g`: G's loss, -log D(G(z)) after D's update, averaged.
- `d_x`: mean of D(x) over the real batch, a probability in [0, 1].
- `d_gz1`, `d_gz2`: mean of D(G(z)) over the fake batch, before and after D's update.
"""


class AdversarialStep:
    """Holds two nets and their optimisers; each call updates D, then G.

    Args:
        generator: (B, nz, 1, 1) → (B, C, S, S); on its device and in train mode already.
        discriminator: (B, C, S, S) → logits (B,); likewise.
        lr: Adam's step size, of both optimisers.
        beta1: Adam's first decay rate; the second stays at 0.999.

    Attributes:
        optimizer_d: Adam of the discriminator.
        optimizer_g: Adam of the generator.
    """

    def __init__(
        self,
        generator: nn.Module,
        discriminator: nn.Module,
        lr: float = 2e-4,
        beta1: float = 0.5,
    ) -> None:
        self.generator, self.discriminator = generator, discriminator
        self.optimizer_d = _adam(discriminator, lr, beta1)
        self.optimizer_g = _adam(generator, lr, beta1)

    def __call__(self, real: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """Do one step.

        The losses are binary cross-entropy written for a logit t, which needs no label tensor and
        cannot overflow: -log sigmoid(t) = softplus(-t) at label 1, -log(1 - sigmoid(t)) =
        softplus(t) at label 0.

        Args:
            real: (B, C, S, S) float in [-1, 1]; read only.
            noise: (B, nz, 1, 1) float, N(0, 1); read only.

        Returns:
            (5,) on the device, detached, in the order of `STATISTICS`.
        """
        # Update D: descend -log D(x) - log(1 - D(G(z))). Real and fake go through D as batches of
        # their own, real first: BatchNorm's statistics of the two never mix.
        self.discriminator.zero_grad()
        fake = self.generator(noise)
        logits_x = self.discriminator(real)
        logits_gz1 = self.discriminator(fake.detach())
        loss_d = F.softplus(-logits_x).mean() + F.softplus(logits_gz1).mean()
        torch.autograd.backward(loss_d)
        self.optimizer_d.step()

        # Update G: descend -log D(G(z)), through the updated D and the same fake images.
        self.generator.zero_grad()
        with _frozen(self.discriminator):
            logits_gz2 = self.discriminator(fake)
            loss_g = F.softplus(-logits_gz2).mean()
            torch.autograd.backward(loss_g)
        self.optimizer_g.step()

        with torch.no_grad():
            d_x, d_gz1, d_gz2 = (
                torch.sigmoid(logits).mean() for logits in (logits_x, logits_gz1, logits_gz2)
            )
            return torch.stack((loss_d, loss_g, d_x, d_gz1, d_gz2))


def _adam(net: nn.Module, lr: float, beta1: float) -> torch.optim.Adam:
    """Adam in one kernel; on CUDA it keeps its own count there, so that a graph can capture it."""
    on_cuda = next(net.parameters()).is_cuda  # elsewhere torch refuses `capturable`
    return torch.optim.Adam(
        net.parameters(), lr=lr, betas=(beta1, 0.999), fused=True, capturable=on_cuda
    )


@contextmanager
def _frozen(net: nn.Module) -> Iterator[None]:
    """Spare the net's weight gradients inside; gradients still pass through to its input."""
    trainable = [parameter for parameter in net.parameters() if parameter.requires_grad]
    for parameter in trainable:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trainable:
            parameter.requires_grad_(True)
