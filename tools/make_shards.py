#!/usr/bin/env python3
"""Pack folders, archives and data sets of images into webdataset shards for dcgan-train."""

from __future__ import annotations

import math
import shlex
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import chain, pairwise
from operator import itemgetter
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

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

from dcgan.cli import SETTINGS, Command, VersionOption
from pipeline.errors import UserError, counted, plain, plain_errors, the_first
from pipeline.images.fit import CROP
from pipeline.images.size import ImageSize, base_of, size_text
from pipeline.machine import usable_cores
from pipeline.packing.estimate import SAMPLE, Estimate, estimate
from pipeline.packing.labelling import Labelling, label
from pipeline.packing.on_ray import LOCAL, MAX_TASKS, pack_on_ray
from pipeline.packing.pack import Packed, Packing, pack
from pipeline.packing.parts import Part, in_parts, parts_there
from pipeline.packing.plan import MAX_REJECTS, PER_SHARD
from pipeline.packing.selection import in_classes, in_split, with_attributes
from pipeline.packing.sources.base import ImageFiles, Member
from pipeline.packing.sources.open import DATA, may_be_pixels, open_sources
from pipeline.packing.sources.shard_set import require_fit
from pipeline.packing.upload import staging
from pipeline.remote.access import Access
from pipeline.remote.address import Address
from pipeline.remote.store import Store as RemoteStore
from pipeline.shards.labels import LabelTable, counts_of
from pipeline.shards.manifest import DEFAULT_SIZE, REJECTS, Recipe, make_recipe
from pipeline.shards.shard_set import is_url

app = typer.Typer(add_completion=False)
# Paths are printed: no markup in them, and no line breaks in a command to paste
console = Console(highlight=False, markup=False, soft_wrap=True)

Store = Literal["original", "jpeg", "raw"]


CHOICE, LABELLED, STORED = "Which images", "How they are labelled", "What is stored"
CHECKED, OUTPUT, SPREAD = "What is checked", "The output", "Several machines"


def _option(panel: str, text: str, *flag: str, **more: Any) -> Any:
    return typer.Option(*flag, help=text, rich_help_panel=panel, **more)


