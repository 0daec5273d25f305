"""Is a label obeyed? Its samples beside real images of its own, and of every other label.

The distance is the energy distance (Székely and Rizzo, "Energy statistics", 2013), without bias,
between images reduced as for `neighbours`: it sees brightness, colour and shape, where SWD sees
texture.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from dcgan.metrics.neighbours import GRID, summary
from dcgan.metrics.reals import Measured, Provenance
from dcgan.sampling.labels import Label

MOST = 256
"""Images a side: a hundred labels, each beside all others, take seconds."""

RECIPE = f"energy distance of {GRID}×{GRID} field means"


@dataclass(frozen=True)
class OtherLabel(Measured):
    """The distance of a label's samples from the nearest other label's real images."""

    other: str
    """That label."""

    def record(self, nimg: int, net: str) -> dict[str, Any]:
        """A line of `metrics.jsonl`."""
        return super().record(nimg, net) | {"other": self.other}


class OfLabel:
    """A label's images, reduced.

    Args:
        label: theirs.
        fakes: samples, (N, H, W, C) uint8; the first `MOST` of them count.
        reals: real images, of the same shape.
        source: of the real images.
    """

    def __init__(
        self, label: Label, fakes: torch.Tensor, reals: torch.Tensor, source: Provenance
    ) -> None:
        self.label, self.source = label, source
        self.fakes, self.reals = summary(fakes[:MOST]), summary(reals[:MOST])


def beside_others(labels: Sequence[OfLabel]) -> list[list[Measured]]:
    """Measure each label's samples beside its own real images and the nearest other label's.

    Classes are compared with all other classes, a value of an attribute with its other value: only
    these share no image.

    Returns:
        For each label both numbers; none where no other label was measured.
    """
    return [_beside_others(own, [each for each in labels if _apart(own, each)]) for own in labels]


def _apart(one: OfLabel, other: OfLabel) -> bool:
    if one.label.space.kind == "classes":
        return one is not other
    return one is not other and one.label.values.keys() == other.label.values.keys()


def _beside_others(own: OfLabel, others: Sequence[OfLabel]) -> list[Measured]:
    if not others:
        return []
    distances = [energy_distance(own.fakes, each.reals) for each in others]
    nearest = min(range(len(others)), key=distances.__getitem__)
    floor = energy_distance(own.reals, others[nearest].reals)
    name, n, label = others[nearest].label.name, len(own.fakes), own.label.name
    distance = energy_distance(own.fakes, own.reals)
    return [
        # Without bias, so real images of one label are at 0 from others of it, in the mean
        Measured("own_label", distance, 0.0, n, own.source, label=label),
        OtherLabel("other_label", distances[nearest], floor, n, own.source, name, label=label),
    ]


def energy_distance(one: torch.Tensor, other: torch.Tensor) -> float:
    """The energy distance between two sets of at least two rows each; near 0 for like sets."""
    return 2 * float(torch.cdist(one, other).mean()) - _within(one) - _within(other)


def _within(rows: torch.Tensor) -> float:
    """The mean distance between two different rows."""
    return float(torch.pdist(rows).mean())
