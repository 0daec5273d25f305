"""What all loaders have in common: their interface, their counts, and how they tell of damage."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Protocol

import torch

from pipeline.errors import UserError
from pipeline.manifest import ShardSet, pack_command

MAX_WORKERS = 8
"""More decoding threads than this were never needed to feed small images; `--workers` overrules."""


class Batches(Protocol):
    """What the trainer takes its batches from.

    Iterating never ends. An epoch is `steps_per_epoch` batches; within it no image occurs twice.
    """

    batch_size: int
    """Images in a batch, on this rank."""
    steps_per_epoch: int
    description: str
    """One line for people: which loader this is, and why."""

    def __iter__(self) -> Iterator[torch.Tensor]: ...

    def __next__(self) -> torch.Tensor:
        """The next batch: float32 (B, C, S, S) in [-1, 1], channels_last, or uint8 (B, S, S, C)."""

    def close(self) -> None:
        """Stop all threads and let go of the files."""


def steps_per_epoch(samples: int, batch_size: int, num_ranks: int = 1) -> int:
    """Full batches that every rank can take from its share of a set.

    Raises:
        UserError: not even one.
    """
    steps = samples // num_ranks // batch_size
    if steps == 0:
        share = f"{samples} images" + (f" for {num_ranks} ranks" if num_ranks > 1 else "")
        raise UserError(
            f"--batch-size {batch_size}",
            f"a set of {share}",
            "at least one full batch in an epoch",
            f"use --batch-size {max(1, samples // num_ranks)} or less, or pack more images",
        )
    return steps


def damage_error(shards: ShardSet, found: str) -> UserError:
    """Name the shards that are no longer as they were written; whoever reads them rarely can."""
    altered = ", ".join(str(tar) for tar in shards.altered()[:3])
    return UserError(
        altered or shards.folder,
        found,
        "shards as tools/make_shards.py writes them",
        f"pack the set again: {pack_command(shards.folder)}",
    )


def default_workers() -> int:
    """Decoding threads where nobody asks for a number."""
    return min(os.cpu_count() or 1, MAX_WORKERS)
