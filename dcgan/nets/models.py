"""The two nets of DCGAN, and their initial weights.

Radford, Metz and Chintala, "Unsupervised Representation Learning with Deep Convolutional
Generative Adversarial Networks", ICLR 2016 (arXiv:1511.06434): figure 1 is the generator at 64×64.
At 64 pixels the layers, their order and their names are those of the PyTorch DCGAN tutorial and of
pytorch/examples, so that weights from there load here::

    noise (B, nz, 1, 1) ─ Generator ─ images (B, C, H, W) in [-1, 1] ─ Discriminator ─ logits (B,)

At other sizes the smallest map, which is 4×4 there, may be another rectangle, and the kernels that
make it and see it have its size (`pipeline.images.size.base_of`).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from dcgan.nets.batch_norm import BatchNorm2d, count_batches
from dcgan.nets.conditional import VECTOR, LabelEmbedding, join, project
from dcgan.nets.forms import Conv2d, ConvTranspose2d
from pipeline.errors import UserError
from pipeline.images.labels import LabelSpace
from pipeline.images.size import ImageSize, base_of, plain_size

CHANNELS = (1, 3)
"""Grey or RGB."""


class Generator(nn.Module):
    """Draws images from noise: 1×1 → the smallest map → doubled until `image_size`, then tanh.

    Each doubling of the size halves the channels, and the last hidden map, at half the image's
    size, has `ngf` of them: so after k doublings, the smallest map has `ngf * 2**(k - 1)`.

    Args:
        image_size: of the images, in pixels: the side, or (width, height).
        nz: length of the latents.
        ngf: channels of the last hidden map.
        channels: channels of the images, one of `CHANNELS`.
        labels: what the images are labelled with, for a conditional net.

    Attributes:
        options: the values that the net was built with, by the names of their flags.
        usual_labels: the labels of images that nobody names a label for, (m,) int64 or (m, k)
            float32, as `dcgan.sampling.labels` takes them; None if the net is all there is.

    Raises:
        UserError: no such net can be built.
    """

    def __init__(
        self,
        image_size: ImageSize = 64,
        nz: int = 100,
        ngf: int = 64,
        channels: int = 3,
        labels: LabelSpace | None = None,
    ) -> None:
        super().__init__()
        self.image_size, self.labels = image_size, labels
        self.options: dict[str, Any] = {
            "--image-size": plain_size(image_size),
            "--channels": channels,
            "--nz": nz,
            "--ngf": ngf,
        }
        width, height, doublings = base_of(image_size)
        _check(channels, {"--nz": nz, "--ngf": ngf})
        depth = ngf << doublings - 1
        # More would add nothing: vectors of n labels span n dimensions
        features = 0 if labels is None else min(nz, len(labels.names), VECTOR)
        layers: list[nn.Module] = [
            ConvTranspose2d(nz + features, depth, (height, width), 1, 0, bias=False),
            BatchNorm2d(depth),
            nn.ReLU(inplace=True),
        ]
        while depth > ngf:
            layers += [
                ConvTranspose2d(depth, depth // 2, 4, 2, 1, bias=False),
                BatchNorm2d(depth // 2),
                nn.ReLU(inplace=True),
            ]
            depth //= 2
        layers += [ConvTranspose2d(ngf, channels, 4, 2, 1, bias=False), nn.Tanh()]
        self.main = nn.Sequential(*layers)
        self.embedding = None
        if labels is not None:
            self.embedding = LabelEmbedding(labels, features, spread=1.0)
        self.usual_labels: torch.Tensor | None = None

    def forward(self, noise: torch.Tensor, labels: torch.Tensor | None = None) -> torch.Tensor:
        """Draw one image for each latent.

        Args:
            noise: (B, nz, 1, 1), nominally N(0, 1).
            labels: for a conditional net, as `LabelEmbedding` takes them.

        Returns:
            (B, C, H, W) in [-1, 1].
        """
        count_batches(self)
        if self.embedding is not None:
            assert labels is not None, "a conditional net takes labels"
            noise = join(noise, self.embedding(labels))
        images: torch.Tensor = self.main(noise)
        return images


class Discriminator(nn.Module):
    """Maps images to logits: it mirrors the generator, halving the map, then to one number.

    The tutorial's discriminator ends in a sigmoid; this one does not. A sigmoid has no weights, so
    names and shapes still agree. A loss computed from the logit stays exact where a probability
    would round to 0 or 1.

    Args:
        image_size: of the images, in pixels: the side, or (width, height).
        ndf: channels of the first hidden map; after k halvings there are `ndf * 2**(k - 1)`.
        channels: channels of the images, one of `CHANNELS`.
        labels: what the images are labelled with, for a conditional net.

    Attributes:
        options: the values that the net was built with, by the names of their flags.

    Raises:
        UserError: no such net can be built.
    """

    def __init__(
        self,
        image_size: ImageSize = 64,
        ndf: int = 64,
        channels: int = 3,
        labels: LabelSpace | None = None,
    ) -> None:
        super().__init__()
        self.image_size, self.labels = image_size, labels
        self.options: dict[str, Any] = {
            "--image-size": plain_size(image_size),
            "--channels": channels,
            "--ndf": ndf,
        }
        width, height, doublings = base_of(image_size)
        _check(channels, {"--ndf": ndf})
        # No BatchNorm on the first layer: section 3 of the paper found it to cause oscillation.
        layers: list[nn.Module] = [
            Conv2d(channels, ndf, 4, 2, 1, bias=False),
            nn.LeakyReLU(0.2, inplace=True),
        ]
        depth = ndf
        while depth < ndf << doublings - 1:
            layers += [
                Conv2d(depth, depth * 2, 4, 2, 1, bias=False),
                BatchNorm2d(depth * 2),
                nn.LeakyReLU(0.2, inplace=True),
            ]
            depth *= 2
        layers += [Conv2d(depth, 1, (height, width), 1, 0, bias=False)]
        self.main = nn.Sequential(*layers)
        self.embedding = None if labels is None else LabelEmbedding(labels, depth, spread=0.02)

    def forward(
        self, images: torch.Tensor, labels: torch.Tensor | None = None, batches: int = 1
    ) -> torch.Tensor:
        """Discriminate between real and generated images.

        Args:
            images: (B, C, H, W) in [-1, 1].
            labels: for a conditional net, as `LabelEmbedding` takes them.
            batches: the number of equal mini-batches in `images`, one after another. In training
                the result is that of a call with each.

        Returns:
            Logits, (B,); their sigmoid is the probability that an image is real.
        """
        count_batches(self, batches)
        maps = images
        *layers, last = self.main
        for layer in layers:
            separate = batches > 1 and isinstance(layer, BatchNorm2d)
            maps = layer(maps, batches) if separate else layer(maps)
        logits: torch.Tensor = last(maps).flatten()  # from (B, 1, 1, 1)
        if self.embedding is not None:
            assert labels is not None, "a conditional net takes labels"
            logits = logits + project(maps, self.embedding(labels))
        return logits


def init_weights(module: nn.Module, generator: torch.Generator | None = None) -> None:
    """Initialise the weights of a net, in place.

    The weights of every convolution, transposed or not, are drawn from N(0, 0.02) (Radford et al.,
    section 4). The scales of every BatchNorm are drawn from N(1, 0.02), and its shifts are 0 (the
    tutorial). All are drawn on the CPU in float32, in the order of the layers, and then copied, so
    a seed gives the same net on any device, and in any type and memory layout. The embedding of a
    conditional net comes last. Without a `generator`, which is the CPU's, torch's global one draws.
    """
    with torch.no_grad():
        for layer in module.modules():
            if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
                layer.weight.copy_(_normal(0.0, layer.weight, generator))
                if layer.bias is not None:
                    layer.bias.zero_()
            elif isinstance(layer, nn.BatchNorm2d):
                layer.weight.copy_(_normal(1.0, layer.weight, generator))
                layer.bias.zero_()
            elif isinstance(layer, LabelEmbedding):
                layer.weight.copy_(_normal(0.0, layer.weight, generator, layer.spread))


def _normal(
    mean: float, like: torch.Tensor, generator: torch.Generator | None, spread: float = 0.02
) -> torch.Tensor:
    return torch.normal(mean, spread, like.shape, generator=generator, dtype=torch.float32)


def count_parameters(net: nn.Module) -> int:
    """Count the parameters of a net; BatchNorm's running statistics are not among them."""
    return sum(parameter.numel() for parameter in net.parameters())


def _check(channels: int, counts: dict[str, int]) -> None:
    """Refuse values from which no net can be built."""
    for option, value in counts.items():
        if value < 1:
            raise UserError(option, str(value), "at least 1", f"leave {option} out for its default")
    if channels not in CHANNELS:
        nearest = min(CHANNELS, key=lambda choice: abs(choice - channels))
        wanted = "one of " + ", ".join(map(str, CHANNELS))
        raise UserError(
            "--channels", str(channels), wanted, f"use the nearest, --channels {nearest}"
        )
