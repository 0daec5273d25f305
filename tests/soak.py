"""A long run watched from outside: `python -m tests.soak`, or `make soak`.

Twice so many small steps through `dcgan-train`, from the cache and from the stream: pictures,
checkpoints, nets of each epoch and events included. What should stay flat is held against a limit
each, and the command ends with 1 where one is broken.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import typer
from rich.console import Console
from rich.table import Table

from dcgan.rundir.folder import RunFolder
from pipeline.files import PARTIAL
from tests.pictures import numbered_pictures, pack_pictures
from tests.running import environment, flags, read_losses, read_stats
from tests.soak_limits import KEEP, LOG_EVERY, Sample, Soaked, judged

STEPS = 20_000
IMAGES = 403
"""An epoch is 100 steps of a batch of 4."""

SMALL: dict[str, Any] = {
    "batch_size": 4,
    "image_size": 32,
    "nz": 8,
    "ngf": 4,
    "ndf": 4,
    "lr": 1e-5,
    "device": "cpu",
    "workers": 1,
    "precision": "fp32",
    "log_every": LOG_EVERY,
    "sample_every": 500,
    "checkpoint_every": 0.1,
    "keep": KEEP,
}
"""A step of milliseconds, a checkpoint every six seconds, and nets that find no time to diverge."""


def soak(folder: Path, steps: int, cache: str) -> Soaked:
    """Train so many steps in a process of its own, and watch it.

    Args:
        folder: for the set and the run.
        steps: of batches of 4.
        cache: as `--cache`.

    Raises:
        RuntimeError: the run did not end well.
    """
    shards = folder / "set"
    if not shards.exists():
        pack_pictures(folder, numbered_pictures(IMAGES), per_shard=64)
    run = RunFolder(folder / f"run-{cache}")
    words = flags(shards=shards, run=run.path, max_steps=steps, epochs=steps, cache=cache, **SMALL)
    began = time.monotonic()
    told = folder / f"told-{cache}"
    with told.open("w") as said:
        process = subprocess.Popen(
            [sys.executable, "-W", "error", "-m", "dcgan.train", *words],
            env=environment(),
            stdout=said,
            stderr=subprocess.STDOUT,
        )
        try:
            samples = list(_watch(process, run))
        finally:
            process.kill()  # it has ended, unless we were interrupted
            status = process.wait()
    if status != 0:
        raise RuntimeError(f"status {status}: {told.read_text()[-2000:]}")
    files = [path for path in run.path.rglob("*") if path.is_file()]
    return Soaked(
        steps,
        time.monotonic() - began,
        samples,
        read_stats(run),
        read_losses(run),
        sum(path.stat().st_size for path in files),
        len(list(run.checkpoints.glob("*.pt"))),
        sum(path.name.endswith(PARTIAL) for path in files),
    )


def _watch(process: subprocess.Popen[bytes], run: RunFolder) -> Iterator[Sample]:
    seen = psutil.Process(process.pid)
    while process.poll() is None:
        time.sleep(0.1)
        try:
            with seen.oneshot():
                resident, files = seen.memory_info().rss, seen.num_fds()
                threads, cpu = seen.num_threads(), seen.cpu_times()
        except psutil.Error:  # it has just ended, and nobody has asked how
            continue
        yield Sample(_last_step(run.stats), resident, files, threads, cpu.user + cpu.system)


def _last_step(stats: Path) -> int:
    """From the file's size: all its lines would be read again each time."""
    try:
        with stats.open("rb") as file:
            file.seek(-min(stats.stat().st_size, 1000), 2)
            lines = file.read().decode().splitlines()
        return int(lines[-1].partition('"step":')[2].partition(",")[0])
    except (OSError, IndexError, ValueError):  # not begun, or a line is being written
        return 0


def show(name: str, soaked: Soaked) -> bool:
    """Print a table.

    Returns:
        Whether every limit holds.
    """
    lines = list(judged(soaked))
    title = f"{soaked.steps:,} steps {name}, {soaked.seconds / 60:.1f} minutes"
    table = Table("", "found", "limit", "", title=title)
    for line in lines:
        table.add_row(line.what, line.found, line.limit, "ok" if line.holds else "BROKEN")
    Console(width=100).print(table)
    return all(line.holds for line in lines)


def main(steps: int = STEPS) -> None:
    """Soak from the cache, then from the stream."""
    with tempfile.TemporaryDirectory() as folder:
        kinds = {"host": "from the cache", "off": "from the stream"}
        held = [show(name, soak(Path(folder), steps, cache)) for cache, name in kinds.items()]
    raise typer.Exit(0 if all(held) else 1)


if __name__ == "__main__":
    typer.run(main)
