"""`dcgan-profile store`: what it costs that a set is in a store and not in a folder.

In each round the set is opened three times, as by a run that starts: in a folder; in the store,
with an empty shard cache; and once more with that cache, which is full by now. Each time an epoch
is read, on a clock that starts before the set is opened, and then later ones.
"""

from __future__ import annotations

import math
import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeAlias

import numpy as np
import torch

from dcgan.options import MeasuringStore
from dcgan.profiling.bench import TEMPORARY, Bench
from dcgan.profiling.contenders import ours
from dcgan.profiling.measuring import (
    CpuClock,
    Round,
    Spread,
    figures,
    repeat,
    spreads,
    synchronise,
    take_round,
    take_turns,
)
from dcgan.profiling.report import Bars, cells, make_table, span, times
from pipeline.errors import UserError
from pipeline.files import write_whole
from pipeline.remote.access import Access
from pipeline.remote.files import RemoteFiles
from pipeline.remote.open import open_set
from pipeline.shards.manifest import LABELS, MANIFEST
from pipeline.shards.order import steps_per_epoch
from pipeline.shards.shard_set import ShardSet, is_url

Rounds: TypeAlias = Mapping[str, Sequence[Round]]

CPU, RATE = "cpu_us_per_image", "img_per_s"

FOLDER, EMPTY, FULL = "a folder", "a store, empty shard cache", "a store, full shard cache"


@dataclass(frozen=True)
class Turn:
    """What a start of a run came to."""

    first_batch_s: float
    """Seconds from before the set was opened."""
    first: Round
    """The first epoch, and the opening."""
    later: Round
    fetched_bytes: int
    """Of the set's files but for the manifest, in the first epoch."""
    fetched_later_bytes: int


def profile(options: MeasuringStore) -> None:
    """Measure a set in its store and in a folder, in turn."""
    if not is_url(options.shards):
        raise UserError(
            f"--shards {options.shards}",
            "no URL",
            "a set in a store, as in s3://bucket/set",
            "name one; dcgan-profile loader measures a set in a folder",
        )
    bench = Bench(options)
    with TemporaryDirectory(prefix=TEMPORARY) as folder:
        local, cache = Path(folder, "set"), Path(folder, "cache")
        copy_set(bench.whole, bench.shards, local)
        access = replace(options.access, cache=cache)

        def from_an_empty_cache() -> Turn:
            shutil.rmtree(cache, ignore_errors=True)
            return start(bench, options.shards, access)

        turns: dict[str, Callable[[], Turn]] = {
            FOLDER: partial(start, bench, str(local), Access()),
            EMPTY: from_an_empty_cache,
            FULL: partial(start, bench, options.shards, access),
        }
        with closing(ours("", bench.shards, bench.conditions)) as loader:
            next(loader.batches)  # the first batch of a process waits for libraries
        taken = take_turns(turns, options.rounds)
    _publish(bench, taken)


def start(bench: Bench, name: str, access: Access) -> Turn:
    """Open a set, and read an epoch and then later ones."""
    device, size = bench.device, bench.options.batch_size
    steps = steps_per_epoch(len(bench.shards), size)
    clock = CpuClock()
    clock.wait_until_quiet()
    used, began = clock.read(), time.perf_counter()
    shards = replace(open_set(name, access), manifest=bench.shards.manifest)
    loader = ours(name, shards, replace(bench.conditions, dtype=torch.uint8))
    with closing(loader):
        take = partial(next, loader.batches)
        take()
        synchronise(device)
        first_batch = time.perf_counter() - began
        repeat(take, steps - 1, device)
        seconds = time.perf_counter() - began
        clock.wait_until_quiet()
        made = (steps + loader.ahead) * size
        first = Round(steps, steps * size / seconds, 1e6 * (clock.read() - used) / made)
        fetched = _fetched(shards)
        epochs = math.ceil(max(1, bench.options.seconds / seconds))
        later = take_round(loader, epochs * steps, clock, device)
    return Turn(first_batch, first, later, fetched, _fetched(shards) - fetched)


