"""How ranks share a measurement: each draws and describes a part of the images, all get the whole.

Parts begin at multiples of `GROUP`, so that every image is drawn and described in the same company
as by one process, which gives it the same bits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

from dcgan.distributed import Ranks
from dcgan.metrics.reals import FIRST_SEED, GROUP, Extractor, fake_blocks
from dcgan.nets.models import Generator
from pipeline.images.size import sides

Blocks = Callable[[int, int], Iterator[torch.Tensor]]
"""From the first image, and the one after the last, to blocks of them, (B, S, S, C) uint8."""


def fakes_from(net: Generator) -> Blocks:
    """The images of a net's seeds from `FIRST_SEED` on."""
    return lambda start, stop: fake_blocks(net, stop - start, FIRST_SEED + start)


def draw(net: Generator, n: int, ranks: Ranks) -> torch.Tensor:
    """Draw the images of `n` seeds from `FIRST_SEED` on; a collective.

    Returns:
        (n, H, W, C) uint8 on the CPU, on every rank.
    """
    start, stop = _share(n, ranks)
    width, height = sides(net.image_size)
    with ranks.together():
        none = torch.empty(0, height, width, net.options["--channels"], dtype=torch.uint8)
        own = torch.cat([none, *fakes_from(net)(start, stop)])
    return _joined(own, n, ranks)


def describe(extractor: Extractor, blocks: Blocks, n: int, ranks: Ranks) -> torch.Tensor:
    """Describe `n` images, at least one; a collective.

    Returns:
        (n, D) float32 on the CPU, on every rank.
    """
    start, stop = _share(n, ranks)
    with ranks.together():
        own = extractor.features(blocks(start, stop)) if start < stop else None
    width = ranks.same(0 if own is None else own.shape[1])  # the first rank's part is never empty
    return _joined(torch.empty(0, width) if own is None else own, n, ranks)


def _share(n: int, ranks: Ranks) -> tuple[int, int]:
    """The first image of this rank, and the one after its last."""
    part = _part(n, ranks)
    return min(n, ranks.rank * part), min(n, (ranks.rank + 1) * part)


def _part(n: int, ranks: Ranks) -> int:
    """Images of a rank: as many whole groups for each, but for the last ones."""
    return -(-n // (ranks.count * GROUP)) * GROUP


def _joined(own: torch.Tensor, n: int, ranks: Ranks) -> torch.Tensor:
    if ranks.count == 1:
        return own
    padded = own.new_zeros(_part(n, ranks), *own.shape[1:])
    padded[: len(own)] = own
    return ranks.gather(padded).flatten(0, 1)[:n]
