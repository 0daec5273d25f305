"""Pictures that the tests draw themselves, and shard sets of them."""

import csv
import io
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from pipeline.packing.pack import Packing, pack
from pipeline.packing.sources.open import open_source
from pipeline.shards.labels import LabelTable
from pipeline.shards.shard_set import ShardSet
from tests.packing_runs import without_workers

Pixels = npt.NDArray[np.uint8]

CELEBA = (178, 218)
"""Width and height of CelebA's aligned pictures."""

LEVELS, FIRST, STEP = 6, 25, 41
"""A numbered picture's digits are levels of red, green and blue, too far apart for JPEG to move."""


def smooth(width: int, height: int, seed: int = 0) -> Pixels:
    """Waves longer than half the picture and a soft bright oval: as smooth as a blurred face."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width] / np.array([height, width]).reshape(2, 1, 1)
    oval = 40 * np.exp(-(((x - 0.5) / 0.3) ** 2) - ((y - 0.5) / 0.4) ** 2)
    across, down, phase = random.uniform(0.3, 1.5, (3, 3))
    waves = [
        np.sin(2 * np.pi * (across[c] * x + down[c] * y + phase[c])) * 80 + oval for c in range(3)
    ]
    return (127 + np.stack(waves, axis=-1)).clip(0, 255).astype(np.uint8)


def noisy(width: int, height: int, seed: int = 0) -> Pixels:
    """Noise at half the size, enlarged: the finest detail that 4:2:0 chroma can carry."""
    half = (-(-height // 2), -(-width // 2), 3)
    noise = np.random.default_rng(seed).integers(0, 256, half, dtype=np.uint8)
    resampling = Image.Resampling.BICUBIC
    return np.asarray(Image.fromarray(noise).resize((width, height), resampling))


def encode(picture: Pixels | Image.Image, kind: str = "JPEG", **options: Any) -> bytes:
    """A picture as a file's bytes; JPEGs at quality 90 unless told."""
    image = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
    stream = io.BytesIO()
    image.save(stream, kind, **({"quality": 90} | options if kind == "JPEG" else options))
    return stream.getvalue()


def decode(data: bytes, mode: str = "RGB") -> Pixels:
    """A file's bytes as pixels, through Pillow."""
    return np.asarray(Image.open(io.BytesIO(data)).convert(mode))


def numbered(number: int, size: int = 32) -> bytes:
    """A plain square whose colour tells its number, from 0 to 215."""
    digits = np.array([number // LEVELS**place % LEVELS for place in range(3)])
    plain = np.broadcast_to(FIRST + STEP * digits, (size, size, 3)).astype(np.uint8)
    return encode(plain, quality=95)


def numbers(batch: torch.Tensor) -> list[int]:
    """Which numbered pictures make up a (B, S, S, 3) uint8 batch."""
    colours = batch.float().mean(dim=(1, 2))
    digits = (colours - FIRST) / STEP
    assert (digits - digits.round()).abs().max() < 0.2, "not numbered pictures, or damaged ones"
    return [int(row @ torch.tensor([1.0, 6.0, 36.0])) for row in digits.round()]


def numbered_pictures(count: int) -> dict[str, bytes]:
    """Numbered pictures under names that sort by number."""
    return {f"{number:03d}.jpg": numbered(number) for number in range(count)}


def write_pictures(folder: Path, pictures: Mapping[str, bytes]) -> Path:
    """Write files, in sub-folders too where their names say so."""
    for name, data in pictures.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return folder


def names_in(folder: Path) -> list[str]:
    """What a folder holds, sorted."""
    return sorted(entry.name for entry in folder.iterdir())


def pack_pictures(
    folder: Path,
    pictures: Mapping[str, bytes],
    labels: LabelTable | None = None,
    **options: Any,
) -> ShardSet:
    """Write pictures to `folder`/pictures, and their shard set to `folder`/set.

    Args:
        folder: new or empty.
        pictures: files by name.
        labels: of the pictures, in the order of their names.
        options: `Packing`'s.
    """
    source = open_source(write_pictures(folder / "pictures", pictures))
    with without_workers():
        pack(source, source.members(), folder / "set", Packing(**options), labels=labels)
    return ShardSet.open(folder / "set")


def contents(folder: Path) -> dict[str, bytes]:
    """The files of a flat folder."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def stored(shards: ShardSet) -> list[list[tuple[str, bytes]]]:
    """Each shard's members, in their order: names and bytes."""
    found = []
    for tar in shards.tars:
        with tarfile.open(tar) as archive:
            found.append([(member.name, _data(archive, member)) for member in archive])
    return found


def rows_of(table: Path) -> list[list[str]]:
    """A set's table as packing writes it, with its header."""
    with table.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        return list(csv.reader(file))


def _data(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = archive.extractfile(member)
    assert file is not None, f"{member.name} is no file"
    return file.read()
