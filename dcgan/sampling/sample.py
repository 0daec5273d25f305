"""Samples of a trained net, as files that name their origin."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, repeat
from pathlib import Path

import torch
from PIL import Image

from dcgan.cli import PACKAGE, version
from dcgan.nets.models import Generator
from dcgan.nets.weights import load_generator, weights_in
from dcgan.rundir.folder import RunFolder
from dcgan.sampling.animation import save_walk
from dcgan.sampling.generate import (
    arithmetic,
    generate_each,
    latents,
    walk,
    walk_between_labels,
)
from dcgan.sampling.labels import (
    MOST_ROWS,
    Label,
    each_label,
    parse_label,
    parse_walk,
)
from dcgan.sampling.latents import Latents
from dcgan.sampling.pictures import (
    COLUMNS,
    PADDING,
    ROWS,
    columns_of_term,
    save_arithmetic,
    save_grid,
    save_image,
)
from dcgan.sampling.seeds import count, format_seeds
from pipeline.errors import UserError
from pipeline.files import file_digest
from pipeline.images.labels import LabelSpace
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
        generator: in eval mode, on the device that it is to run on; its labels have their names
            where the run's folder tells them, and else numbers.
        texts: for each PNG to hold, by keyword.
    """

    generator: Generator
    texts: dict[str, str]

    @property
    def nz(self) -> int:
        """Length of the latent."""
        nz: int = self.generator.options["--nz"]
        return nz

    def labels_to_draw(self, label: str | None) -> list[Label]:
        """Return the label that was asked for, or else one for each row of a grid.

        Returns:
            At most `MOST_ROWS`; none for an unconditional net.

        Raises:
            UserError: the net has no such label.
        """
        space = self._space(label)
        if space is None:
            return []
        return each_label(space)[:MOST_ROWS] if label is None else [parse_label(label, space)]

    def describe_rows(self, labels: Sequence[Label]) -> str:
        """Describe what the rows of a grid are, as far as they are not all labels of the net."""
        assert self.generator.labels is not None
        total = len(each_label(self.generator.labels))
        rest = f", of {total:,}; --label draws any of them" if len(labels) < total else ""
        return f"a row for each of {len(labels)} labels{rest}"

    def labels_of_walk(self, label: str | None, seeds: Sequence[int]) -> torch.Tensor | None:
        """Return the labels at the stops of a walk, (stops, n) float; None for no labels.

        Args:
            label: one for the whole walk, or one for each stop.
            seeds: of the stops.

        Raises:
            UserError: the net has no such labels, or there are too few or too many.
        """
        space = self._space(label)
        if space is None:
            return None
        found = [] if label is None else parse_walk(label, space)
        if len(found) not in (1, len(seeds)):
            raise UserError(
                "--interpolate, of a conditional net" if label is None else f"--label {label}",
                f"{len(found)} labels for {len(seeds)} seeds",
                "one for all, or one for each",
                f"for example --label {each_label(space)[0].name!r}; a seed may be named twice, to"
                " go from label to label alone",
            )
        stops = found * len(seeds) if len(found) == 1 else found
        pairs = zip(stops, seeds, strict=True)
        return torch.stack([each.row(seed, self.generator.usual_labels) for each, seed in pairs])

    def label_of_arithmetic(self, label: str | None) -> Label | None:
        """Return the label of all images of a sum; None for an unconditional net.

        Raises:
            UserError: the net has no such label, or none was named.
        """
        space = self._space(label)
        if space is not None and label is None:
            raise UserError(
                "--arithmetic, of a conditional net",
                "no --label",
                "one for all its pictures",
                f"for example --label {each_label(space)[0].name!r}",
            )
        return None if space is None or label is None else parse_label(label, space)

    def _space(self, label: str | None) -> LabelSpace | None:
        space = self.generator.labels
        if space is None and label is not None:
            raise UserError(
                f"--label {label}",
                "a net that was trained without labels",
                "one of dcgan-train --conditional",
                "leave --label out, or name another net",
            )
        return space


