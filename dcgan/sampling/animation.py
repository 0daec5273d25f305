"""Pictures that move: a walk between latents, and the fixed noise through training."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image, ImageFont

from dcgan.rundir.curves import spread
from dcgan.sampling.pictures import PAPER, as_picture, open_picture, under_heading
from pipeline.files import replacing

if TYPE_CHECKING:
    import torch

FORMATS: dict[str, tuple[str, dict[str, Any]]] = {
    ".gif": ("GIF", {}),
    ".webp": ("WEBP", {"lossless": True}),
}
"""A walk's formats and Pillow's options, by ending. A GIF has 256 colours a frame."""

FRAME_MS = 50
"""A walk shows twenty frames a second. Browsers slow down GIFs that ask for less than 20 ms."""

WALK_SIDE = 256
"""Pixels up to which a walk's pictures are enlarged, by a whole factor."""

MAX_FRAMES, MAX_WIDTH = 40, 400
"""Limits of `progress.gif`, so that it has a few megabytes whatever the run."""


def save_walk(images: Iterable[torch.Tensor], path: Path) -> None:
    """Show one image after another, for ever; each pixel of a small one becomes a square.

    Args:
        images: (S, S, C) uint8 on the CPU each, C 1 or 3; at least one.
        path: its name ends in one of `FORMATS`; in WebP the colours are exact.
    """
    kind, options = FORMATS[path.suffix.lower()]
    pictures = (as_picture(image).convert("RGB") for image in images)
    frames = (_in_palette(picture) for picture in pictures) if kind == "GIF" else pictures
    _save(map(_enlarged, frames), path, kind, FRAME_MS, **options)


def _enlarged(frame: Image.Image) -> Image.Image:
    factor = max(1, WALK_SIDE // max(frame.size))
    size = (frame.width * factor, frame.height * factor)
    return frame.resize(size, Image.Resampling.NEAREST)


def save_progress(grids: Sequence[tuple[int, Path]], out: Path) -> None:
    """Show a run's grids of fixed noise one after another, for ever, the last one longer.

    Args:
        grids: (nimg, PNG) in order, at least one; of more than `MAX_FRAMES`, that many are taken
            evenly, the first and the last among them.
        out: the GIF to write.

    Raises:
        UserError: a grid that cannot be read.
    """
    frames = [_frame(nimg, path) for nimg, path in spread(grids, MAX_FRAMES)]
    size = tuple(max(lengths) for lengths in zip(*(frame.size for frame in frames), strict=True))
    # Six seconds in all, and never faster than the eye
    each = max(100, min(500, 6000 // len(frames)))
    durations = [each] * (len(frames) - 1) + [2000]
    _save((_in_palette(_within(frame, size)) for frame in frames), out, "GIF", durations)


def _frame(nimg: int, path: Path) -> Image.Image:
    grid = open_picture(path)
    if grid.width > MAX_WIDTH:
        height = round(grid.height * MAX_WIDTH / grid.width)
        grid = grid.resize((MAX_WIDTH, height), Image.Resampling.LANCZOS)
    font = ImageFont.load_default(size=max(14, grid.width // 30))
    return under_heading(grid, f"after {nimg:,} images", font)


def _within(frame: Image.Image, size: tuple[int, ...]) -> Image.Image:
    """The frame on white of `size`: a GIF has one size, and headings grow with their numbers."""
    sheet = Image.new("RGB", (size[0], size[1]), PAPER)
    sheet.paste(frame, (0, 0))
    return sheet


def _in_palette(picture: Image.Image) -> Image.Image:
    """The 256 colours of this picture alone, undithered: dots that differ by frame would flicker.

    One palette for all frames shows bands on faces, whose colours are many and near each other.
    """
    return picture.quantize(256, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)


def _save(
    frames: Iterable[Image.Image], path: Path, kind: str, milliseconds: int | list[int], **more: Any
) -> None:
    first, *others = frames
    with replacing(path) as temporary:
        first.save(
            temporary,
            kind,
            save_all=True,
            append_images=others,
            duration=milliseconds,
            loop=0,
            **more,
        )
