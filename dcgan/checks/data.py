"""`dcgan-doctor --verify`, the data path: two ways to the same batches are compared."""

from __future__ import annotations

import functools
import io
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from dcgan.checks.findings import Finding, fail, not_checked, ok
from pipeline.images.demo_faces import Face, draw
from pipeline.loading.batches import Batches
from pipeline.loading.cache import ResidentCache
from pipeline.loading.loader import Loader
from pipeline.loading.options import LoaderOptions
from pipeline.packing.pack import Packing, pack
from pipeline.packing.sources import open_source
from pipeline.shards.manifest import ShardSet

BATCH, SIZE = 8, 64

PICTURES = 44
"""Five batches and a half, so that an epoch leaves some out; in shards of 18."""

GRAIN = 24
"""Standard deviation in levels of the noise on every other face: drawn ones are smooth, and a
resize without antialiasing, or another upsampling of the colours, would hardly show on them."""

LEVELS = 1.0
"""Mean difference of GPU pixels and CPU pixels, in 8-bit levels."""

PATIENCE = 60.0
"""Seconds for a batch; the first on a GPU waits for DALI to set itself up."""


def gpu_pixels(device: torch.device) -> Finding:
    """The graph on the GPU against the path on the CPU, on the same batches."""
    name = "GPU pixels = CPU pixels"
    if device.type != "cuda":
        return not_checked(name, "no CUDA device", f"mean of at most {LEVELS:g} level")
    with work_set() as shards:
        on_gpu, on_cpu = open_loader(shards, device), open_loader(shards, torch.device("cpu"))
        if not by_dali(on_gpu):
            _close(on_gpu, on_cpu)
            return not_checked(name, on_gpu.description, f"mean of at most {LEVELS:g} level")
        return compare_pixels(name, on_gpu, on_cpu)


def compare_pixels(name: str, one: Batches, other: Batches) -> Finding:
    """An epoch of two loaders: how far are their pixels apart, on average and at most?"""
    mean, most, steps = 0.0, 0.0, one.steps_per_epoch
    try:
        for _ in range(steps):
            apart = (next(one).cpu().float() - next(other).cpu().float()).abs()
            mean, most = mean + float(apart.mean()) / steps, max(most, float(apart.max()))
    finally:
        _close(one, other)
    found = f"mean {mean:.2f}, at most {most:.0f} levels, {steps * one.batch_size} images"
    wanted = f"mean of at most {LEVELS:g} level"
    if steps and mean <= LEVELS:
        return ok(name, found, wanted)
    return fail(name, found, wanted, "pack with --store raw, whose pixels no GPU decodes")


def fill_is_next(device: torch.device) -> Finding:
    """A static buffer that is filled, as the trainer does, against the iterator's own batches."""
    with work_set() as shards:
        filled, iterated = open_loader(shards, device), open_loader(shards, device)
        buffer = torch.empty(BATCH, SIZE, SIZE, 3, dtype=torch.uint8, device=device)

        def next_filled() -> torch.Tensor:
            filled.fill(buffer)
            return buffer

        return _equal("fill = next", next_filled, iterated, [filled], 2)


def cache_is_stream(device: torch.device) -> Finding:
    """The resident cache against the stream: its first epoch, and those from memory."""
    with work_set() as shards:
        streamed = open_loader(shards, device)
        cached = ResidentCache(shards, streamed.options, device)
        return _equal("cache = stream", lambda: next(cached), streamed, [cached], 3)


def loader_resumes(device: torch.device) -> Finding:
    """A new loader with the state of one in mid-epoch gives what that one gives next."""
    with work_set() as shards:
        first, second = open_loader(shards, device), open_loader(shards, device)
        for _ in range(first.steps_per_epoch + 1):
            next(first)
        second.load_state_dict(first.state_dict())
        return _equal("loader resumes", lambda: next(second), first, [second], 2)


def open_loader(shards: ShardSet, device: torch.device) -> Loader:
    """A streaming loader of stored pixels, always in the same order."""
    options = LoaderOptions(
        BATCH, SIZE, device=device, seed=1, dtype=torch.uint8, data_timeout=PATIENCE
    )
    return Loader(shards, options)


def by_dali(loader: Loader) -> bool:
    """Whether DALI decodes here; where it cannot, threads of ours do."""
    return loader.decoder.name.startswith("dali")


def _equal(
    name: str,
    candidate: Callable[[], torch.Tensor],
    reference: Batches,
    others: list[Batches],
    epochs: int,
) -> Finding:
    """Compare two ways to the same batches, bit for bit; closes the loaders."""
    total = epochs * reference.steps_per_epoch
    try:
        same = [torch.equal(candidate(), next(reference)) for _ in range(total)]
    finally:
        _close(reference, *others)
    found, wanted = f"{sum(same)} of {total} batches equal", "all, bit for bit"
    if total and all(same):
        return ok(name, found, wanted)
    remedy = "do not train with these versions; send this report with --json report.json"
    return fail(name, f"{found}; batch {same.index(False)} differs first", wanted, remedy)


def _close(*loaders: Batches) -> None:
    for loader in loaders:
        loader.close()


# The pictures, drawn and packed here: nobody's data are needed


@functools.cache
def pictures() -> tuple[bytes, ...]:
    """JPEGs of CelebA's size, half of them grainy."""
    made = []
    for number in range(PICTURES):
        pixels = np.asarray(draw(Face(0, number)).convert("RGB"), dtype=np.float32)
        if number % 2:
            noise = np.random.default_rng(number).normal(0, GRAIN, pixels.shape)
            pixels = pixels + noise.astype(np.float32)
        file = io.BytesIO()
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=90)
        made.append(file.getvalue())
    return tuple(made)


@contextmanager
def work_set() -> Iterator[ShardSet]:
    """A set of the pictures as JPEGs, in a folder that goes away."""
    with tempfile.TemporaryDirectory(prefix="dcgan-doctor-") as name:
        images = Path(name) / "images"
        images.mkdir()
        for number, picture in enumerate(pictures()):
            (images / f"{number:03d}.jpg").write_bytes(picture)
        source = open_source(images)
        pack(source, source.members(), Path(name) / "set", Packing(per_shard=18))
        yield ShardSet.open(Path(name) / "set")
