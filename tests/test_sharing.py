"""Ranks that share a measurement find what one process finds, to the bit."""

import contextlib
import io
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch

from dcgan.distributed import ALONE, Ranks
from dcgan.metrics import faces, fidelity
from dcgan.metrics.evaluation import Evaluation, evaluate
from dcgan.metrics.pretrained import Inception
from dcgan.metrics.reals import BATCH, GROUP, Measured, Reals, regrouped
from dcgan.metrics.sharing import draw
from dcgan.nets.models import Generator, init_weights
from dcgan.nets.weights import load_generator, save_weights
from dcgan.options import EvaluateOptions
from pipeline.errors import UserError
from pipeline.loading.options import LoaderOptions
from tests.ranks import in_ranks

N = 70
"""Two groups, and a part of a third: the ranks' shares are unequal."""


class Company(Inception):
    """An image's numbers are its own, and the sum of those that are described with it."""

    pooled = 6
    description, digest, comparable = "a stand-in", "0" * 64, False

    def __init__(self) -> None:
        pass

    def features(self, blocks: Iterable[torch.Tensor]) -> torch.Tensor:
        found = []
        for images in regrouped(blocks, GROUP):
            own = (images / 255).mean(dim=2).flatten(1)[:, :10]
            found.append(own + own.sum() / 1000)
        return torch.cat(found)


def with_short_formulas(net: Generator, reals: Reals, ranks: Ranks) -> list[Measured]:
    """FID's way, but without torch-fidelity, which takes seconds to load."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("fid", "kid"):
            patch.setattr(fidelity, name, lambda one, other: float((one - other).abs().sum()))
        patch.setattr(fidelity, "inception_score", lambda logits: float(logits.sum()))
        return fidelity.measure_fid(net, reals, Company(), N, ranks)


def measured(ranks: Ranks) -> dict[str, Any]:
    """What a rank finds, of a net that the test has made, with a cache of its own."""
    path = Path(os.environ["XDG_CACHE_HOME"]).parent / "netG.pt"
    printed = io.StringIO()
    options = EvaluateOptions(net=path, shards="synthetic", n=40, device="cpu")
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(io.StringIO()):
        Evaluation(options, ranks).run()
    net, loader = load_generator(path), LoaderOptions(BATCH, 32)
    again = []
    for _ in range(2):  # computed, and taken from the cache
        reals = Reals("synthetic", loader, 9 * N)
        alike = faces.measure(net, reals, Company(), N, ranks)
        again.append(
            [
                alike and (alike.distance, alike.persons, alike.seeds),
                with_short_formulas(net, reals, ranks),
            ]
        )
    return {
        "drawn": draw(net, N, ranks),
        "printed": printed.getvalue(),
        "numbers": again,
        "refused": refusal(options.replace(shards="nowhere"), ranks),
    }


def refusal(options: EvaluateOptions, ranks: Ranks) -> str | int:
    """The error that a rank tells, or the status with which it ends in silence."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Ranks, "joined", lambda: contextlib.nullcontext(ranks))
        try:
            return evaluate(options)
        except UserError as error:
            return error.where


def test_ranks_find_what_one_process_finds(tmp_path, monkeypatch):
    net = Generator(32, nz=8, ngf=4)
    init_weights(net, torch.Generator().manual_seed(0))
    save_weights(net, tmp_path / "netG.pt")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "alone"))
    alone = measured(ALONE)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "shared"))
    first, second = in_ranks(measured, tmp_path)
    assert first["drawn"].equal(alone["drawn"])
    assert second["drawn"].equal(alone["drawn"])
    assert len(alone["drawn"]) == N
    assert first["printed"] == alone["printed"]
    assert "n = 40" in alone["printed"]
    assert second["printed"] == ""
    assert first["numbers"] == alone["numbers"]
    assert len(alone["numbers"][0][1]) == 3
    assert second["numbers"] == [[None, []]] * 2
    assert (first["refused"], second["refused"]) == ("nowhere", 1)
