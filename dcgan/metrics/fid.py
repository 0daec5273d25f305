"""FID and KID, by torch-fidelity's features and formulas.

Heusel et al. 2017 (arXiv:1706.08500) for FID; Binkowski et al. 2018 (arXiv:1801.01401) for KID.
Numbers are comparable with published ones only where the weights of Inception are the published
file's; its digest goes with them.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from dcgan.metrics.reals import Measured, Provenance, Reals, fake_blocks
from dcgan.metrics.reference_cache import Arrays, kept
from dcgan.nets.models import Generator
from dcgan.nets.weights import load_tensors
from pipeline.errors import UserError
from pipeline.files import file_digest

PUBLISHED = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
"""SHA-256 of pt_inception-2015-12-05-6726825d.pth, whose name has its beginning; torch-fidelity
publishes the same file as weights-inception-2015-12-05-6726825d.pth."""

LAYER = "2048"
"""Inception's last pooling (Heusel et al.)."""

IMAGES_AT_ONCE = 32
"""Through Inception, which enlarges each to 299×299."""

KID_SUBSETS, KID_SUBSET_SIZE, KID_SEED = 100, 1000, 2020
"""torch-fidelity's defaults; smaller subsets where there are fewer images."""


class Inception:
    """InceptionV3 as FID takes it, from a file.

    Args:
        weights: the file; None for the published one, which is downloaded unless torch's hub
            folder has it.
        device: where it runs.

    Attributes:
        description: of the net and the code that runs it, in a few words.
        digest: SHA-256 of the file.
        comparable: whether it is the published one.

    Raises:
        UserError: no such file, another file, or no download.
    """

    def __init__(self, weights: Path | None, device: torch.device) -> None:
        path = _published() if weights is None else weights
        self._where = where = f"--weights {path}"
        _refuse_unsafe(path, where)
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
        from torch_fidelity.version import __version__

        self.digest = file_digest(path)
        self.comparable = self.digest == PUBLISHED
        self.description = f"InceptionV3, layer {LAYER}, torch-fidelity {__version__}"
        self._device = device
        try:
            net = FeatureExtractorInceptionV3("inception-v3-compat", [LAYER], str(path))
        except (RuntimeError, TypeError, AttributeError) as error:  # of load_state_dict
            raise _unfit(where, "tensors of another net") from error
        self._net = net.to(device)

    @torch.no_grad()
    def features(self, blocks: Iterable[torch.Tensor]) -> torch.Tensor:
        """Describe images.

        Args:
            blocks: (B, S, S, C) uint8 on the CPU; grey ones are taken as RGB.

        Returns:
            (N, 2048) float32 on the CPU.

        Raises:
            UserError: the weights are of no use.
        """
        found = []
        for block in blocks:
            for images in torch.split(block, IMAGES_AT_ONCE):
                planes = images.permute(0, 3, 1, 2).expand(-1, 3, -1, -1)
                found.append(self._net(planes.to(self._device))[0].cpu())
        features = torch.cat(found)
        if not features.isfinite().all():
            raise _unfit(self._where, "weights that give numbers which are not finite")
        return features


def fid(one: torch.Tensor, other: torch.Tensor) -> float:
    """The Fréchet distance between two sets of features, (N, 2048) float32 each."""
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
        rng_seed=KID_SEED,
        verbose=False,
    )
    return float(found[KEY_METRIC_KID_MEAN])


def measure(net: Generator, reals: Reals, inception: Inception, n: int) -> list[Measured]:
    """FID and KID of a generator's images beside as many real ones.

    Args:
        net: on any device; stays as it is.
        reals: of the same size and channels.
        inception: the extractor.
        n: images a side; half of the set where that is less, as the floor needs the other half.

    Raises:
        UserError: fewer than two images a side.
    """
    n = reals.at_most(n)
    if n < 2:
        raise UserError(
            "--fid", f"{reals.total} real images", "at least 4", "pack more images, or leave it out"
        )
    source = reals.provenance(inception.description, inception.digest, inception.comparable)

    def reference() -> Arrays:
        one, other = (inception.features(reals.blocks(k * n, (k + 1) * n)) for k in (0, 1))
        floors = {"fid": fid(one, other), "kid": kid(one, other)}
        return {"features": one.numpy()} | {
            name: torch.tensor(floor, dtype=torch.float64).numpy() for name, floor in floors.items()
        }

    arrays = kept({"metric": "fid", "n": n, **_key(source)}, reference)
    ours = torch.from_numpy(arrays["features"])
    fakes = inception.features(fake_blocks(net, n))
    kid_source = replace(source, extractor=f"{source.extractor}, {_subsets(n)}")
    return [
        Measured("fid", fid(ours, fakes), float(arrays["fid"]), n, source),
        Measured("kid", kid(ours, fakes), float(arrays["kid"]), n, kid_source),
    ]


def _subsets(n: int) -> str:
    return f"{KID_SUBSETS} subsets of {min(KID_SUBSET_SIZE, n)}, seed {KID_SEED}"


def _key(source: Provenance) -> dict[str, Any]:
    return {
        "reals": source.recipe,
        "shards": source.shards,
        "how": f"{source.extractor}, KID {KID_SUBSETS} × {KID_SUBSET_SIZE}, {KID_SEED}",
        "digest": source.digest,
    }


def _published() -> Path:
    """Find the published weights where torch's hub keeps them, or download them to there."""
    from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3

    name = str(URL_INCEPTION_V3).rpartition("/")[2]
    path = Path(str(torch.hub.get_dir())) / "checkpoints" / name
    if path.is_file():
        return path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Written beside, compared with the digest, and only then given its name
        torch.hub.download_url_to_file(URL_INCEPTION_V3, str(path), hash_prefix=PUBLISHED)
    except (OSError, RuntimeError, ValueError) as error:
        raise UserError(
            "--fid",
            f"no weights of Inception, and no download ({error})",
            f"{name}, of 95 MB",
            f"fetch {URL_INCEPTION_V3} where there is a network, and give it as --weights {name}",
        ) from error
    return path


def _refuse_unsafe(path: Path, where: str) -> None:
    """Refuse whatever is not a plain dict of tensors: torch-fidelity would run a pickle's code."""
    if not path.is_file():
        raise _unfit(where, "a folder" if path.is_dir() else "no such file")
    try:
        state = load_tensors(path)
    except Exception as error:  # whatever torch's readers trip over in a file that is not theirs
        found = f"a file that torch.load(weights_only=True) refuses ({type(error).__name__})"
        raise _unfit(where, found) from error
    if not isinstance(state, dict):
        raise _unfit(where, f"a {type(state).__name__}")


def _unfit(where: str, found: str) -> UserError:
    return UserError(
        where,
        found,
        "the state dict of FID's InceptionV3, such as pt_inception-2015-12-05-6726825d.pth",
        "check the path, or leave --weights out and give --fid to have it downloaded",
    )