def _fetched(shards: ShardSet) -> int:
    return shards.files.fetched if isinstance(shards.files, RemoteFiles) else 0


def copy_set(whole: ShardSet, shards: ShardSet, folder: Path) -> None:
    """Make a folder that opens as a set, with links to its files where that is possible.

    Args:
        whole: the set.
        shards: the part of it that will be read; the other tars are empty files of their size.
        folder: a new one.

    Raises:
        UserError: a file cannot be had, or there is no room.
    """
    folder.mkdir()
    names = [f"{shard.name}.idx" for shard in whole.manifest.shards]
    names += [f"{shard.name}.tar" for shard in shards.manifest.shards]
    names += [] if whole.manifest.labels is None else [LABELS]
    try:
        for name in names:
            _link(whole.path(name), folder / name)
        for shard in whole.manifest.shards[len(shards.manifest.shards) :]:
            with (folder / f"{shard.name}.tar").open("wb") as file:
                file.truncate(shard.bytes)
        write_whole(folder / MANIFEST, whole.manifest.model_dump_json().encode())
    except OSError as error:
        raise UserError(
            folder,
            error.strerror or str(error),
            "room for a copy of the set",
            "use fewer --images, or let TMPDIR name a folder on a larger disk",
        ) from error


def _link(path: Path, link: Path) -> None:
    try:
        os.link(path, link)
    except OSError:  # it is on another disk, or on one without links
        shutil.copyfile(path, link)


def _publish(bench: Bench, taken: Mapping[str, Sequence[Turn]]) -> None:
    first = {name: [turn.first for turn in turns] for name, turns in taken.items()}
    later = {name: [turn.later for turn in turns] for name, turns in taken.items()}
    waits = spreads(figures(taken, "first_batch_s"))
    fetched, fetched_later = (
        {name: f"{np.median(each) / 1e6:,.1f} MB" for name, each in figures(taken, field).items()}
        for field in ("fetched_bytes", "fetched_later_bytes")
    )
    first_rows, later_rows = (
        [{"the set in": name} | _cells(rounds, name) for name in taken] for rounds in (first, later)
    )
    for row, (name, wait) in zip(first_rows, waits.items(), strict=True):
        row["first batch"] = f"{wait.median:.2f} s ({span(wait, '.2f')})"
        row["fetched"] = fetched[name]
    for row, size in zip(later_rows, fetched_later.values(), strict=True):
        row["fetched"] = size
    bench.publish(
        "store",
        [
            make_table(first_rows, "From the opening to the end of the first epoch"),
            make_table(later_rows, "Later epochs"),
        ],
        [],
        [
            Bars("CPU time of the first epoch", "µs an image", spreads(figures(first, CPU))),
            Bars("CPU time of later epochs", "µs an image", spreads(figures(later, CPU))),
            Bars("First batch", "seconds after the start", waits),
        ],
        {"rounds": taken},
        rounds=f"{bench.options.rounds} each, in turn, of two epochs or more, the later ones of"
        f" {bench.options.seconds:g} s at least",
    )


def _cells(rounds: Rounds, name: str) -> dict[str, str]:
    cpu = Spread.of(figures(rounds, CPU)[name])
    return {
        **cells("CPU µs/image", cpu, ",.1f"),
        f"× {FOLDER}, CPU": times(_ratio(rounds, name, CPU)),
        "img/s": f"{np.median(figures(rounds, RATE)[name]):,.0f}",
        f"× {FOLDER}, rate": times(_ratio(rounds, name, RATE)),
    }


def _ratio(rounds: Rounds, name: str, field: str) -> Spread:
    """A figure, times the folder's in the same round."""
    found = figures(rounds, field)
    return Spread.of(found[name] / found[FOLDER])
