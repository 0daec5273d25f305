"""`dcgan-sample`: pictures of a trained net, by seed; also `python -m dcgan.sample`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from dcgan.cli import SETTINGS, command
from dcgan.options import SampleOptions, require_place
from pipeline.errors import UserError, told_plainly
from pipeline.files import PARTIAL
from pipeline.machine import limit_torch_threads

if TYPE_CHECKING:
    from dcgan.sampling.sample import Source

app = typer.Typer()
console = Console(highlight=False, markup=False, emoji=False, soft_wrap=True)

DEFAULT_SEEDS, DEFAULT_GRID, DEFAULT_FRAMES = "0-63", Path("samples.png"), 60

MAX_FRAMES = 3600
"""Three minutes; all are held in memory while the file is written."""


@app.command(
    context_settings=SETTINGS,
    epilog="For example: dcgan-sample runs/0001 --seeds 0-99 --each faces/, or"
    " dcgan-sample runs/0001 --interpolate 12:34 --out walk.gif.",
)
@command
def sample(options: SampleOptions) -> None:
    """Draw images from a trained generator: image i depends on seed i alone."""
    from dcgan.sampling.seeds import parse_seeds, parse_stops, seed_in

    asked = {options.flag(name): value for name, value in options if value is not None}
    pictures, walking = ("--seeds", "--grid", "--each"), ("--interpolate", "--frames", "--out")
    if options.cell is not None:
        _refuse_beside(f"--cell {options.cell}", asked, pictures + walking)
        console.print(f"seed {seed_in(options.cell)}")
        return
    if options.net is None:
        raise UserError(
            "RUN|netG.pt", "nothing", "a run folder or a generator's weights", "dcgan-sample RUN"
        )
    if options.interpolate is not None:
        _refuse_beside(f"--interpolate {options.interpolate}", asked, pictures)
        stops = parse_stops(options.interpolate)
        count, target = _frames(options.frames, options.interpolate), _animation(options.out)
        _save_walk(_open(options), stops, count, target)
        return
    _refuse_without_interpolate(asked, walking)
    ranges = parse_seeds(options.seeds or DEFAULT_SEEDS)
    each = options.each
    if each is not None and each.exists() and not each.is_dir():
        raise UserError(f"--each {each}", "a file", "a folder", "choose another name")
    grid = _grid(options.grid, each)
    _save_pictures(_open(options), ranges, grid, each)


def _frames(frames: int | None, interpolate: str) -> int:
    least = interpolate.count(":") + 1
    if least > MAX_FRAMES:
        raise UserError(
            "--interpolate", f"{least:,} seeds", f"at most {MAX_FRAMES:,}", "take fewer"
        )
    count = max(least, DEFAULT_FRAMES) if frames is None else frames
    if not least <= count <= MAX_FRAMES:
        raise UserError(
            f"--frames {frames}",
            f"{least} seeds to walk to",
            f"from {least}, one for each seed, to {MAX_FRAMES:,}",
            f"leave --frames out for {max(least, DEFAULT_FRAMES)}",
        )
    return count


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


def _grid(grid: Path | None, each: Path | None) -> Path | None:
    """The grid to write, if any. The default name gives way to whatever is not a sample of ours."""
    if grid is None:
        if each is not None:
            return None
        if DEFAULT_GRID.exists() and not _is_ours(DEFAULT_GRID):
            raise UserError(
                DEFAULT_GRID,
                "a file that dcgan-sample did not write",
                "a free name for the grid",
                "choose one with --grid",
            )
        return DEFAULT_GRID
    if grid.suffix.lower() != ".png":
        raise UserError(
            f"--grid {grid}", "no name of a PNG", "a file whose name ends in .png", "rename it"
        )
    require_place("--grid", grid)
    return grid


def _is_ours(path: Path) -> bool:
    from dcgan.sampling.sample import is_ours

    return is_ours(path)


def _refuse_beside(flag: str, asked: dict[str, object], others: Iterable[str]) -> None:
    for other in others:
        if other in asked:
            raise UserError(flag, f"{other} beside it", "only one of the two", f"leave {other} out")


def _refuse_without_interpolate(asked: dict[str, object], walking: Iterable[str]) -> None:
    for flag in walking:
        if flag in asked:
            raise UserError(
                f"{flag} {asked[flag]}",
                "no --interpolate",
                "a walk for it",
                "add --interpolate 12:34; a grid is written with --grid",
            )


def _open(options: SampleOptions) -> Source:
    from dcgan.rundir.environment import pick_device
    from dcgan.sampling.sample import open_source

    assert options.net is not None
    limit_torch_threads()
    return open_source(options.net, options.raw_net, pick_device(options.device))


def _save_pictures(
    source: Source, seeds: list[range], grid: Path | None, each: Path | None
) -> None:
    from dcgan.sampling.sample import save_pictures
    from dcgan.sampling.seeds import count

    total = count(seeds)
    with _saving(each if each is not None else grid), _progress(total) as done:
        save_pictures(source, seeds, grid, each, done)
    if each is not None:
        console.print(f"{total:,} images in {each}/")
    if grid is not None:
        console.print(f"{total:,} images in {grid}, row by row")


def _save_walk(source: Source, stops: list[int], frames: int, out: Path) -> None:
    from dcgan.sampling.sample import save_interpolation

    with _saving(out), _progress(frames) as done:
        save_interpolation(source, stops, frames, out, done)
    console.print(f"{frames:,} frames in {out}")


@contextmanager
def _saving(path: Path | None) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(
            str(error.filename or path).removesuffix(PARTIAL),
            error.strerror or str(error),
            "a place for new files",
            "choose another, or make room",
        ) from None


@contextmanager
def _progress(total: int) -> Iterator[Callable[[], None]]:
    """Show a bar on a terminal, and nothing in a pipe.

    Yields:
        A function that moves the bar by one image.
    """
    bar = Progress(
        TextColumn("drawing"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
    with bar:
        task = bar.add_task("", total=total)
        yield lambda: bar.advance(task)


def main() -> None:
    """Run the command line."""
    with told_plainly():
        app()


if __name__ == "__main__":
    main()
