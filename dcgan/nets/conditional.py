"""Labels in the nets: a learned vector beside G's latent, and a projection in D.

G takes the vector as long as a latent and concatenated to it, as the mapping network of Karras et
al., "Training Generative Adversarial Networks with Limited Data", NeurIPS 2020, does
(`MappingNetwork` of NVlabs/stylegan2-ada-pytorch). D adds to its logit the inner product of a
second vector with its last map, summed over places: Miyato and Koyama, "cGANs with Projection
Discriminator", ICLR 2018 (arXiv:1802.05637), section 2.

A label is an integer for one class, or a row of 0 and 1 for yes/no attributes::

    labels (B,) int64 or (B, k) ─ LabelEmbedding ─ vectors (B, features)
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from pipeline.images.labels import MAX_CLASSES, Kind, LabelSpace

KINDS: tuple[Kind, ...] = ("classes", "attributes")


class LabelEmbedding(nn.Module):
    """A learned vector for each class, or a linear map of attributes to a vector.

    Both are the product of a row of numbers with one matrix. So both compute their gradient in a
    fixed order, without atomic additions, and classes may be mixed.

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
        """Return the vectors of labels.

        Args:
            labels: int64 (B,) of classes; or float (B, n): shares of the classes, which add up to
                1, or attributes from 0 to 1.

        Returns:
            (B, features).
        """
        return self._rows(labels) @ self.weight

    def _rows(self, labels: torch.Tensor) -> torch.Tensor:
        """Return rows of length 1, (B, n): one-hot for a class, ±1/√k for k attributes."""
        dtype = self.weight.dtype
        if not labels.is_floating_point():
            numbers = torch.arange(len(self.weight), device=labels.device)
            return (labels[:, None] == numbers).to(dtype)
        rows = labels.to(dtype)
        if self.labels.kind == "attributes":
            rows = (2 * rows - 1) * len(self.weight) ** -0.5
        return rows


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


def numbered(shapes: Mapping[str, tuple[int, ...]]) -> LabelSpace | None:
    """Recover the labels of a net from the shapes of its state dict, with numbers for names.

    Returns:
        None for the net of no labels, or of more than a set may have.
    """
    for kind in KINDS:
        count, *_ = shapes.get(f"embedding.{kind}") or (0,)
        if 0 < count <= MAX_CLASSES:
            return LabelSpace(kind, tuple(map(str, range(count))))
    return None
