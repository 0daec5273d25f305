#!/usr/bin/env python3
"""Pack a folder or zip of images into webdataset shards for dcgan-train."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)

from pipeline.errors import told_plainly
from pipeline.packing import PER_SHARD, Packed, pack
from pipeline.sources import in_classes, open_source

app = typer.Typer(add_completion=False, rich_markup_mode=None)
# Paths are printed: no markup in them, and no line breaks in a command to paste
console = Console(highlight=False, markup=False, soft_wrap=True)


@app.command()
def make_shards(
    source: Annotated[
        Path,
        typer.Argument(help="A folder of images, at any depth, or a zip of them as downloaded."),
    ],
    out: Annotated[Path, typer.Option(help="Where the shard set goes.")] = Path("shards"),
    seed: Annotated[int, typer.Option(min=0, help="Of the global shuffle.")] = 0,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Take the first N images by name only.")
    ] = None,
    per_shard: Annotated[int, typer.Option(min=1, help="Images in one shard.")] = PER_SHARD,
    classes: Annotated[
        str | None, typer.Option(help="Take these sub-folders only: a,b.", metavar="A,B")
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Processes; by default one for each core.")
    ] = None,
) -> None:
    """Pack images into a shard set: checked, shuffled, ready for dcgan-train.

    Ordinary JPEGs go in byte for byte; other formats are encoded once. The result depends on the
    source and the options alone, byte for byte, whatever the number of workers.
    """
    images = open_source(source)
    names = images.names()
    if classes is not None:
        names = in_classes(names, [name.strip() for name in classes.split(",")], images.path)
    names = names[:limit]
    console.print(f"source  {images.path}: {len(names):,} images")
    started = time.perf_counter()
    with _progress() as bar:
        task = bar.add_task("packing", total=len(names), rate="")

        def show(done: int) -> None:
            rate = done / (time.perf_counter() - started)
            bar.update(task, completed=done, rate=f"{rate:,.0f} img/s")

        packed = pack(
            images,
            names,
            out,
            seed=seed,
            per_shard=per_shard,
            workers=workers or os.cpu_count() or 1,
            progress=show,
        )
    _summarise(packed, out, time.perf_counter() - started)


def _progress() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )


def _summarise(packed: Packed, out: Path, seconds: float) -> None:
    manifest = packed.manifest
    untouched = manifest.samples - packed.converted
    width, height = manifest.largest_image
    size = f"{width}×{height}"
    if manifest.smallest_image != manifest.largest_image:
        size = "{}×{}".format(*manifest.smallest_image) + f" to {size}"
    console.print(
        f"packed  {manifest.samples:,} images of {size} pixels: "
        f"{untouched:,} untouched, {packed.converted:,} converted to JPEG\n"
        f"shards  {len(manifest.shards)} in {out}, "
        f"{sum(shard.bytes for shard in manifest.shards) / 1e6:,.1f} MB\n"
        f"time    {seconds:.1f} s, {manifest.samples / seconds:,.0f} img/s\n"
        f"next    dcgan-train --shards {out}"
    )


def main() -> None:
    """Run the command line."""
    with told_plainly():
        app()


if __name__ == "__main__":
    main()
