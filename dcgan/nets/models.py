"""The two nets of DCGAN, and their first weights.

Radford, Metz and Chintala, "Unsupervised Representation Learning with Deep Convolutional
Generative Adversarial Networks", ICLR 2016 (arXiv:1511.06434): figure 1 is the generator at 64×64.
At 64 the layers, their order and their names are those of the PyTorch DCGAN tutorial and of
pytorch/examples, so weights from there load here::

    noise (B, nz, 1, 1) ─ Generator ─ images (B, C, S, S) in [-1, 1] ─ Discriminator ─ logits (B,)
"""

from __future__ import annotations

import torch
from torch import nn

from dcgan.nets import im2col as patches
from pipeline.errors import UserError

SIZES = (32, 64, 128, 256)
"""Image sizes that the nets can be built for: 4×4 doubled three to six times."""

CHANNELS = (1, 3)
"""Grey or RGB."""


class Generator(nn.Module):
    """From noise to images: 1×1 → 4×4 → doubled until `image_size`, then tanh.

    The 4×4 map is `ngf * image_size // 8` channels deep and each doubling halves that, so the last
    hidden map, at half the image's size, is `ngf` deep whatever the size.

    Args:
        image_size: side of the images, one of `SIZES`.
        nz: length of the latent.
        ngf: depth of the last hidden map.
        channels: of the images, one of `CHANNELS`.

    Attributes:
        options: what the net was built with, by the name of the flag that says it.

    Raises:
        UserError: for a net that cannot be built.
    """

    def __init__(
        self, image_size: int = 64, nz: int = 100, ngf: int = 64, channels: int = 3
    ) -> None:
        super().__init__()
        self.options = {
            "--image-size": image_size,
            "--channels": channels,
            "--nz": nz,
            "--ngf": ngf,
        }
        _check(self.options)
        depth = ngf * image_size // 8
        layers: list[nn.Module] = [
            patches.ConvTranspose2d(nz, depth, 4, 1, 0, bias=False),
            nn.BatchNorm2d(depth),
            nn.ReLU(inplace=True),
        ]
        while depth > ngf:
            layers += [
                patches.ConvTranspose2d(depth, depth // 2, 4, 2, 1, bias=False),
                nn.BatchNorm2d(depth // 2),
                nn.ReLU(inplace=True),
            ]
            depth //= 2
        layers += [patches.ConvTranspose2d(ngf, channels, 4, 2, 1, bias=False), nn.Tanh()]
        self.main = nn.Sequential(*layers)

    def forward(self, noise: torch.Tensor) -> torch.Tensor:
        """Draw one image for each latent.

        Args:
            noise: (B, nz, 1, 1), nominally N(0, 1).

        Returns:
            (B, C, S, S) in [-1, 1].
        """
        images: torch.Tensor = self.main(noise)
        return images


class Discriminator(nn.Module):
    """From images to logits: the generator's mirror image, halved down to 4×4, then one number.

    It stops before the ancestors' sigmoid, which has no weights: their names and shapes still fit.
    A loss taken from the logit stays exact where a probability has rounded to 0 or 1.

    Args:
        image_size: side of the images, one of `SIZES`.
        ndf: depth of the first hidden map; the 4×4 map is `ndf * image_size // 8` deep.
        channels: of the images, one of `CHANNELS`.

    Attributes:
        options: what the net was built with, by the name of the flag that says it.

    Raises:
        UserError: for a net that cannot be built.
    """

    def __init__(self, image_size: int = 64, ndf: int = 64, channels: int = 3) -> None:
        super().__init__()
        self.options = {"--image-size": image_size, "--channels": channels, "--ndf": ndf}
        _check(self.options)
        # No BatchNorm on the image itself: section 3 of the paper found it to oscillate.
        layers: list[nn.Module] = [
            patches.Conv2d(channels, ndf, 4, 2, 1, bias=False),
            nn.LeakyReLU(0.2, inplace=True),
        ]
        depth = ndf
        while depth < ndf * image_size // 8:
            layers += [
                patches.Conv2d(depth, depth * 2, 4, 2, 1, bias=False),
                nn.BatchNorm2d(depth * 2),
                nn.LeakyReLU(0.2, inplace=True),
            ]
            depth *= 2
        layers += [patches.Conv2d(depth, 1, 4, 1, 0, bias=False)]
        self.main = nn.Sequential(*layers)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Judge each image.

        Args:
            images: (B, C, S, S) in [-1, 1].

        Returns:
            Logits, (B,): sigmoid of them is the probability of being real.
        """
        logits: torch.Tensor = self.main(images)  # (B, 1, 1, 1)
        return logits.flatten()


def init_weights(module: nn.Module, generator: torch.Generator | None = None) -> None:
    """Give a net its first weights, in place.

    Every convolution, transposed or not, N(0, 0.02) (Radford et al., section 4); every BatchNorm
    scale N(1, 0.02) and shift 0 (the tutorial). Drawn on the CPU in float32 in the order of the
    layers and then copied, so one seed gives one net, whatever its device, type or memory layout.

    Args:
        module: the net.
        generator: a CPU generator; without one, torch's global state is used.
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


def _normal(mean: float, like: torch.Tensor, generator: torch.Generator | None) -> torch.Tensor:
    return torch.normal(mean, 0.02, like.shape, generator=generator, dtype=torch.float32)


def count_parameters(net: nn.Module) -> int:
    """Count the numbers that training changes: weights, not BatchNorm's running statistics."""
    return sum(parameter.numel() for parameter in net.parameters())


def _check(options: dict[str, int]) -> None:
    """Refuse what no net can be built from."""
    allowed = {"--image-size": SIZES, "--channels": CHANNELS}
    for option, value in options.items():
        choices = allowed.get(option)
        if choices is None and value < 1:
            raise UserError(option, str(value), "at least 1", f"leave {option} out for its default")
        if choices is not None and value not in choices:
            nearest = min(choices, key=lambda choice: abs(choice - value))
            wanted = "one of " + ", ".join(map(str, choices))
            raise UserError(option, str(value), wanted, f"take the nearest, {option} {nearest}")
