"""What `dcgan-doctor --shards` looks at: does the set open, and does a batch come out of it?"""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

from dcgan.checks.findings import Finding, not_checked, ok
from pipeline.errors import UserError

if TYPE_CHECKING:
    import torch

BATCH_TIMEOUT = 60.0
"""Seconds: a share or a sleeping disk may take some, a stuck one would take for ever."""


def shard_set(folder: Path | None) -> Finding:
    """Whether the set opens, and its recipe."""
    from pipeline.shards.manifest import ShardSet

    name, wanted = "shard set", "a complete set"
    if folder is None:
        return not_checked(name, "no --shards given", wanted)
    manifest = ShardSet.open(folder).manifest
    size = f"{manifest.samples:,} images in {len(manifest.shards):,} shards"
    return ok(name, f"{size}, {manifest.recipe.told()}", wanted)


def one_batch(folder: Path | None, device: torch.device) -> Finding | list[Finding]:
    """Whether a batch of the set comes out of the loader, and of which one."""
    import torch

    from pipeline.loading.loader import Loader
    from pipeline.loading.options import LoaderOptions
    from pipeline.shards.manifest import ShardSet

    name, wanted = "one batch", f"within {BATCH_TIMEOUT:g} s"
    if folder is None:
        return not_checked(name, "no --shards given", wanted)
    try:
        shards = ShardSet.open(folder)
    except UserError:
        return not_checked(name, "the set does not open", wanted)
    recipe = shards.manifest.recipe
    size = min(64, recipe.size or 64, recipe.crop if isinstance(recipe.crop, int) else 64)
    options = LoaderOptions(
        min(64, len(shards)), size, device=device, dtype=torch.uint8, data_timeout=BATCH_TIMEOUT
    )
    loader = Loader(shards, options)
    try:
        began = time.perf_counter()
        batch = next(loader)
        seconds = time.perf_counter() - began
    finally:
        loader.close()
    shape = "×".join(map(str, batch.shape))
    return [
        ok("loader", loader.description),
        ok(name, f"{shape} after {seconds:.1f} s", wanted),
    ]
