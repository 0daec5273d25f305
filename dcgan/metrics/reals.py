"""The images of both sides of a comparison, and what every number carries with it.

Real images come through the loader that training takes, so both sides of a comparison have gone
through the same decoder; what is computed from them alone is kept for the next time.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from typing import Any, Protocol

import numpy as np
import torch

from dcgan.nets.models import Generator
from dcgan.sampling.generate import generate_each, latents
from dcgan.sampling.labels import Label, labels_of
from pipeline.errors import UserError
from pipeline.images.size import shown_size
from pipeline.loading.batches import Batches
from pipeline.loading.loader import Loader
from pipeline.loading.open import SYNTHETIC, open_loader
from pipeline.loading.options import LoaderOptions
from pipeline.loading.synthetic import BATCHES
from pipeline.shards.order import Rows, batches_of
from pipeline.shards.shard_set import ShardSet

N = 2048
"""Images a side by default. A distance of samples shrinks as they grow: compare equal n only."""

FIRST_SEED = 1_000_000
"""Measured images are those of the seeds from here on: never the fixed noise, whose grids are seen
all the time."""

BATCH = 16
"""Real images read at a time."""

BLOCK = 512
"""Images handled at a time."""

GROUP = 32
"""Images that a net describes at a time."""


@dataclass(frozen=True)
class Provenance:
    """Where a number comes from."""

    recipe: str
    """How the real images were prepared: crop, size, filter, decoder."""
    extractor: str
    """The method of measuring."""
    digest: str | None
    """SHA-256 of the extractor's weights, where it has any."""
    comparable: bool
    """False where the weights are not the published ones."""
    shards: str
    """Fingerprint of the set, or `synthetic`."""


@dataclass(frozen=True)
class Measured:
    """A number about a generator."""

    metric: str
    """One of `dcgan.metrics.NAMES`."""
    value: float
    floor: float
    """The same number of real images beside other real images."""
    n: int
    """Images on each side, the floor's sides too."""
    source: Provenance
    label: str | None = field(default=None, kw_only=True)
    """What the images of all sides have in common; None if they are of the whole set."""

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
            **asdict(self.source),
            **({} if self.label is None else {"label": self.label}),
        }


class Extractor(Protocol):
    """A net that describes images by numbers.

    Attributes:
        description: of the net and the code that runs it, in a few words.
        digest: SHA-256 of its weights.
        comparable: whether they are the published ones.
    """

    description: str
    digest: str
    comparable: bool

    def features(self, blocks: Iterable[torch.Tensor]) -> torch.Tensor:
        """Describe images, each by itself.

        Args:
            blocks: (B, S, S, C) uint8 on the CPU; grey ones are taken as RGB.

        Returns:
            (N, D) float32 on the CPU.
        """


