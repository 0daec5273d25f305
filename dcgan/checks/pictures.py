"""The pictures that `dcgan-doctor --verify` draws and packs, so that it needs nobody's data."""

from __future__ import annotations

import functools
import io
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image

from pipeline.images.demo_faces import Face, draw
from pipeline.packing.pack import Packing, pack
from pipeline.packing.sources import open_source
from pipeline.shards.manifest import ShardSet

BATCH, SIZE = 8, 64

PICTURES = 44
"""Five batches and a half, so that an epoch leaves some out; in shards of 18."""

GRAIN = 24
"""Standard deviation in levels of the noise on every other face: drawn ones are smooth, and a
resize without antialiasing, or another upsampling of the colours, would hardly show on them."""


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