@app.command(
    cls=Command,
    context_settings=SETTINGS,
    epilog="For example: python tools/make_shards.py celeba/ --store raw --size 64"
    " --out shards-raw. Then: dcgan-train --shards shards-raw.",
)
def make_shards(
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="SOURCE",
            help="A folder of images, at any depth, or a zip or tar of them; a shard set;"
            " torchvision:NAME; a folder of LSUN's. Of several, each one's name stands before those"
            " of its images.",
        ),
    ],
    out: Annotated[
        str,
        _option(
            OUTPUT,
            "Folder to make the shard set in, or a URL, as in s3://bucket/faces; also gs://, az://"
            " and file://.",
            metavar="FOLDER|URL",
        ),
    ] = "shards",
    endpoint: Annotated[
        str | None,
        _option(
            OUTPUT,
            "Where the store of --out answers.",
            metavar="URL",
            show_default="the provider's own",
        ),
    ] = None,
    shard_cache: Annotated[
        Path | None,
        _option(
            OUTPUT,
            "Folder of the shard cache. A set for a URL is made in it until it is in the store, so"
            " there must be room for all of it.",
            metavar="DIR",
            show_default="in the user's cache folder",
        ),
    ] = None,
    seed: Annotated[
        int, _option(OUTPUT, "What the shuffle of all images is drawn from.", min=0)
    ] = 0,
    per_shard: Annotated[int, _option(OUTPUT, "Images in one shard.", min=1)] = PER_SHARD,
    overwrite: Annotated[
        bool,
        _option(OUTPUT, "Replace a complete set, once the new one is complete.", "--overwrite"),
    ] = False,
    workers: Annotated[
        int | None, _option(OUTPUT, "Processes that pack.", min=1, show_default="one a core")
    ] = None,
    part: Annotated[
        str | None,
        _option(
            SPREAD,
            "Pack one part of the set, 0/3, 1/3 or 2/3 for example: anywhere, in any order, and"
            " again if it was cut off.",
            metavar="K/N",
        ),
    ] = None,
    finish: Annotated[
        bool, _option(SPREAD, "Join the parts into one set, once all are packed.", "--finish")
    ] = False,
    ray: Annotated[
        str | None,
        _option(
            SPREAD,
            "Pack the parts as tasks of a Ray cluster, and join them; local starts one on this"
            " machine, with --workers tasks at once.",
            metavar="ADDRESS|local",
        ),
    ] = None,
    root: Annotated[
        Path, _option(CHOICE, "Folder that torchvision downloaded to, for torchvision:NAME.")
    ] = DATA,
    limit: Annotated[int | None, _option(CHOICE, "Take the first N images by name.", min=1)] = None,
    classes: Annotated[
        str | None, _option(CHOICE, "Take these sub-folders only, as in cats,dogs.", metavar="A,B")
    ] = None,
    split: Annotated[
        str | None, _option(CHOICE, "Take a part of CelebA: train, valid or test.")
    ] = None,
    where: Annotated[
        str | None,
        _option(
            CHOICE, "Take by CelebA's attributes, as in Smiling=1,Male=-1.", metavar="NAME=±1,…"
        ),
    ] = None,
    labels: Annotated[
        str | None,
        _option(
            LABELLED,
            "folders: each image's folder is its class, below what all share; a file: CSV or JSON"
            " of names and classes, or of names and 0/1 columns; celeba, or celeba:Smiling,Male:"
            " its attributes; or none.",
            metavar="folders|FILE|celeba[:A,B]|none",
            show_default="the source's own, if any",
        ),
    ] = None,
    store: Annotated[
        Store | None,
        _option(
            STORED,
            "The files' own bytes, small JPEGs, or pixels for the fastest path.",
            show_default="original; raw for a source of pixels",
        ),
    ] = None,
    size: Annotated[
        str | None,
        _option(
            STORED,
            "Side in pixels, or width × height as in 96x64, for jpeg and raw.",
            show_default=f"{DEFAULT_SIZE}, or a source's own",
        ),
    ] = None,
    crop: Annotated[
        str | None,
        _option(
            STORED,
            "Side of a middle square to cut out first (108 and 148 are common), or none; for jpeg,"
            " none also keeps the image whole.",
            show_default="none",
        ),
    ] = None,
    fit: Annotated[
        str | None,
        _option(
            STORED,
            "How the image comes to its size: crop, stretch, pad, pad:edge or pad:COLOUR.",
            show_default="crop for jpeg and raw",
        ),
    ] = None,
    quality: Annotated[
        int | None, _option(STORED, "JPEG's, 1 to 100, for --store jpeg.", show_default="95")
    ] = None,
    check: Annotated[bool, _option(CHECKED, "Decode every image once, strictly.")] = True,
    strict: Annotated[bool, _option(CHECKED, "End at the first bad image.", "--strict")] = False,
    max_rejects: Annotated[
        float, _option(CHECKED, "End if more than this share is bad; 0.01 is 1%.", min=0, max=1)
    ] = MAX_REJECTS,
    only_estimate: Annotated[
        bool,
        typer.Option(
            "--estimate",
            help=f"Show what each way to store would take, from {SAMPLE} images, and end.",
        ),
    ] = False,
    version: VersionOption = False,
) -> None:
    """Pack images into a shard set: checked, shuffled, ready for dcgan-train.

    The set depends on the source and the options alone, byte for byte, whatever the number of
    workers. Stopped at any moment, the same command goes on where it was.
    """
    access = Access(endpoint, shard_cache)
    place = _place(out, access, overwrite)
    chosen = _chosen_part(part, finish, ray, overwrite, workers)

    def recipe_for(images: ImageFiles | None) -> Recipe:
        return _recipe(images, store, size, crop, quality, fit, check)

    if store is not None or not any(map(may_be_pixels, sources)):
        recipe_for(None)  # what contradicts itself need not wait for the source
    folder = (place if isinstance(place, Path) else staging(place, access)).absolute()
    scratch = next(above for above in (folder, *folder.parents) if above.is_dir())
    with console.status("reading the source"):
        images = open_sources(sources, scratch, root)
    recipe = recipe_for(images)
    members = _choose(images, classes, split, where)[:limit]
    for path, some in images.parts(members):
        console.print(f"source  {plain(str(path))}: {len(some):,} images")
    if left_out := images.listing.left_out:
        console.print(f"others  not packed: {counted(left_out)}")
    if links := counted(images.listing.links):
        console.print(f"links   {links}")
    labelling = label(images, members, labels)
    if labelling is not None:
        _show_labels(labelling)
    if only_estimate:
        _show(estimate(images, members, recipe))
        return
    cores = workers or usable_cores()
    packing = Packing(recipe, seed, per_shard, strict, max_rejects, overwrite, cores)
    task = _Task(images, members, place, packing, labelling and labelling.table, access)
    if chosen is not None:
        _pack_part(task, chosen)
    elif ray is not None or finish:
        _finish(task, ray, workers)
    else:
        _pack(task)


