#!/usr/bin/env python3
"""Draw a CelebA-shaped folder of simple cartoon faces, for a machine without CelebA."""

from __future__ import annotations

import json
import re
import shlex
import time
from collections.abc import Generator
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from dcgan.cli import SETTINGS, VersionOption
from pipeline.errors import UserError, plain_errors
from pipeline.files import PARTIAL, write_whole
from pipeline.images.demo_faces import MARK, Face, encode
from pipeline.machine import usable_cores
from pipeline.processes import Workers

IMAGES, RECORD = "img_align_celeba", "demo-faces.json"


def write_faces(folder: Path, seed: int, numbers: range) -> Generator[int, None, None]:
    """Write these faces' files and yield their bytes together: one task of a worker."""
    files = {number: encode(Face(seed, number)) for number in numbers}
    yield sum((folder / f"{number:06d}.jpg").write_bytes(files[number]) for number in numbers)


def claim(out: Path, record: str, count: int) -> bool:
    """Whether the set of this record is complete; if not, remove what an interrupted run left.

    Raises:
        UserError: the folder holds anything but one set, whole or not, that this tool drew.
    """
    if out.exists() and not out.is_dir():
        raise UserError(out, "a file", "a folder", "choose another folder")
    images = sorted((out / IMAGES).iterdir()) if (out / IMAGES).is_dir() else []
    held = sorted(out.iterdir()) if out.exists() else []
    files = [out / RECORD, out / (RECORD + PARTIAL)]
    foreign = [p for p in held if not (p.is_dir() if p == out / IMAGES else p in files)]
    foreign += [path for path in images if not _is_ours(path)]
    if foreign:
        others = f" and {len(foreign) - 1:,} more" if foreign[1:] else ""
        found = f"{foreign[0].relative_to(out)}{others}, which this tool did not write"
        raise UserError(out, found, "a new or empty folder", "choose another folder")
    if files[0].exists():
        found = files[0].read_text(encoding="utf-8", errors="replace").strip()
        if found != record:
            remedy = f"choose another, or delete this one first: rm -r {shlex.quote(str(out))}"
            raise UserError(out, f"another set, {found}", record, remedy)
        if len(images) == count:
            return True
    for path in [*files, *images]:  # the record first: from here on the set is not complete
        path.unlink(missing_ok=True)
    return False


def _is_ours(path: Path) -> bool:
    if not (path.is_file() and re.fullmatch(r"\d{6}\.jpg", path.name)):
        return False
    with path.open("rb") as file:
        head = file.read(64)
    return MARK in head or not head  # empty: a run was killed as it opened the file


app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command(
    context_settings=SETTINGS,
    epilog="For example: python tools/make_demo_faces.py faces --count 4000."
    " Then: python tools/make_shards.py faces.",
)
def make_demo_faces(
    out: Annotated[Path, typer.Argument(help="The folder to make: OUT/img_align_celeba/….")],
    count: Annotated[int, typer.Option(min=1, max=999_999, help="Faces to draw.")] = 4000,
    seed: Annotated[int, typer.Option(min=0, help="Each seed draws other faces.")] = 0,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Processes; by default one for each core.")
    ] = None,
    version: VersionOption = False,
) -> None:
    """Draw a CelebA-shaped folder of simple cartoon faces, for a machine without CelebA.

    Face i depends on the seed and i alone, byte for byte: more faces only add to fewer.
    """
    from rich.console import Console
    from rich.progress import track

    console = Console(highlight=False, markup=False, soft_wrap=True)
    # Beside this file in a clone; elsewhere installed under another name
    tool = "python tools/make_shards.py" if __package__ != "dcgan_tools" else "dcgan-make-shards"
    following = f"next: {tool} {shlex.quote(str(out))}"
    record = json.dumps({"drawing": MARK.decode(), "seed": seed, "count": count})
    started, folder = time.perf_counter(), out / IMAGES
    chunks = [range(first, min(first + 50, count + 1)) for first in range(1, count + 1, 50)]
    try:
        if claim(out, record, count):
            console.print(f"{folder} holds these {count:,} faces already; {following}")
            return
        folder.mkdir(parents=True, exist_ok=True)
        processes = min(workers or usable_cores(), len(chunks))
        with Workers(processes, partial(write_faces, folder, seed)) as running:
            sizes = running.run(chunks)
            bar = partial(track, console=console, transient=True, disable=not console.is_terminal)
            megabytes = sum(bar(sizes, "drawing", len(chunks))) / 1e6
        write_whole(out / RECORD, f"{record}\n".encode())
    except OSError as error:
        remedy = "put that right and run the same command again: it starts afresh"
        raise UserError(out, f"drawing failed: {error}", "a folder to write to", remedy) from error
    seconds = time.perf_counter() - started
    console.print(f"{count:,} faces, {megabytes:.1f} MB, {seconds:.1f} s in {folder}; {following}")


def main() -> None:
    """Run the command line."""
    with plain_errors():
        app()


if __name__ == "__main__":
    main()
