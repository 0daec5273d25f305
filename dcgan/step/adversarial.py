"""The adversarial step: one update of D and one of G.

This is Algorithm 1 of Goodfellow et al., "Generative Adversarial Nets", 2014 (arXiv:1406.2661),
with k = 1 and the non-saturating loss of its section 3; Adam as in Radford et al. 2016, section 4.
Nothing here waits for the device: no value is read, and no Python branch depends on one. Therefore
a faster mode can wrap the step, compiled or captured in a CUDA graph, and this file remains the
only implementation of the maths.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TypeAlias, cast

import torch
import torch.nn.functional as F
from torch import nn

from dcgan.step.augment import augment

Net: TypeAlias = Callable[..., torch.Tensor]
Loss: TypeAlias = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
Reduce: TypeAlias = Callable[[nn.Module], object]
Labels: TypeAlias = tuple[torch.Tensor, ...]
"""The labels of a batch, if the nets are conditional; else empty."""


def discriminator_loss(
    logits_x: torch.Tensor, logits_gz: torch.Tensor, label_smoothing: float = 0.0
) -> torch.Tensor:
    """Compute -log D(x) - log(1 - D(G(z))), each term averaged over its batch.

    Binary cross-entropy, written for a logit t, needs no label tensor and cannot overflow:
    -log sigmoid(t) = softplus(-t) at label 1, -log(1 - sigmoid(t)) = softplus(t) at label 0.
    At label 1 - s it is softplus(-t) + s t, since softplus(t) = softplus(-t) + t.

    Args:
        logits_x: (B,), the logits of real images.
        logits_gz: (B,), the logits of generated images.
        label_smoothing: s. The label of real images is 1 - s; that of generated images stays 0
            (Salimans et al., "Improved Techniques for Training GANs", 2016, section 3.4).

    Returns:
        A scalar, 0 or more, in the logits' type.
    """
    loss_x = F.softplus(-logits_x).mean()
    if label_smoothing:
        loss_x = loss_x + label_smoothing * logits_x.mean()
    return loss_x + F.softplus(logits_gz).mean()


def generator_loss(logits_gz: torch.Tensor) -> torch.Tensor:
    """Compute -log D(G(z)), averaged over the batch, from logits (B,); 0 or more, in their type."""
    return F.softplus(-logits_gz).mean()


def no_sync(net: nn.Module) -> None:
    """Leave a net's gradients unchanged: with one process there is nothing to average."""