class _Task(NamedTuple):
    """A set to make, as `in_parts` takes it."""

    images: ImageFiles
    members: list[Member]
    out: Path | Address
    packing: Packing
    labels: LabelTable | None
    access: Access


def _chosen_part(
    part: str | None, finish: bool, ray: str | None, overwrite: bool, workers: int | None
) -> Part | None:
    """The one part that is packed, if it is one; refuses what contradicts itself."""
    given = {
        "--part": part is not None,
        "--finish": finish,
        "--ray": ray is not None,
        "--overwrite": overwrite,
        "--workers": ray not in {None, LOCAL} and workers is not None,
    }
    flags = [flag for flag, there in given.items() if there]
    if len(flags) > 1:
        remedy = "leave one of them out; a set in parts is made in a new place"
        raise UserError(flags[0], " and ".join(flags[1:]), f"{flags[0]} without the other", remedy)
    return None if part is None else Part.parse(part)


def _place(out: str, access: Access, overwrite: bool) -> Path | Address:
    """Where the set is to be made; refuses what can be refused without a look at it."""
    if is_url(out):
        address = Address.parse(out, access.endpoint, "--out")
        RemoteStore(address, "--out").require_writable()
        if overwrite:
            raise UserError(
                "--overwrite",
                f"--out {address}",
                "a folder: a set in a store may be read while it is replaced",
                "choose another --out",
            )
        return address
    for flag, value in (("--endpoint", access.endpoint), ("--shard-cache", access.cache)):
        if value is not None:
            wanted, remedy = "a URL, as in --out s3://bucket/faces", f"leave {flag} out"
            raise UserError(f"{flag} {value}", f"--out {out}, a folder", wanted, remedy)
    return Path(out)


def _show_labels(labelling: Labelling) -> None:
    kind, names, values = labelling.table
    # The fewest first: a class of one image may be a misspelt one
    counts = sorted(zip(counts_of(values, len(names)), names, strict=True), key=itemgetter(0))
    shown = [f"{count:,} {name}" for count, name in counts]
    console.print(f"labels  {len(names):,} {kind}: {the_first(shown)}")
    if labelling.left_out:
        console.print(f"        without an image, and left out: {the_first(labelling.left_out)}")


def _recipe(
    images: ImageFiles | None,
    store: Store | None,
    size: ImageSize | str | None,
    crop: str | None,
    quality: int | None,
    fit: str | None,
    check: bool,
) -> Recipe:
    """The recipe for some images: what was not asked for is as they are already."""
    pixels, shards = (images.pixels, images.shards) if images else (None, None)
    if store is None:
        store = "original" if pixels is None else "raw"
    if size is None and store != "original":
        size = pixels
    if shards is None:
        return make_recipe(store, size, crop, quality, fit, checked=check)
    made = shards.manifest.recipe
    if crop is None and made.reader_crop is not None:
        crop = str(made.reader_crop)
    if fit is None and made.fit != CROP:
        fit = made.fit
    recipe = make_recipe(store, size, crop, quality, fit, checked=check)
    require_fit(shards, recipe)
    return recipe


def _choose(
    images: ImageFiles, classes: str | None, split: str | None, where: str | None
) -> list[Member]:
    members = images.members()
    if classes is not None:
        wanted = [name.strip() for name in classes.split(",")]
        members = in_classes(members, wanted, images.path)
    # Each source has lists of its own
    for value, choose in ((split, in_split), (where, with_attributes)):
        if value is not None:
            chosen = [choose(part, path, value) for path, part in images.parts(members) if part]
            members = sorted(chain.from_iterable(chosen))
    return members


def _pack(task: _Task) -> None:
    started = time.perf_counter()
    images, members, out, packing, labels, access = task
    with _bars() as (show, show_sent):
        packed = pack(images, members, out, packing, show, labels, access, show_sent)
    _summarise(packed, task, started)


@contextmanager
def _bars() -> Iterator[tuple[Callable[[int, int], None], Callable[[int, int], None]]]:
    """What shows the images that are packed, and the shards that are sent; Ctrl-C ends it."""
    started = time.perf_counter()
    with _progress() as bar:
        task = bar.add_task("packing", total=None, rate="")
        sending = bar.add_task("shards sent", total=None, rate="", visible=False)

        def show_sent(sent: int, total: int) -> None:
            bar.update(sending, completed=sent, total=total, visible=True)

        def show(done: int, total: int) -> None:
            rate = done / (time.perf_counter() - started)
            bar.update(task, completed=done, total=total, rate=f"{rate:,.0f} img/s")

        try:
            yield show, show_sent
        except KeyboardInterrupt:
            console.print("stopped; the same command goes on with the shards that are finished")
            raise typer.Exit(130) from None


