"""Samples of a trained net, as files that name their origin."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import torch
from PIL import Image

from dcgan.cli import PACKAGE, version
from dcgan.nets.models import Generator
from dcgan.nets.weights import load_generator
from dcgan.rundir.folder import RunFolder
from dcgan.sampling.animation import save_walk
from dcgan.sampling.generate import generate_each, latents, walk
from dcgan.sampling.pictures import COLUMNS, PADDING, ROWS, save_grid, save_image
from dcgan.sampling.seeds import count, format_seeds
from pipeline.errors import UserError
from pipeline.files import file_digest
from pipeline.images.size import ImageSize, sides

SOFTWARE = "Software"
"""The PNG keyword by which our pictures are recognised."""

Done = Callable[[], None]
"""Called after each image."""

MAX_PIXELS = 89_478_485
"""The largest grid: Pillow, asked to open a larger one, warns of a decompression bomb
(`PIL.Image.MAX_IMAGE_PIXELS`)."""


@dataclass(frozen=True)
class Source:
    """A net to sample, and what its pictures hold about it.

    Attributes:
        generator: in eval mode, on the device that it is to run on.
        texts: for each PNG to hold, by keyword.
    """

    generator: Generator
    texts: dict[str, str]


def open_source(net: Path, raw_net: bool, device: torch.device) -> Source:
    """Find and load the net that was named.

    Args:
        net: a run folder, or a state dict of a generator.
        raw_net: take a run's net as it was trained, not its moving average.
        device: where to draw.

    Raises:
        UserError: there is no such net, or `raw_net` was given for a file.
    """
    if not net.exists():
        raise UserError(
            net,
            "no such file or folder",
            "a run folder, or the weights of a generator",
            "check the path",
        )
    path, texts = net, {SOFTWARE: f"{PACKAGE} {version()}"}
    if net.is_dir():
        path = RunFolder.open(net).generator_to_sample(raw_net)
        texts["Run"] = _printable(net.resolve().name)
    elif raw_net:
        raise UserError("--raw-net", f"{net}, which is one net", "a run folder", "leave it out")
    generator = load_generator(path)
    texts["Net"] = _printable(path.name)
    texts["Net SHA-256"] = file_digest(path)
    return Source(generator.to(device), texts)


def save_pictures(
    source: Source, seeds: Sequence[range], grid: Path | None, folder: Path | None, done: Done
) -> None:
    """Draw one image for each seed; without a grid, in constant memory.

    A grid has the columns of training's up to 64 images, and is about square beyond.

    Args:
        source: the net.
        seeds: in the order of the grid.
        grid: the PNG of a grid.
        folder: made where there is none, for one PNG a seed, named after it.
        done: called after each image.

    Raises:
        UserError: too many images for a grid.
    """
    total, nz = count(seeds), source.generator.options["--nz"]
    columns = COLUMNS if total <= COLUMNS * ROWS else math.ceil(math.sqrt(total))
    if grid is not None:
        _check_grid(grid, total, columns, source.generator.image_size)
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
    noise = (latents([seed], nz)[0] for seed in chain(*seeds))
    kept = []
    for seed, image in zip(chain(*seeds), generate_each(source.generator, noise), strict=True):
        if folder is not None:
            save_image(image, folder / f"seed{seed:06d}.png", source.texts | {"Seed": str(seed)})
        if grid is not None:
            kept.append(image)
        done()
    if grid is not None:
        save_grid(torch.stack(kept), grid, columns, source.texts | {"Seeds": format_seeds(seeds)})


def save_interpolation(
    source: Source, stops: Sequence[int], frames: int, out: Path, done: Done
) -> None:
    """Draw a walk from seed to seed; see `walk` and `save_walk`."""
    noise = walk(stops, frames, source.generator.options["--nz"])
    save_walk(_counted(generate_each(source.generator, noise), done), out)


def is_ours(picture: Path) -> bool:
    """Tell whether a file is a PNG that this command has written."""
    try:
        with Image.open(picture, formats=("PNG",)) as opened:
            return str(opened.info.get(SOFTWARE, "")).startswith(PACKAGE)
    except Exception:  # Pillow's readers raise many kinds on what is not theirs
        return False


def _check_grid(grid: Path, total: int, columns: int, image_size: ImageSize) -> None:
    (width, height), rows = sides(image_size), -(-total // columns)
    pixels = (columns * (width + PADDING) + PADDING) * (rows * (height + PADDING) + PADDING)
    if pixels > MAX_PIXELS:
        raise UserError(
            f"--grid {grid}",
            f"{total:,} seeds, a picture of {pixels / 1e6:,.0f} million pixels",
            f"at most {MAX_PIXELS / 1e6:,.0f} million",
            "write one file a seed, with --each DIR, or take fewer --seeds",
        )


def _counted(images: Iterator[torch.Tensor], done: Done) -> Iterator[torch.Tensor]:
    for image in images:
        yield image
        done()


def _printable(name: str) -> str:
    """Turn a file's name into text, whatever bytes it has."""
    return os.fsencode(name).decode("utf-8", "replace")
