"""Generated and held-out real images, described by a net, beside the same other real images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch

from dcgan.distributed import Ranks
from dcgan.metrics.reals import Extractor, Measured, Reals
from dcgan.metrics.reference_cache import Arrays, kept
from dcgan.metrics.sharing import describe, fakes_from
from dcgan.nets.models import Generator
from pipeline.errors import UserError

Formulas = Callable[[torch.Tensor, torch.Tensor], dict[str, float]]
"""Numbers by metric, from the features of real images and those of the images to judge."""


@dataclass
class Comparison:
    """What a comparison finds."""

    measured: list[Measured]
    reals: torch.Tensor
    """Features of the real images that were compared with, (N, D)."""
    fakes: torch.Tensor
    """Features of the generated images, (n, D)."""


def at_least(least: int, n: int, reals: Reals, flag: str, ranks: Ranks) -> int:
    """The images a side: `n`, or half of the set where that is less; a collective.

    Raises:
        UserError: there are fewer than `least`.
    """
    n = reals.at_most(n)
    with ranks.together():
        if n < least:
            remedy = f"pack more images, or leave {flag} out"
            raise UserError(flag, f"{reals.total} real images", f"at least {2 * least}", remedy)
    return n


def compare(
    net: Generator,
    reals: Reals,
    extractor: Extractor,
    others: range,
    held_out: range,
    formulas: Formulas,
    how: dict[str, str],
    ranks: Ranks,
) -> Comparison | None:
    """Measure a generator's images, and for the floor as many real ones; a collective.

    Args:
        net: on any device; stays as it is.
        reals: of the same size and channels.
        extractor: gives what the formulas take.
        others: the real images that both are compared with.
        held_out: the real images of the floor.
        formulas: the metrics.
        how: for each metric, how it is computed from the features.
        ranks: share the work.

    Returns:
        On the first rank, what it finds; None on the others.
    """
    n = len(held_out)
    source = reals.provenance(extractor.description, extractor.digest, extractor.comparable)

    def features(of: range) -> torch.Tensor:
        blocks = lambda start, stop: reals.blocks(of.start + start, of.start + stop)  # noqa: E731
        return describe(extractor, blocks, len(of), ranks)

    def reference() -> Arrays:
        beside, floor = features(others), features(held_out)
        if not ranks.is_first:
            return {}
        floors = {name: np.array(value) for name, value in formulas(beside, floor).items()}
        return {"features": beside.numpy()} | floors

    key = {"n": n, "how": f"{source.extractor}, {how}", "digest": source.digest}
    arrays = kept(key | {"reals": source.recipe, "shards": source.shards}, reference, ranks)
    fakes = describe(extractor, fakes_from(net), n, ranks)
    if not ranks.is_first:
        return None
    beside = torch.from_numpy(arrays["features"])
    measured = [
        Measured(
            name,
            value,
            float(arrays[name]),
            n,
            replace(source, extractor=f"{source.extractor}, {how[name]}"),
        )
        for name, value in formulas(beside, fakes).items()
    ]
    return Comparison(measured, beside, fakes)
