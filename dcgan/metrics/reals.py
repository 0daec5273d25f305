"""What a generator is measured against, and what every number carries with it.

Real images come through the loader that training takes, so both sides of a comparison have gone
through the same decoder; what is computed from them alone is kept for the next time.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

import numpy as np
import torch

from dcgan.metrics import swd
from dcgan.metrics.reference_cache import Arrays, kept
from dcgan.nets.models import Generator
from dcgan.sampling.generate import generate_each, latents
from pipeline.errors import UserError
from pipeline.loading.loader import Loader
from pipeline.loading.open import SYNTHETIC, open_loader
from pipeline.loading.options import LoaderOptions
from pipeline.loading.synthetic import BATCHES

N = 2048
"""Images a side, unless told. A distance of samples shrinks as they grow: compare equal n only."""

FIRST_SEED = 1_000_000
"""Judged images are those of the seeds from here on: never the fixed noise, by whose grids people
judge."""

BATCH = 16
"""Real images read at a time: fewer than that are missed at the end of a set."""

BLOCK = 512
"""Images handled at a time."""


@dataclass(frozen=True)
class Provenance:
    """Where a number comes from."""

    recipe: str
    """What was done to the real images: crop, size, filter, decoder."""
    shards: str
    """Fingerprint of the set, or `synthetic`."""
    extractor: str
    """What was measured, and how."""
    digest: str | None = None
    """SHA-256 of the extractor's weights, where it has any."""
    comparable: bool = True
    """False where the weights are not the published ones."""


@dataclass(frozen=True)
class Measured:
    """A number about a generator."""

    metric: str
    """swd, fid, kid or neighbours."""
    value: float
    floor: float | None
    """The same number between real images and other real images."""
    n: int
    """Images on each side, the floor's sides too."""
    source: Provenance

    def record(self, nimg: int, net: str) -> dict[str, Any]:
        """A line of `metrics.jsonl`.

        Args:
            nimg: real images that the net had seen.
            net: its file.
        """
        return {
            "nimg": nimg,
            "net": net,
            "metric": self.metric,
            "value": self.value,
            "floor": self.floor,
            "n": self.n,
            "recipe": self.source.recipe,
            "extractor": self.source.extractor,
            "digest": self.source.digest,
            "comparable": self.source.comparable,
            "shards": self.source.shards,
        }


@dataclass(frozen=True)
class Swd(Measured):
    """The sliced Wasserstein distance: `value` is its mean over scales, × 10³."""

    scales: dict[int, float] = field(default_factory=dict)
    """By the scale's side in pixels."""
    floor_scales: dict[int, float] = field(default_factory=dict)

    def record(self, nimg: int, net: str) -> dict[str, Any]:
        """A line of `metrics.jsonl`; the scales' sides become strings, as JSON has it."""
        return super().record(nimg, net) | {
            "scales": {str(side): value for side, value in self.scales.items()},
            "floor_scales": {str(side): value for side, value in self.floor_scales.items()},
        }


