"""`dcgan-sample`: pictures of a trained net, by seed; also `python -m dcgan.sample`."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import typer
from rich.console import Console

from dcgan.cli import SETTINGS, PlainArguments, command, progress
from dcgan.options import SampleOptions, require_place
from pipeline.errors import UserError, plain_errors
from pipeline.files import writing

if TYPE_CHECKING:
    import torch

    from dcgan.sampling.sample import Source

app = typer.Typer()
console = Console(highlight=False, markup=False, emoji=False, soft_wrap=True)

DEFAULT_SEEDS, DEFAULT_GRID, DEFAULT_FRAMES = "0-63", Path("samples.png"), 60
SEEDS_OF_A_ROW = "0-7"
"""The default where a grid has a row for each label."""

MAX_FRAMES = 3600
"""Three minutes; all are held in memory while the file is written."""

PURPOSES = {
    "seeds": ("out", "each", "save_latents"),
    "latents": ("out", "each"),
    "arithmetic": ("out", "save_latents"),
    "interpolate": ("out", "frames", "save_latents"),
}
"""The options of which one says what is drawn, and those that go with each."""

ROOM = ("a place for new files", "choose another, or make room")


@app.command(
    cls=PlainArguments,
    context_settings=SETTINGS,
    epilog="For example: dcgan-sample runs/0001 --seeds 0-99 --each faces/, or"
    " dcgan-sample runs/0001 --interpolate 12:34 --out walk.gif. Of a conditional net:"
    " dcgan-sample runs/0002 --label cats.",
)
@command
def sample(options: SampleOptions) -> None:
    """Draw images from a trained generator: each depends on its seed, and its label, alone."""
    _require_one_purpose(options)
    if options.save_latents is not None:
        _require_file("--save-latents", options.save_latents, ".npy")
    if options.interpolate is not None:
        _draw_walk(options, options.interpolate)
    elif options.arithmetic is not None:
        _draw_arithmetic(options, options.arithmetic)
    else:
        _draw_pictures(options)


def _require_one_purpose(options: SampleOptions) -> None:
    given = [name for name in PURPOSES if getattr(options, name) is not None]
    purpose = given[0] if given else "seeds"
    for name in chain(PURPOSES, *PURPOSES.values()):
        flag, value = options.flag(name), getattr(options, name)
        if value is not None and name not in (purpose, *PURPOSES[purpose]):
            takers = [f"draw with {options.flag(p)}" for p in PURPOSES if name in PURPOSES[p]]
            raise UserError(
                f"{flag} {value}",
                f"{options.flag(purpose)} beside it{'' if given else ', by default'}",
                f"there only {', '.join(map(options.flag, PURPOSES[purpose]))}",
                ", or ".join([f"leave {flag} out", *takers]),
            )


def _draw_pictures(options: SampleOptions) -> None:
    from dcgan.sampling.seeds import count, parse_seeds

    seeds = None if options.seeds is None else parse_seeds(options.seeds)
    each = options.each
    if each is not None and each.exists() and not each.is_dir():
        raise UserError(f"--each {each}", "a file", "a folder", "choose another name")
    grid = None if each is not None and options.out is None else _grid(options.out)
    source = _open(options)
    from dcgan.sampling.latents import latents_of_seeds, read_latents
    from dcgan.sampling.sample import save_pictures

    labels = source.labels_to_draw(options.label)
    if seeds is None:
        seeds = parse_seeds(SEEDS_OF_A_ROW if len(labels) > 1 else DEFAULT_SEEDS)
    chosen = (
        latents_of_seeds(seeds, source.nz)
        if options.latents is None
        else read_latents(options.latents, source.nz)
    )
    number = count(chosen.numbers)
    total = number * max(1, len(labels))
    with writing(each or grid, *ROOM), progress(console, "drawing", total) as done:
        save_pictures(source, chosen, grid, each, done, labels)
    if len(labels) > 1:
        console.print(source.describe_rows(labels))
    if each is not None:
        console.print(f"{total:,} images in {each}/")
    if grid is not None:
        console.print(f"{total:,} images in {grid}, row by row")
    _save_latents(options.save_latents, chosen, number, source.nz)


def _grid(grid: Path | None) -> Path:
    """The grid to write. The default name gives way to whatever is not a sample of ours."""
    if grid is not None:
        _require_file("--out", grid, ".png")
        return grid
    if DEFAULT_GRID.exists():
        from dcgan.sampling.sample import is_ours

        if not is_ours(DEFAULT_GRID):
            raise UserError(
                DEFAULT_GRID,
                "a file that dcgan-sample did not write",
                "a free name for the grid",
                "choose one with --out",
            )
    return DEFAULT_GRID


def _require_file(flag: str, path: Path, ending: str) -> None:
    if path.suffix.lower() != ending:
        raise UserError(
            f"{flag} {path}", "another ending", f"a file whose name ends in {ending}", "rename it"
        )
    require_place(flag, path)


def _save_latents(path: Path | None, rows: Iterable[torch.Tensor], count: int, nz: int) -> None:
    from dcgan.sampling.latents import save_latents

    if path is not None:
        with writing(path, *ROOM):
            save_latents(rows, (count, nz), path)
        console.print(f"{count:,} latents in {path}")


def _draw_arithmetic(options: SampleOptions, arithmetic: str) -> None:
    from dcgan.sampling.seeds import count, parse_arithmetic

    terms = parse_arithmetic(arithmetic)
    grid = _grid(options.out)
    source = _open(options)
    from dcgan.sampling.sample import save_sum

    label = source.label_of_arithmetic(options.label)
    total = sum(count(seeds) for _, seeds in terms) + len(terms) + 1
    with writing(grid, *ROOM), progress(console, "drawing", total) as done:
        result = save_sum(source, terms, grid, done, label)
    console.print(f"{arithmetic} in {grid}: the means in the last row, the result at its end")
    _save_latents(options.save_latents, [result], 1, source.nz)


def _draw_walk(options: SampleOptions, interpolate: str) -> None:
    from dcgan.sampling.seeds import parse_stops

    stops = parse_stops(interpolate)
    frames, out = _frames(options.frames, len(stops)), _animation(options.out)
    source = _open(options)
    from dcgan.sampling.generate import walk
    from dcgan.sampling.sample import save_interpolation

    labels = source.labels_of_walk(options.label, stops)
    with writing(out, *ROOM), progress(console, "drawing", frames) as done:
        save_interpolation(source, stops, frames, out, done, labels)
    console.print(f"{frames:,} frames in {out}")
    _save_latents(options.save_latents, walk(stops, frames, source.nz), frames, source.nz)


def _frames(asked: int | None, stops: int) -> int:
    if stops > MAX_FRAMES:
        raise UserError(
            "--interpolate", f"{stops:,} seeds", f"at most {MAX_FRAMES:,}", "take fewer"
        )
    usual = max(stops, DEFAULT_FRAMES)
    frames = usual if asked is None else asked
    if not stops <= frames <= MAX_FRAMES:
        raise UserError(
            f"--frames {frames}",
            f"{stops} seeds to walk to",
            f"from {stops}, one for each seed, to {MAX_FRAMES:,}",
            f"leave --frames out for {usual}",
        )
    return frames


def _animation(out: Path | None) -> Path:
    from dcgan.sampling.animation import FORMATS

    if out is None or out.suffix.lower() not in FORMATS:
        raise UserError(
            f"--out {out}" if out is not None else "--interpolate without --out",
            "no name of an animation",
            f"a file whose name ends in {' or '.join(FORMATS)}",
            "for example --out walk.gif",
        )
    require_place("--out", out)
    return out


def _open(options: SampleOptions) -> Source:
    with console.status("loading torch"):
        from dcgan.rundir.environment import pick_device
        from dcgan.sampling.sample import open_source
        from pipeline.machine import limit_torch_threads

    limit_torch_threads()
    return open_source(options.net, options.raw_net, pick_device(options.device))


def main() -> None:
    """Run the command line."""
    with plain_errors():
        app()


if __name__ == "__main__":
    main()
