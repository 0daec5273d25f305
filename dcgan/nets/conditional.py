"""Labels in the nets: a learned vector beside G's latent, and a projection in D.

G takes the latent and the vector concatenated, as Mirza and Osindero, "Conditional Generative
Adversarial Nets", 2014 (arXiv:1411.1784), do. D adds to its logit the inner product
of a second vector with its last map, summed over places: Miyato and Koyama, "cGANs with Projection
Discriminator", ICLR 2018 (arXiv:1802.05637), section 2.

A label is an integer for one class, or a row of 0 and 1 for yes/no attributes::

    labels (B,) int64 or (B, k) ─ LabelEmbedding ─ vectors (B, features)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.autograd.function import once_differentiable

from pipeline.images.labels import MAX_CLASSES, Kind, LabelSpace

KINDS: tuple[Kind, ...] = ("classes", "attributes")

VECTOR = 10
"""Numbers in the vector that G takes, at most. They are the same in every image of a class, so Adam
moves the first layer in their direction at each step, the faster the more they are. On 8,000 of
CelebA's faces in 100 classes by brightness, at 32 pixels, samples of a class differed by 13 grey
levels a pixel after 64,000 images with a vector as long as the latent (100 numbers of N(0, 1)), by
42 with ten as long together, and by 60 with ten of N(0, 1); real ones differ by 56.
"""


class LabelEmbedding(nn.Module):
    """A learned vector for each class, or a linear map of attributes to a vector.

    Both are the product of a row of numbers with one matrix, so classes may be mixed, too.

    Args:
        labels: what the labels say.
        features: length of the vectors.
        spread: standard deviation of the initial weights.

    Attributes:
        weight: (n, features) for n classes or attributes; in a state dict its name is the kind of
            the labels, so that a file of weights tells it.
    """

    def __init__(self, labels: LabelSpace, features: int, spread: float) -> None:
        super().__init__()
        self.labels, self.spread = labels, spread
        weight = torch.empty(len(labels.names), features)
        self.register_parameter(labels.kind, nn.Parameter(weight))

    @property
    def weight(self) -> nn.Parameter:
        weight: nn.Parameter = getattr(self, self.labels.kind)
        return weight

    def extra_repr(self) -> str:
        count, features = self.weight.shape
        return f"{count} {self.labels.kind}, {features}"

    def forward(self, labels: torch.Tensor) -> torch.Tensor:
        """Return the vectors of labels, (B, features).

        Args:
            labels: int64 (B,) of classes; or float (B, n): shares of the classes, which add up to
                1, or attributes from 0 to 1.
        """
        if not labels.is_floating_point():
            vectors: torch.Tensor = _Lookup.apply(self.weight, labels)
            return vectors
        rows = labels.to(self.weight.dtype)
        if self.labels.kind == "attributes":  # ±1/√k: as long as the row of a class
            rows = (2 * rows - 1) * len(self.weight) ** -0.5
        return rows @ self.weight


class _Lookup(torch.autograd.Function):
    """Rows of a matrix, whose gradient is a product with one-hot rows.

    It adds up in a fixed order. Compiled code would compute that of `nn.Embedding` by atomic
    additions, whose order differs from time to time.
    """

    @staticmethod
    def forward(context: Any, weight: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        context.save_for_backward(labels)
        context.count = len(weight)
        return weight.index_select(0, labels)

    @staticmethod
    @once_differentiable
    def backward(context: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        (labels,) = context.saved_tensors
        numbers = torch.arange(context.count, device=labels.device)
        return (numbers[:, None] == labels).to(gradient.dtype) @ gradient, None


def join(noise: torch.Tensor, vectors: torch.Tensor) -> torch.Tensor:
    """Concatenate latents (B, nz, 1, 1) and vectors (B, features) to (B, nz + features, 1, 1)."""
    return torch.cat((noise, vectors[:, :, None, None]), 1)


def project(maps: torch.Tensor, vectors: torch.Tensor) -> torch.Tensor:
    """Return the inner products of vectors (B, C) and maps (B, C, h, w) summed over places, (B,).

    The sums are in float32 at least.
    """
    dtype = torch.promote_types(vectors.dtype, torch.float32)
    return (vectors * maps.sum((2, 3), dtype=dtype)).sum(1)


def blank_labels(
    labels: LabelSpace | None, images: int, device: torch.device
) -> tuple[torch.Tensor, ...]:
    """Return what a net takes beside a batch: labels that are all 0, or nothing without labels."""
    if labels is None:
        return ()
    if labels.kind == "classes":
        return (torch.zeros(images, dtype=torch.int64, device=device),)
    return (torch.zeros(images, len(labels.names), device=device),)


def numbered(shapes: Mapping[str, tuple[int, ...]]) -> tuple[LabelSpace | None, int]:
    """Recover the labels of a net from the shapes of its state dict, with numbers for names.

    Returns:
        The labels, and the length of their vectors; None and 0 for no labels, or more than any set
        has.
    """
    for kind in KINDS:
        match shapes.get(f"embedding.{kind}"):
            case (count, features) if 0 < count <= MAX_CLASSES:
                return LabelSpace(kind, tuple(map(str, range(count)))), features
    return None, 0
