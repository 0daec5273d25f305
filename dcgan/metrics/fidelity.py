"""FID, KID, Inception score, precision and recall, by torch-fidelity's formulas.

Heusel et al. 2017 (arXiv:1706.08500) for FID, Binkowski et al. 2018 (arXiv:1801.01401) for KID,
Salimans et al. 2016 (arXiv:1606.03498) for the Inception score, Kynkäänniemi et al. 2019
(arXiv:1904.06991) for precision and recall.
"""

from __future__ import annotations

import torch

from dcgan.distributed import ALONE, Ranks
from dcgan.metrics.described import Formulas, at_least, compare
from dcgan.metrics.pretrained import Inception
from dcgan.metrics.reals import Extractor, Measured, Reals
from dcgan.nets.models import Generator

SEED = 2020
"""torch-fidelity's, for the subsets of KID and the splits of the Inception score."""

KID_SUBSETS, KID_SUBSET_SIZE = 100, 1000
"""torch-fidelity's defaults; smaller subsets where there are fewer images."""

SPLITS = 10
"""The Inception score is the mean of those of so many parts (Salimans et al.); fewer images have
fewer parts."""

NEIGHBOURS = 3
"""An image's neighbourhood reaches to its third neighbour (Kynkäänniemi et al., section 3)."""

ROWS_AT_ONCE = 1000
"""Rows of a matrix of distances in memory at a time."""


def fid(one: torch.Tensor, other: torch.Tensor) -> float:
    """The Fréchet distance between two sets of features, (N, D) float32 each."""
    from torch_fidelity.metric_fid import (
        KEY_METRIC_FID,
        fid_features_to_statistics,
        fid_statistics_to_metric,
    )

    statistics = [fid_features_to_statistics(features) for features in (one, other)]
    return float(fid_statistics_to_metric(*statistics, verbose=False)[KEY_METRIC_FID])


def kid(one: torch.Tensor, other: torch.Tensor) -> float:
    """The kernel distance between two sets of features; may fall below 0, being unbiased."""
    from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN, kid_features_to_metric

    found = kid_features_to_metric(
        one,
        other,
        kid_subsets=KID_SUBSETS,
        kid_subset_size=min(KID_SUBSET_SIZE, len(one)),
        rng_seed=SEED,
        verbose=False,
    )
    return float(found[KEY_METRIC_KID_MEAN])


def inception_score(logits: torch.Tensor) -> float:
    """The Inception score of a set of (N, D) logits: 1 to D."""
    from torch_fidelity.metric_isc import KEY_METRIC_ISC_MEAN, isc_features_to_metric

    found = isc_features_to_metric(logits, min(SPLITS, len(logits)), shuffle=True, rng_seed=SEED)
    return float(found[KEY_METRIC_ISC_MEAN])


def precision_recall(reals: torch.Tensor, fakes: torch.Tensor) -> tuple[float, float]:
    """The share of generated images within the real ones' neighbourhoods, and the reverse.

    Args:
        reals: (N, D) float32, N at least 4.
        fakes: (N, D) float32.
    """
    from torch_fidelity.metric_prc import (
        KEY_METRIC_PRECISION,
        KEY_METRIC_RECALL,
        prc_features_to_metric,
    )

    found = prc_features_to_metric(
        fakes,
        reals,
        prc_neighborhood=NEIGHBOURS,
        prc_batch_size=ROWS_AT_ONCE,
        save_cpu_ram=True,
        verbose=False,
    )
    return found[KEY_METRIC_PRECISION], found[KEY_METRIC_RECALL]


def measure_fid(
    net: Generator, reals: Reals, inception: Inception, n: int, ranks: Ranks = ALONE
) -> list[Measured]:
    """FID, KID and Inception score of a generator's images beside as many real ones; a collective.

    Args:
        net: on any device; stays as it is.
        reals: of the same size and channels.
        inception: the extractor.
        n: images a side; half of the set where that is less, as the floor needs the other half.
        ranks: share the work; the numbers come out on the first, and none on the others.

    Raises:
        UserError: fewer than two images a side.
    """
    n = at_least(2, n, reals, "--fid", ranks)
    pooled = inception.pooled

    def formulas(ours: torch.Tensor, theirs: torch.Tensor) -> dict[str, float]:
        pair = ours[:, :pooled], theirs[:, :pooled]
        score = inception_score(theirs[:, pooled:])
        return {"fid": fid(*pair), "kid": kid(*pair), "isc": score}

    how = {
        "fid": "layer 2048",
        "kid": f"layer 2048, {KID_SUBSETS} subsets of {min(KID_SUBSET_SIZE, n)}, seed {SEED}",
        "isc": f"unbiased logits, {min(SPLITS, n)} splits, seed {SEED}",
    }
    return _beside_half(net, reals, inception, n, formulas, how, ranks)


def measure_precision(
    net: Generator, reals: Reals, vgg: Extractor, n: int, ranks: Ranks = ALONE
) -> list[Measured]:
    """Precision and recall of a generator's images beside as many real ones; a collective.

    Args:
        net: on any device; stays as it is.
        reals: of the same size and channels.
        vgg: the extractor, a `Vgg16`.
        n: images a side; half of the set where that is less, as the floor needs the other half.
        ranks: share the work; the numbers come out on the first, and none on the others.

    Raises:
        UserError: fewer images a side than a neighbourhood needs.
    """
    n = at_least(NEIGHBOURS + 1, n, reals, "--precision-recall", ranks)

    def formulas(ours: torch.Tensor, theirs: torch.Tensor) -> dict[str, float]:
        return dict(zip(("precision", "recall"), precision_recall(ours, theirs), strict=True))

    how = f"layer fc2 after ReLU, k = {NEIGHBOURS}"
    return _beside_half(net, reals, vgg, n, formulas, {"precision": how, "recall": how}, ranks)


def _beside_half(
    net: Generator,
    reals: Reals,
    extractor: Extractor,
    n: int,
    formulas: Formulas,
    how: dict[str, str],
    ranks: Ranks,
) -> list[Measured]:
    found = compare(net, reals, extractor, range(n), range(n, 2 * n), formulas, how, ranks)
    return [] if found is None else found.measured