def open_source(net: Path, raw_net: bool, device: torch.device) -> Source:
    """Find and load the net that was named.

    Args:
        net: a run folder, a folder of dcgan-export, or a state dict of a generator.
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
    path, texts = weights_in(net), {SOFTWARE: f"{PACKAGE} {version()}"}
    if path.is_dir():
        path = RunFolder.open(net).generator_to_sample(raw_net)
        texts["Run"] = _printable(net.resolve().name)
    elif raw_net:
        raise UserError("--raw-net", f"{net}, which is one net", "a run folder", "leave it out")
    generator = load_generator(path)
    texts["Net"] = _printable(path.name)
    texts["Net SHA-256"] = file_digest(path)
    return Source(generator.to(device), texts)


def save_pictures(
    source: Source,
    chosen: Latents,
    grid: Path | None,
    folder: Path | None,
    done: Done,
    labels: Sequence[Label] = (),
) -> None:
    """Draw one image for each latent, and each label if there are several.

    A grid has the columns of training's up to 64 images, and is about square beyond; with several
    labels it has a row for each. Without a grid the memory is constant.

    Args:
        source: the net.
        chosen: in the order of the grid.
        grid: the PNG of a grid.
        folder: made where there is none, for one PNG an image, named after its seed and its label,
            or the number of its label, if there are several.
        done: called after each image.
        labels: of a conditional net; at least one.

    Raises:
        UserError: too many images for a grid.
    """
    number, names = count(chosen.numbers), [label.name for label in labels]
    total = number * max(1, len(labels))
    columns = COLUMNS if total <= COLUMNS * ROWS else math.ceil(math.sqrt(total))
    columns = number if len(labels) > 1 else columns
    if grid is not None:
        _check_grid(grid, total, columns, -(-total // columns), source.generator.image_size)
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
    kept = []
    for name, texts, image in _images(source, chosen, labels):
        if folder is not None:
            save_image(image, folder / f"{name}.png", texts)
        if grid is not None:
            kept.append(image)
        done()
    if grid is not None:
        texts = {**source.texts, **chosen.texts}
        texts[f"{chosen.word.title()}s"] = format_seeds(chosen.numbers)
        texts |= {"Labels": "; ".join(names)} if names else {}
        save_grid(torch.stack(kept), grid, columns, texts, names if len(names) > 1 else None)


def _images(
    source: Source, chosen: Latents, labels: Sequence[Label]
) -> Iterator[tuple[str, dict[str, str], torch.Tensor]]:
    """Draw the images; yield each one's name, what its PNG is to hold, and its pixels."""
    for place, label in enumerate(labels or [None]):
        name, texts, own = "", {**source.texts, **chosen.texts}, None
        if label is not None:
            # One label's pictures are not to replace another's
            own_name = re.sub(r"[^\w.,=+-]+", "_", label.name)[:80]
            name = f"label{place:03d}-" if len(labels) > 1 else f"{own_name}-"
            texts |= {"Label": label.name}
            own = label.of_seeds(chain(*chosen.numbers), source.generator.usual_labels)
        images = generate_each(source.generator, chosen, own)
        for number, image in zip(chain(*chosen.numbers), images, strict=True):
            own_text = {chosen.word.title(): str(number)}
            yield f"{name}{chosen.word}{number:06d}", texts | own_text, image


def save_sum(
    source: Source,
    terms: Sequence[tuple[int, Sequence[range]]],
    grid: Path,
    done: Done,
    label: Label | None = None,
) -> torch.Tensor:
    """Draw the seeds of a sum, the mean of each term, and the result; see `arithmetic`.

    Args:
        source: the net.
        terms: for each its sign, 1 or -1, and its seeds.
        grid: the PNG, as `save_arithmetic` lays it out.
        done: called after each image.
        label: of a conditional net, for all images.

    Returns:
        The latent of the result, (nz, 1, 1) float32 on the CPU.

    Raises:
        UserError: too many images for a picture.
    """
    sizes = [count(seeds) for _, seeds in terms]
    across, size = sum(map(columns_of_term, sizes)) + 1, source.generator.image_size
    # With room for margins and operators, which take less than as many cells again
    _check_grid(grid, sum(sizes) + len(sizes) + 1, 2 * across, min(max(sizes), ROWS) + 2, size)
    listed = [(sign, [*chain(*seeds)]) for sign, seeds in terms]
    results = arithmetic(listed, source.nz)
    noise = (latents([seed], source.nz)[0] for _, seeds in listed for seed in seeds)
    labels = None if label is None else repeat(label.labels(source.generator.usual_labels)[0])
    images = _counted(generate_each(source.generator, chain(noise, results), labels), done)
    columns = [[next(images) for _ in seeds] for _, seeds in listed]
    signs = ["-" if sign < 0 else "+" for sign, _ in terms]
    written = zip(signs, (format_seeds(seeds) for _, seeds in terms), strict=True)
    texts = source.texts | {"Arithmetic": " ".join(chain(*written)).removeprefix("+ ")}
    texts |= {} if label is None else {"Label": label.name}
    save_arithmetic(columns, [*images], [*signs[1:], "="], grid, texts)
    return results[-1]


def save_interpolation(
    source: Source,
    stops: Sequence[int],
    frames: int,
    out: Path,
    done: Done,
    labels: torch.Tensor | None = None,
) -> None:
    """Draw a walk from seed to seed, and from label to label; see `walk` and `save_walk`."""
    noise = walk(stops, frames, source.nz)
    between = None if labels is None else walk_between_labels(labels, frames)
    save_walk(_counted(generate_each(source.generator, noise, between), done), out)


def is_ours(picture: Path) -> bool:
    """Tell whether a file is a PNG that this command has written."""
    try:
        with Image.open(picture, formats=("PNG",)) as opened:
            return str(opened.info.get(SOFTWARE, "")).startswith(PACKAGE)
    except Exception:  # Pillow's readers raise many kinds on what is not theirs
        return False


def _check_grid(grid: Path, total: int, columns: int, rows: int, image_size: ImageSize) -> None:
    width, height = sides(image_size)
    pixels = (columns * (width + PADDING) + PADDING) * (rows * (height + PADDING) + PADDING)
    if pixels > MAX_PIXELS:
        raise UserError(
            f"--out {grid}",
            f"{total:,} images, a picture of {pixels / 1e6:,.0f} million pixels",
            f"at most {MAX_PIXELS / 1e6:,.0f} million",
            "draw fewer, or seeds and latents as one file each, with --each DIR",
        )


def _counted(images: Iterator[torch.Tensor], done: Done) -> Iterator[torch.Tensor]:
    for image in images:
        yield image
        done()


def _printable(name: str) -> str:
    """Turn a file's name into text, whatever bytes it has."""
    return os.fsencode(name).decode("utf-8", "replace")