def _pack_part(task: _Task, part: Part) -> None:
    parted, shards = in_parts(*task, part.parts)
    with _bars() as (show, show_sent):
        done = parted.pack(part.number, shards, show, show_sent)
    where = f"part    {part} in {task.out}: {done.shards} of {len(shards)} shards"
    if done.resumed == done.shards:
        console.print(f"{where}, all there already")
    else:
        resumed = f", {done.resumed} of them from an earlier run" if done.resumed else ""
        console.print(f"{where}, {done.written:,} images{resumed}")
    console.print(f"next    the other parts; and when all are there: {_command()} --finish")


def _finish(task: _Task, ray: str | None, workers: int | None) -> None:
    """Join the parts that there are, or that a cluster packs first."""
    started, shards = time.perf_counter(), math.ceil(len(task.members) / task.packing.per_shard)
    parts = min(shards, MAX_TASKS) if ray else parts_there(task.out, task.access)
    parted, dealt = in_parts(*task, parts)
    if ray:
        with _bars() as (show, _):
            pack_on_ray(ray, parted, dealt, workers, show)
    _summarise(parted.finish(task.members, _command()), task, started)


def _command() -> str:
    """This command line, without what says which part it packs."""
    words = ["python"] if sys.argv[0].endswith(".py") else []
    for before, word in pairwise(["", *sys.argv]):
        if not (word.startswith(("--part", "--finish", "--ray")) or before in {"--part", "--ray"}):
            words.append(word)
    return shlex.join(words)


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


def _summarise(packed: Packed, task: _Task, started: float) -> None:
    manifest, out, access = packed.manifest, task.out, task.access
    seconds = time.perf_counter() - started
    kept = f"packed  {manifest.samples:,} images of {manifest.sizes()}"
    if manifest.recipe.store == "original":
        untouched = manifest.samples - packed.converted
        kept += f": {untouched:,} untouched, {packed.converted:,} converted to JPEG"
    console.print(kept)
    if packed.rejected:
        console.print(f"reject  {counted(packed.rejected)}: see {out}/{REJECTS}")
    if packed.copies is None:
        console.print("copies  not counted: an earlier version packed some of the shards")
    elif packed.copies.number:
        number, first, original = packed.copies
        copies = "images are copies of others" if number > 1 else "image is a copy of another"
        console.print(f"copies  {number:,} {copies}: {plain(first)} of {plain(original)}")
    total = sum(shard.bytes for shard in manifest.shards)
    resumed = f", {packed.resumed} of them from an earlier run" if packed.resumed else ""
    console.print(f"shards  {len(manifest.shards)} in {out}, {total / 1e6:,.1f} MB{resumed}")
    rate = f", {packed.written / seconds:,.0f} img/s" if packed.written else ""
    console.print(f"time    {seconds:.1f} s{rate}")
    words = ["dcgan-train", "--shards", str(out)]
    words += ["--endpoint", access.endpoint] if access.endpoint else []
    words += ["--shard-cache", str(access.cache)] if access.cache else []
    size = manifest.recipe.size or DEFAULT_SIZE
    words += ["--image-size", size_text(size)] if size != DEFAULT_SIZE else []
    words += ["--conditional"] if manifest.labels else []
    try:
        base_of(size)
    except UserError as error:
        console.print(f"note    dcgan-train does not train at {size_text(size)}: {error.remedy}")
    else:
        console.print(f"next    {shlex.join(words)}")


def _show(rows: list[Estimate]) -> None:
    table = [("stored as", "per image", "whole set", "decode, one core")]
    for row in rows:
        each, whole = row.bytes_per_image / 1e3, row.total_bytes / 1e6
        rate = f"{row.decode_rate:,.0f} img/s"
        table.append((row.options, f"{each:,.1f} kB", f"{whole:,.0f} MB", rate))
    width, *widths = (max(map(len, column)) for column in zip(*table, strict=True))
    for options, *numbers in table:
        right = (text.rjust(wide) for text, wide in zip(numbers, widths, strict=True))
        console.print("  ".join([options.ljust(width), *right]))


def main() -> None:
    """Run the command line."""
    with plain_errors():
        app()


if __name__ == "__main__":
    main()
