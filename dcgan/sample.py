"""`dcgan-sample`: pictures of a trained net, by seed; also `python -m dcgan.sample`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer
from rich.console import Console

from dcgan.cli import SETTINGS, PlainArguments, command, progress
from dcgan.options import SampleOptions, require_place
from pipeline.errors import UserError, plain_errors
from pipeline.files import writing

if TYPE_CHECKING:
    from dcgan.sampling.sample import Source

app = typer.Typer()
console = Console(highlight=False, markup=False, emoji=False, soft_wrap=True)

DEFAULT_SEEDS, DEFAULT_GRID, DEFAULT_FRAMES = "0-63", Path("samples.png"), 60
SEEDS_OF_A_ROW = "0-7"
"""The default where a grid has a row for each label."""

MAX_FRAMES = 3600
"""Three minutes; all are held in memory while the file is written."""

OF_PICTURES, OF_A_WALK = ("seeds", "grid", "each"), ("frames", "out")
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
    if options.interpolate is None:
        _draw_pictures(options)
    else:
        _draw_walk(options, options.interpolate)


def _require_one_purpose(options: SampleOptions) -> None:
    walking = f"--interpolate {options.interpolate}" if options.interpolate is not None else None
    for name in OF_A_WALK if walking is None else OF_PICTURES:
        flag, value = options.flag(name), getattr(options, name)
        if value is not None and walking is not None:
            raise UserError(
                walking, f"{flag} beside it", "only one of the two", f"leave {flag} out"
            )
        if value is not None:
            raise UserError(
                f"{flag} {value}",
                "no --interpolate",
                "a walk for it",
                "add --interpolate 12:34; a grid is written with --grid",
            )


def _draw_pictures(options: SampleOptions) -> None:
    from dcgan.sampling.seeds import count, parse_seeds

    seeds = None if options.seeds is None else parse_seeds(options.seeds)
    each = options.each
    if each is not None and each.exists() and not each.is_dir():
        raise UserError(f"--each {each}", "a file", "a folder", "choose another name")
    grid = _grid(options.grid, each)
    source = _open(options)
    from dcgan.sampling.sample import save_pictures

    labels = source.labels_to_draw(options.label)
    if seeds is None:
        seeds = parse_seeds(SEEDS_OF_A_ROW if len(labels) > 1 else DEFAULT_SEEDS)
    total = count(seeds) * max(1, len(labels))
    with writing(each or grid, *ROOM), progress(console, "drawing", total) as done:
        save_pictures(source, seeds, grid, each, done, labels)
    if len(labels) > 1:
        console.print(source.describe_rows(labels))
    if each is not None:
        console.print(f"{total:,} images in {each}/")
    if grid is not None:
        console.print(f"{total:,} images in {grid}, row by row")


def _grid(grid: Path | None, each: Path | None) -> Path | None:
    """The grid to write, if any. The default name gives way to whatever is not a sample of ours."""
    if grid is not None:
        if grid.suffix.lower() != ".png":
            raise UserError(
                f"--grid {grid}", "no name of a PNG", "a file whose name ends in .png", "rename it"
            )
        require_place("--grid", grid)
        return grid
    if each is not None:
        return None
    if DEFAULT_GRID.exists():
        from dcgan.sampling.sample import is_ours

        if not is_ours(DEFAULT_GRID):
            raise UserError(
                DEFAULT_GRID,
                "a file that dcgan-sample did not write",
                "a free name for the grid",
                "choose one with --grid",
            )
    return DEFAULT_GRID


def _draw_walk(options: SampleOptions, interpolate: str) -> None:
    from dcgan.sampling.seeds import parse_stops

    stops = parse_stops(interpolate)
    frames, out = _frames(options.frames, len(stops)), _animation(options.out)
    source = _open(options)
    from dcgan.sampling.sample import save_interpolation

    labels = source.labels_of_walk(options.label, stops)
    with writing(out, *ROOM), progress(console, "drawing", frames) as done:
        save_interpolation(source, stops, frames, out, done, labels)
    console.print(f"{frames:,} frames in {out}")


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
