#!/usr/bin/env python3
"""Verify a shard set to the bit, and show what it is."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import track

from dcgan.cli import SETTINGS, VersionOption
from pipeline.errors import UserError, counted, told_plainly
from pipeline.files import write_whole, writing
from pipeline.shards.manifest import ShardSet
from pipeline.sheet import save_sheet
from pipeline.verify import Findings, find, mixing, verify

MAX_FAULTS_SHOWN = 8

app = typer.Typer(add_completion=False)
console = Console(highlight=False, markup=False, soft_wrap=True)


@app.command(
    context_settings=SETTINGS,
    epilog="For example: python tools/check_shards.py shards/ --sheet sheet.png.",
)
def check_shards(
    shards: Annotated[Path, typer.Argument(help="Folder made by tools/make_shards.py.")],
    decode: Annotated[bool, typer.Option("--decode", help="Decode every image, too.")] = False,
    sheet: Annotated[
        Path | None, typer.Option(help="Save a contact sheet of 64 samples here, as PNG.")
    ] = None,
    extract: Annotated[
        str | None,
        typer.Option(
            metavar="KEY", help="Save this sample, as 00000007, in the current folder, and end."
        ),
    ] = None,
    version: VersionOption = False,
) -> None:
    """Read every byte of a shard set and compare it with what was recorded when it was packed.

    Exits with status 1, and names the shard and the sample, if a single bit has changed.
    """
    if extract is not None and (sheet is not None or decode):
        other = "--decode" if sheet is None else "--sheet"
        raise UserError("--extract", f"{other} beside it", "only one of the two", "leave one out")
    if sheet is not None:
        _require_picture(sheet)
    shard_set = ShardSet.open(shards)
    if extract is not None:
        key, data = find(shard_set, extract)
        path = Path(f"{key}.{shard_set.manifest.recipe.extension}")
        with writing(path):
            write_whole(path, data)
        console.print(f"saved   {path}, {len(data):,} bytes")
        return
    findings = Findings()
    readings = track(
        verify(shard_set, findings, decoding=decode),
        description="checking",
        total=len(shard_set.tars),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
    deque(readings, maxlen=0)  # runs it to its end
    _show(shard_set, findings, decode)
    with suppress(ValueError):  # an index that tells nothing is among the faults below
        mixed = mixing(shard_set)
        console.print(f"mixing  {'too few images to tell' if mixed is None else mixed.told()}")
    if sheet is not None and not findings.faults:
        with writing(sheet), _drawable(shards):
            save_sheet(shard_set, sheet)
        console.print(f"sheet   {sheet}")
    if findings.faults:
        raise UserError(
            shards,
            _count(len(findings.faults)) + ":",
            "the bytes that were packed",
            "copy the named files from where the set came from, or pack it again",
            findings.faults[:MAX_FAULTS_SHOWN],
        )
    console.print("all is as it was packed")


def _require_picture(sheet: Path) -> None:
    """Refuse now what could not be written after the whole set was read."""
    where = f"--sheet {sheet}"
    if sheet.suffix.lower() != ".png":
        raise UserError(where, "no name of a PNG", "a file whose name ends in .png", "rename it")
    if not sheet.parent.is_dir():
        found, remedy = f"no folder {sheet.parent}", "make it"
        raise UserError(where, found, "a file in a folder that exists", remedy)


@contextmanager
def _drawable(shards: Path) -> Iterator[None]:
    """Surround decoding: what nobody decoded before may be no image."""
    try:
        yield
    except (ValueError, RuntimeError) as error:
        raise UserError(
            f"--sheet of {shards}",
            f"a sample that cannot be drawn ({error})",
            "images",
            "see which with --decode, and pack the set again",
        ) from None


def _show(shard_set: ShardSet, findings: Findings, decoded: bool) -> None:
    manifest = shard_set.manifest
    total = sum(shard.bytes for shard in manifest.shards)
    checked = "each decoded" if decoded or manifest.recipe.checked else "not decoded: --no-check"
    console.print(
        f"images  {manifest.samples:,}, {checked}\n"
        f"shards  {len(manifest.shards)}, {total / 1e6:,.1f} MB,"
        f" {manifest.image_bytes / manifest.samples / 1e3:.1f} kB an image\n"
        f"recipe  {manifest.recipe.told()}, seed {manifest.seed}"
    )
    for (width, height), count in findings.sizes.most_common(5):
        console.print(f"size    {width}×{height}: {count:,} ({count / manifest.samples:.1%})")
    if len(findings.sizes) > 5:
        others = len(findings.sizes) - 5
        console.print(f"        {others} other sizes; in all {manifest.sizes()}")
    if findings.rejects:
        console.print(f"reject  {counted(findings.rejects)}: see rejects.csv")


def _count(faults: int) -> str:
    if faults <= MAX_FAULTS_SHOWN:
        return "1 fault" if faults == 1 else f"{faults} faults"
    return f"{faults:,} faults, of which the first {MAX_FAULTS_SHOWN}"


def main() -> None:
    """Run the command line."""
    with told_plainly():
        app()


if __name__ == "__main__":
    main()