class Reals:
    """The real images of a set, in one order always, as the loader decodes them.

    Args:
        shards: folder of a shard set, or `synthetic`.
        options: of its loader. It reads `batch_size` images at a time; fewer than that are missed
            at the end of a set.
        wanted: how many will be asked for; noise is made to that number.

    Attributes:
        options: of its loader, with uint8 batches and no cache.
        total: images there are to read.
        recipe: what was done to them, for people.
        fingerprint: of the set.

    Raises:
        UserError: no usable set of at least two images.
    """

    def __init__(self, shards: str, options: LoaderOptions, wanted: int = 2 * N) -> None:
        self._shards, batch = shards, max(1, -(-wanted // BATCHES))
        self.options = replace(options, batch_size=batch, dtype=torch.uint8, cache="off")
        shape = f"{options.image_size}×{options.image_size}×{options.channels}"
        self.fingerprint, self.recipe = SYNTHETIC, f"uniform noise, {shape}"
        self.total = BATCHES * batch
        if shards == SYNTHETIC:
            return
        loader = open_loader(shards, replace(self.options, batch_size=1))
        assert isinstance(loader, Loader)
        manifest = loader.shards.manifest
        batch = min(options.batch_size, manifest.samples)
        self.options = replace(self.options, batch_size=batch)
        self.total = manifest.samples // batch * batch
        self.fingerprint = loader.shards.fingerprint
        self.recipe = (
            f"{manifest.recipe.told()}, antialiased bilinear, read at {shape}"
            f" by {loader.decoder.name}"
        )
        loader.close()
        if self.total < 2:
            raise UserError(shards, "one image", "two or more to compare", "pack more images")

    def blocks(self, start: int = 0, stop: int | None = None) -> Iterator[torch.Tensor]:
        """Read images `start` to `stop` of that order; all of them unless told.

        Yields:
            (B, S, S, C) uint8 on the CPU, `BLOCK` images or so at a time.
        """
        stop = self.total if stop is None else stop
        assert 0 <= start <= stop <= self.total, f"{start}:{stop} of {self.total}"
        batches, size = open_loader(self._shards, self.options), self.options.batch_size
        try:
            place, held = 0, []
            while place < stop:
                batch = next(batches)
                part = batch[max(0, start - place) : stop - place].cpu()
                place += size
                if len(part):
                    held.append(part.clone())  # the loader may fill the same memory again
                if len(held) * size >= BLOCK or (place >= stop and held):
                    yield torch.cat(held)
                    held = []
        finally:
            batches.close()

    def halves(self, n: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Two disjoint parts of `n` images each, (n, S, S, C) uint8 on the CPU."""
        both = torch.cat([*self.blocks(0, 2 * n)])
        return both[:n], both[n:]

    def at_most(self, n: int) -> int:
        """Images a side when two sides must come from this set: `n`, or half of the set."""
        return min(n, self.total // 2)


def fake_blocks(net: Generator, count: int, first: int = FIRST_SEED) -> Iterator[torch.Tensor]:
    """Draw the images of `count` seeds from `first` on; the net stays as it is.

    Yields:
        (B, S, S, C) uint8 on the CPU, at most `BLOCK` images.
    """
    nz = net.options["--nz"]
    noise = (latents([seed], nz)[0] for seed in range(first, first + count))
    images = generate_each(net, noise)
    while block := [*islice(images, BLOCK)]:
        yield torch.stack(block)


class Judge:
    """Measures the SWD of one generator after another against the same real images.

    Reads the set and computes the floor once, or takes both from the cache. Holds `n` real images
    (12 KB each at 64×64×3); a measurement takes another 150 KB an image for as long as it lasts.

    Args:
        reals: the set's; distances are computed on its device if that is CUDA.
        n: images a side; half of the set where that is less.
    """

    def __init__(self, reals: Reals, n: int = N) -> None:
        self.n = reals.at_most(n)
        self.source = Provenance(reals.recipe, reals.fingerprint, swd.TOLD)
        # Apple's MPS has no float64, in which the sums are taken
        device = reals.options.device
        self._device = device if device.type == "cuda" else torch.device("cpu")
        key = {"metric": "swd", "how": swd.TOLD, "reals": reals.recipe, "n": self.n}
        arrays = kept(key | {"shards": reals.fingerprint}, lambda: self._reference(reals))
        self._reals = torch.from_numpy(arrays["images"])
        sides = swd.scales(reals.options.image_size)
        self._floor = dict(zip(sides, arrays["floor"].tolist(), strict=True))

    def _reference(self, reals: Reals) -> Arrays:
        one, other = reals.halves(self.n)
        floor = swd.distances(one, other, self._device)
        return {"images": one.numpy(), "floor": np.array([*floor.values()])}

    def judge(self, net: Generator) -> Swd:
        """Measure a generator: the same number for the same weights, in any process.

        The net and torch's random state stay as they are.

        Args:
            net: of the judge's image size and channels, on any device.
        """
        fakes = torch.cat([*fake_blocks(net, self.n)])
        found = swd.distances(self._reals, fakes, self._device)
        return Swd(
            "swd",
            swd.mean(found),
            swd.mean(self._floor),
            self.n,
            self.source,
            scales=found,
            floor_scales=self._floor,
        )