class Reals:
    """The real images of a set, in one order always, as the loader decodes them.

    Args:
        shards: folder or URL of a shard set, or `synthetic`; or a set that is open.
        options: of its loader, which reads `batch_size` images at a time.
        wanted: how many will be asked for; noise is made to that number.
        label: leaves only the images that have it; the options must ask for labels.

    Attributes:
        options: of its loader, with uint8 batches, without labels and cache.
        total: images there are to read.
        recipe: what was done to them, for people.
        fingerprint: of the set.
        label_space: what the set's labels say, if the options ask for labels.
        label_table: the labels by row, (n,) int64 or (n, k) float32 on the CPU.

    Raises:
        UserError: no usable set of at least two images, or none with labels.
    """

    def __init__(
        self,
        shards: str | ShardSet,
        options: LoaderOptions,
        wanted: int = 2 * N,
        label: Label | None = None,
    ) -> None:
        self._shards: str | ShardSet = shards
        batch = max(1, -(-wanted // BATCHES))
        self.options = replace(
            options, batch_size=batch, dtype=torch.uint8, labels=False, cache="off"
        )
        shape = f"{shown_size(options.image_size)}×{options.channels}"
        self.fingerprint, self.recipe = SYNTHETIC, f"uniform noise, {shape}"
        with_labels = replace(self.options, labels=options.labels)
        if shards == SYNTHETIC:
            self._keep(np.arange(BATCHES * batch), open_loader(shards, with_labels), label)
            return
        loader = open_loader(shards, replace(with_labels, batch_size=1))
        assert isinstance(loader, Loader)
        self._shards = loader.shards  # as it is now, whenever images are read
        manifest = loader.shards.manifest
        fit = loader.shards.fit_of(options.fit)
        fitted = "" if fit == manifest.recipe.fit else f" with --fit {fit}"
        self.options = replace(self.options, batch_size=min(options.batch_size, manifest.samples))
        self.fingerprint = loader.shards.fingerprint
        self.recipe = (
            f"{manifest.recipe.describe()}, antialiased bilinear, read at {shape}{fitted}"
            f" by {loader.decoder.name}"
        )
        self._keep(loader.schedule.order(0), loader, label)
        loader.close()
        if self.total < 2 and label is None:
            name = loader.shards.name
            raise UserError(name, "one image", "two or more to compare", "pack more images")

    def _keep(self, rows: Rows, loader: Batches, label: Label | None) -> None:
        """Keep the set's labels, and the rows of its images or of those of one label.

        Args:
            rows: in the order in which images are read.
            loader: has the labels.
            label: what the images that are left must have.
        """
        self.label_space, table = loader.label_space, loader.label_table
        self.label_table = None if table is None else table.cpu()
        if label is not None:
            assert self.label_table is not None, "options that ask for labels"
            rows = rows[label.fits(self.label_table[torch.from_numpy(rows)]).numpy()]
            self.recipe += f", only {label.name}"
        self._rows, self.total = rows, len(rows)

    def blocks(self, start: int = 0, stop: int | None = None) -> Iterator[torch.Tensor]:
        """Read images `start` to `stop` of that order; all of them by default.

        Yields:
            (B, S, S, C) uint8 on the CPU, `BLOCK` images or so at a time.
        """
        stop = self.total if stop is None else stop
        assert 0 <= start <= stop <= self.total, f"{start}:{stop} of {self.total}"
        return regrouped(self._batches(self._rows[start:stop]), BLOCK)

    def _batches(self, rows: Rows) -> Iterator[torch.Tensor]:
        if isinstance(self._shards, str):
            noise, size = open_loader(self._shards, self.options), self.options.batch_size
            for number in range(BATCHES):
                places = torch.from_numpy(rows[rows // size == number] % size)
                yield next(noise).cpu()[places]
            return
        with closing(
            Loader(self._shards, self.options, plan=lambda schedule: iter([rows]))
        ) as read:
            for _ in batches_of(rows, self.options.batch_size):
                yield read.take(None)[0].cpu()

    def halves(self, n: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Two disjoint parts of `n` images each, (n, S, S, C) uint8 on the CPU."""
        both = torch.cat([*self.blocks(0, 2 * n)])
        return both[:n], both[n:]

    def provenance(
        self, extractor: str, digest: str | None = None, comparable: bool = True
    ) -> Provenance:
        """Where a number from these images comes from; see `Provenance`."""
        return Provenance(self.recipe, extractor, digest, comparable, self.fingerprint)

    def at_most(self, n: int) -> int:
        """Images a side when two sides must come from this set: `n`, or half of the set."""
        return min(n, self.total // 2)


def regrouped(blocks: Iterable[torch.Tensor], size: int) -> Iterator[torch.Tensor]:
    """Deal images in groups of `size`, the last smaller, wherever one block ends.

    A net may give an image's numbers other last digits in a batch of another size.
    """
    rest = None
    for block in blocks:
        *whole, rest = torch.split(block if rest is None else torch.cat([rest, block]), size)
        yield from whole
    if rest is not None:
        yield rest


def fake_blocks(net: Generator, count: int, first: int = FIRST_SEED) -> Iterator[torch.Tensor]:
    """Draw the images of `count` seeds from `first` on; the net stays as it is.

    Yields:
        (B, S, S, C) uint8 on the CPU, at most `BLOCK` images.
    """
    nz, seeds = net.options["--nz"], range(first, first + count)
    noise = (latents([seed], nz)[0] for seed in seeds)
    images = generate_each(net, noise, labels_of(net, seeds))
    while block := [*islice(images, BLOCK)]:
        yield torch.stack(block)
