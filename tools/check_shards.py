#!/usr/bin/env python3
"""Verify a shard set to the bit, and show what it is."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import typer
from rich.console import Console
from rich.progress import track

from dcgan.cli import SETTINGS, PlainArguments, command
from dcgan.options import CheckOptions
from pipeline.errors import UserError, counted, plain_errors
from pipeline.files import writing
from pipeline.remote.files import RemoteFiles
from pipeline.remote.open import open_set
from pipeline.shards.manifest import Labels
from pipeline.shards.shard_set import ShardSet
from pipeline.verify import Findings, save_sheet, verify

MAX_FAULTS_SHOWN = 8
MAX_SIZES_SHOWN = 5
MAX_LABELS_SHOWN = 50

app = typer.Typer(add_completion=False)
console = Console(highlight=False, markup=False, soft_wrap=True)


@app.command(
    cls=PlainArguments,
    context_settings=SETTINGS,
    epilog="For example: python tools/check_shards.py shards/ --sheet sheet.png.",
)
@command
def check_shards(options: CheckOptions) -> None:
    """Read every byte of a shard set and compare it with what was recorded when it was packed.

    Exits with status 1, and names the shard and the sample, if a single bit has changed.
    """
    if options.sheet is not None:
        _require_picture(options.sheet)
    shard_set = open_set(options.shards, options.access, CheckOptions.flag("shards"))
    bar = partial(
        track,
        description="checking",
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
    if isinstance(files := shard_set.files, RemoteFiles):
        _require_in_store(files)
    findings = verify(shard_set, decoding=options.decode, track=bar)
    _show(shard_set, findings, options.decode)
    if findings.faults:
        count = len(findings.faults)
        found = "1 fault" if count == 1 else f"{count:,} faults"
        if count > MAX_FAULTS_SHOWN:
            found += f", of which the first {MAX_FAULTS_SHOWN}"
        raise UserError(
            shard_set.name,
            f"{found}:",
            "the bytes that were packed",
            "copy the named files from where the set came from, or pack it again",
            findings.faults[:MAX_FAULTS_SHOWN],
        )
    if options.sheet is not None:
        _draw(shard_set, options.sheet)
    console.print("all is as it was packed")


def _require_in_store(files: RemoteFiles) -> None:
    """Refuse a set that the cache has, and the store has not."""
    remedy = "see what deleted them, and pack the set again, to another place"
    if files.note:
        found, remedy = files.note, "see whether the store can be reached from here"
        raise UserError(str(files), found, "a store that answers", remedy)
    if faults := files.faults_of_store():
        found = f"{len(faults)} of its files are not there, or of another size:"
        raise UserError(str(files), found, "all files", remedy, faults[:MAX_FAULTS_SHOWN])


def _require_picture(sheet: Path) -> None:
    """Refuse now what could not be written after the whole set was read."""
    where = f"--sheet {sheet}"
    if sheet.suffix.lower() != ".png":
        raise UserError(where, "no name of a PNG", "a file whose name ends in .png", "rename it")
    if not sheet.parent.is_dir():
        found, remedy = f"no folder {sheet.parent}", "make it"
        raise UserError(where, found, "a file in a folder that exists", remedy)


def _draw(shard_set: ShardSet, sheet: Path) -> None:
    try:
        with writing(sheet):
            save_sheet(shard_set, sheet)
    except UserError:
        raise
    except (ValueError, RuntimeError) as error:  # packed unchecked, a sample may be no image
        raise UserError(
            f"--sheet {sheet}",
            f"a sample that cannot be drawn ({error})",
            "images",
            "see which with --decode, and pack the set again",
        ) from None
    console.print(f"sheet   {sheet}")


def _show(shard_set: ShardSet, findings: Findings, decoded: bool) -> None:
    manifest = shard_set.manifest
    total = sum(shard.bytes for shard in manifest.shards)
    packed = "decoded when packed" if manifest.recipe.checked else "never decoded: --no-check"
    checked = "each decoded" if decoded else packed
    console.print(
        f"images  {manifest.samples:,}, {checked}\n"
        f"shards  {len(manifest.shards)}, {total / 1e6:,.1f} MB,"
        f" {manifest.image_bytes / manifest.samples / 1e3:.1f} kB an image\n"
        f"recipe  {manifest.recipe.describe()}, seed {manifest.seed}"
    )
    for (width, height), count in findings.sizes.most_common(MAX_SIZES_SHOWN):
        console.print(f"size    {width}×{height}: {count:,} ({count / manifest.samples:.1%})")
    if (others := len(findings.sizes) - MAX_SIZES_SHOWN) > 0:
        console.print(f"        {others} other sizes; in all {manifest.sizes()}")
    if manifest.labels is not None:
        _show_labels(manifest.labels, manifest.samples)
    if isinstance(files := shard_set.files, RemoteFiles):
        console.print(f"fetched {files.fetched / 1e6:,.1f} MB; the shard cache had the rest")
    if findings.rejects:
        console.print(f"reject  {counted(findings.rejects)}: see rejects.csv")


def _show_labels(labels: Labels, samples: int) -> None:
    console.print(f"labels  {len(labels.names):,} {labels.kind}")
    for name, count in list(zip(labels.names, labels.counts, strict=True))[:MAX_LABELS_SHOWN]:
        console.print(f"        {name}: {count:,} ({count / samples:.1%})")
    if (others := len(labels.names) - MAX_LABELS_SHOWN) > 0:
        console.print(f"        {others:,} others")


def main() -> None:
    """Run the command line."""
    with plain_errors():
        app()


if __name__ == "__main__":
    main()