class AdversarialStep:
    """Holds two nets and their optimisers; each call updates D, then G.

    Args:
        generator: (B, nz, 1, 1) → (B, C, S, S); already on its device and in train mode.
        discriminator: (B, C, S, S) → logits (B,); already on its device and in train mode. Where
            a step gets labels, both nets take them as their second argument.
        lr_d: Adam's step size for the discriminator.
        lr_g: Adam's step size for the generator.
        beta1: Adam's first decay rate; the second stays at 0.999.
        bf16: whether the nets compute in bfloat16. Weights, their gradients and updates, losses,
            BatchNorm's statistics and the returned statistics keep their types.
        label_smoothing: the amount subtracted from the label of real images.
        augmented: whether D sees changed images only, by `dcgan.step.augment`.

    Attributes:
        joint: whether the discriminator, which is then a `Discriminator`, takes real and generated
            images in one call: fewer and larger products. It still treats them as two batches.
        augment: changes the images that D sees; None if it sees them as they are.
        generate, discriminate, loss_d, loss_g: with `augment`, the parts that are functions of
            tensors alone; a faster mode puts compiled ones here. A subclass may set losses of its
            own in `__init__`: `loss_d` takes D's outputs (B,) for real and for generated images,
            `loss_g` those for generated images, in float32; each returns a scalar. For one that
            needs more than these outputs, override `objective_d` or `objective_g`.
        reduce_gradients: called with a net after its backward pass, before its update. With
            several ranks it is their `GradientReduction`.
    """

    def __init__(
        self,
        generator: nn.Module,
        discriminator: nn.Module,
        lr_d: float = 2e-4,
        lr_g: float = 2e-4,
        beta1: float = 0.5,
        bf16: bool = False,
        label_smoothing: float = 0.0,
        augmented: bool = False,
    ) -> None:
        self.generator, self.discriminator = generator, discriminator
        self.joint = False
        self.optimizer_d = _adam(discriminator, lr_d, beta1)
        self.optimizer_g = _adam(generator, lr_g, beta1)
        self.bf16 = bf16
        self.augment: Net | None = augment if augmented else None
        self.generate: Net = generator
        self.discriminate: Net = discriminator
        self.loss_d: Loss = partial(discriminator_loss, label_smoothing=label_smoothing)
        self.loss_g: Net = generator_loss
        self.reduce_gradients: Reduce = no_sync

    def __call__(
        self,
        real: torch.Tensor,
        noise: torch.Tensor,
        draws: torch.Tensor | None = None,
        labels_x: torch.Tensor | None = None,
        labels_gz: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Do one step.

        Args:
            real: (B, C, S, S) float in [-1, 1]; not modified.
            noise: (B, nz, 1, 1) float, N(0, 1); not modified.
            draws: (3, DRAWS, B), uniform in [0, 1), if D sees changed images: for the real ones,
                for the generated ones in D's update, and for these in G's.
            labels_x: those of the real images, (B,) int64 or (B, k) float, for conditional nets.
            labels_gz: those of the images to generate, likewise.

        Returns:
            (5,) on the device, detached, in the order of `STATISTICS`.
        """
        # Update D. The fake images are detached: this loss does not reach G
        self.discriminator.zero_grad()
        of_x, of_gz = (() if each is None else (each,) for each in (labels_x, labels_gz))
        fake = self._run(self.generate, noise, *of_gz)
        seen_x, seen_gz = self._seen(real, draws, 0), self._seen(fake.detach(), draws, 1)
        loss_d, logits_x, logits_gz1 = self.objective_d(seen_x, seen_gz, of_x, of_gz)
        torch.autograd.backward(loss_d)
        self.reduce_gradients(self.discriminator)
        self.optimizer_d.step()

        # Update G through the updated D, with the same fake images
        self.generator.zero_grad()
        with _frozen(self.discriminator):
            loss_g, logits_gz2 = self.objective_g(self._seen(fake, draws, 2), of_gz)
            torch.autograd.backward(loss_g)
        self.reduce_gradients(self.generator)
        self.optimizer_g.step()

        with torch.no_grad():
            d_x, d_gz1, d_gz2 = (
                torch.sigmoid(logits).mean() for logits in (logits_x, logits_gz1, logits_gz2)
            )
            return torch.stack((loss_d, loss_g, d_x, d_gz1, d_gz2))

    def objective_d(
        self, real: torch.Tensor, fake: torch.Tensor, labels_x: Labels, labels_gz: Labels
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Compute what D's update descends: -log D(x) - log(1 - D(G(z))).

        Real and fake images go through D as separate batches, real ones first, so that BatchNorm's
        statistics of the two never mix. A subclass may add a regulariser.

        Args:
            real: (B, C, S, S), as D sees them.
            fake: likewise, detached from G.
            labels_x: the labels of the real images, if the nets are conditional.
            labels_gz: those of the fake images.

        Returns:
            The loss, a scalar; D's logits, (B,), of the real and of the fake images.
        """
        if self.joint:
            both = torch.cat((real, fake)).contiguous(memory_format=torch.channels_last)
            labels = map(torch.cat, zip(labels_x, labels_gz, strict=True))
            logits_x, logits_gz = self._logits(both, *labels, batches=2).chunk(2)
        else:
            logits_x = self._logits(real, *labels_x)
            logits_gz = self._logits(fake, *labels_gz)
        return self.loss_d(logits_x, logits_gz), logits_x, logits_gz

    def objective_g(
        self, fake: torch.Tensor, labels_gz: Labels
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Compute what G's update descends, -log D(G(z)), and D's logits; see `objective_d`."""
        logits_gz = self._logits(fake, *labels_gz)
        return self.loss_g(logits_gz), logits_gz

    def updates_of_g(self) -> torch.Tensor:
        """Return how often G was updated: Adam's count on the device, which checkpoints keep."""
        state = self.optimizer_g.state[next(self.generator.parameters())]
        return cast(torch.Tensor, state["step"])

    def _seen(self, images: torch.Tensor, draws: torch.Tensor | None, which: int) -> torch.Tensor:
        """Return what D sees of images."""
        if self.augment is None:
            return images
        assert draws is not None, "changed images need draws"
        return self.augment(images, draws[which])

    def _run(self, net: Net, *inputs: torch.Tensor, **options: int) -> torch.Tensor:
        """Run a net forward, in bfloat16 if `bf16` is set.

        Autocast caches the weights that it has cast until the outermost region ends, and would
        still use them after an update. Hence each pass has its own region, and nothing is cached,
        in case the step itself is called inside a region
        (docs.pytorch.org/docs/stable/amp.html, `cache_enabled`).
        """
        if not self.bf16:
            return net(*inputs, **options)
        with torch.autocast(inputs[0].device.type, torch.bfloat16, cache_enabled=False):
            return net(*inputs, **options)

    def _logits(self, *inputs: torch.Tensor, **options: int) -> torch.Tensor:
        """Return D's logits in float32: in bfloat16 a loss would have only two digits."""
        logits = self._run(self.discriminate, *inputs, **options)
        return logits.to(torch.promote_types(logits.dtype, torch.float32))


def _adam(net: nn.Module, lr: float, beta1: float) -> torch.optim.Adam:
    """Make a fused Adam; on CUDA it counts its steps there, so that a graph can capture it."""
    device = next(net.parameters()).device
    on_cuda = device.type == "cuda"  # elsewhere torch refuses `capturable`
    # A graph repeats the float that it was captured with, but reads a tensor anew each time
    # (see `lr` in docs.pytorch.org/docs/stable/generated/torch.optim.Adam.html).
    rate = torch.tensor(lr, device=device) if on_cuda else lr
    return torch.optim.Adam(
        net.parameters(), lr=rate, betas=(beta1, 0.999), fused=True, capturable=on_cuda
    )


@contextmanager
def _frozen(net: nn.Module) -> Iterator[None]:
    """Compute no gradients of the net's weights inside; gradients still reach its input."""
    trainable = [parameter for parameter in net.parameters() if parameter.requires_grad]
    for parameter in trainable:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trainable:
            parameter.requires_grad_(True)
