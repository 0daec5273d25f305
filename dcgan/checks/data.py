"""`dcgan-doctor --verify`, the data path: two ways to the same batches are compared."""

from __future__ import annotations

import functools
import io
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
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
from pipeline.packing.sources.open import open_source
from pipeline.shards.shard_set import ShardSet

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
    with open_loaders(device, torch.device("cpu")) as (on_gpu, on_cpu):
        if not by_dali(on_gpu):
            return not_checked(on_gpu.description)
        return compare_pixels(on_gpu, on_cpu)


def compare_pixels(one: Batches, other: Batches) -> Finding:
    """An epoch of two loaders: how far are their pixels apart, on average and at most?"""
    mean, most, steps = 0.0, 0.0, one.steps_per_epoch
    for _ in range(steps):
        apart = (next(one).cpu().float() - next(other).cpu().float()).abs()
        mean, most = mean + float(apart.mean()) / steps, max(most, float(apart.max()))
    found = f"mean {mean:.2f}, at most {most:.0f} levels, {steps * one.batch_size} images"
    if steps and mean <= LEVELS:
        return ok(found)
    return fail(found, "pack with --store raw, whose pixels no GPU decodes")


def fill_is_next(device: torch.device) -> Finding:
    """A static buffer that is filled, as the trainer does, against the iterator's own batches."""
    with open_loaders(device, device) as (filled, iterated):
        buffer = torch.empty(BATCH, SIZE, SIZE, 3, dtype=torch.uint8, device=device)

        def next_filled() -> torch.Tensor:
            filled.fill(buffer)
            return buffer

        return _equal(next_filled, iterated, 2)


def cache_is_stream(device: torch.device) -> Finding:
    """The resident cache against the stream: its first epoch, and those from memory."""
    with (
        open_loaders(device) as (streamed,),
        closing(ResidentCache(streamed.shards, streamed.options, device)) as cached,
    ):
        return _equal(lambda: next(cached), streamed, 3)


def loader_resumes(device: torch.device) -> Finding:
    """A new loader with the state of one in mid-epoch gives what that one gives next."""
    with open_loaders(device, device) as (first, second):
        for _ in range(first.steps_per_epoch + 1):
            next(first)
        second.load_state_dict(first.state_dict())
        return _equal(lambda: next(second), first, 2)


@contextmanager
def open_loaders(*devices: torch.device) -> Iterator[list[Loader]]:
    """Loaders of one set of the pictures, each on its device, for as long as this lasts."""
    with work_set() as shards, ExitStack() as stack:
        yield [stack.enter_context(closing(open_loader(shards, device))) for device in devices]


def open_loader(shards: ShardSet, device: torch.device) -> Loader:
    """A streaming loader of stored pixels, always in the same order."""
    options = LoaderOptions(
        BATCH, SIZE, device=device, seed=1, dtype=torch.uint8, data_timeout=PATIENCE
    )
    return Loader(shards, options)


def by_dali(loader: Loader) -> bool:
    """Whether DALI decodes here; where it cannot, threads of ours do."""
    return loader.decoder.name.startswith("dali")


def _equal(candidate: Callable[[], torch.Tensor], reference: Batches, epochs: int) -> Finding:
    """Compare two ways to the same batches, bit for bit."""
    total = epochs * reference.steps_per_epoch
    same = [torch.equal(candidate(), next(reference)) for _ in range(total)]
    found = f"{sum(same)} of {total} batches equal"
    if total and all(same):
        return ok(found)
    remedy = "do not train with these versions; send this report with --json report.json"
    return fail(f"{found}; batch {same.index(False)} differs first", remedy)


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
