"""The parts of a set as tasks of a Ray cluster, which does those of a node that dies on another."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from pipeline.errors import UserError, first_line
from pipeline.machine import usable_cores
from pipeline.packing.outdir import HeldError
from pipeline.packing.parts import PartDone, PartedSet
from pipeline.packing.plan import Deal, Entry
from pipeline.remote.refusals import UnreachableError

LOCAL = "local"
"""The address of a cluster that is this machine and ends with the command."""

MAX_TASKS = 256
"""Of a set with so many shards: a function of the set, so that any cluster may go on with it."""

RETRIES = 10
"""Of a task, whose node dies, whose store gives no answer, or whose part somebody else packs."""

PAUSE = 10.0
"""Seconds before a part is tried again that a process still packs: it may outlive its node so."""


def pack_on_ray(
    address: str,
    parted: PartedSet,
    shards: Deal,
    workers: int | None,
    progress: Callable[[int, int], None],
) -> None:
    """Pack all parts of a set.

    Args:
        address: as `ray.init` takes it.
        parted: the set.
        shards: all of it.
        workers: tasks at once on a local cluster; None for one a core.
        progress: called with the images of the parts that are done, and of all.

    Raises:
        UserError: there is no such cluster, or its nodes cannot do the tasks; or from a part.
    """
    with _cluster(address, workers) as ray:
        common = ray.put(replace(parted, packing=replace(parted.packing, workers=0)))
        again = {"max_retries": RETRIES, "retry_exceptions": [HeldError, UnreachableError]}
        task, left, done = ray.remote(num_cpus=1, **again)(_pack), {}, 0
        for number in range(parted.parts):
            mine = {each: shards[each] for each in range(number, len(shards), parted.parts)}
            left[task.remote(common, number, mine, Path.cwd())] = sum(map(len, mine.values()))
        progress(done, parted.images)
        while left:
            (ended,), _ = ray.wait([*left])
            ray.get(ended)
            done += left.pop(ended)
            progress(done, parted.images)


def _pack(parted: PartedSet, number: int, shards: dict[int, list[Entry]], folder: Path) -> PartDone:
    """What a task does, on some node."""
    with suppress(OSError):  # relative paths are the driver's, if this node has its folder
        os.chdir(folder)
    try:
        return parted.pack(number, shards)
    except HeldError:
        time.sleep(PAUSE)
        raise


@contextmanager
def _cluster(address: str, workers: int | None) -> Iterator[Any]:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is sent to Ray's makers
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    with ExitStack() as stack:
        if address == LOCAL:
            # Ray listens on 127.0.0.1 alone, as it does on Windows; it looks when it is imported
            os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
            folder = TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True)
            options |= {"_temp_dir": stack.enter_context(folder), "include_dashboard": False}
            options["num_cpus"] = workers or usable_cores()
        try:
            import ray
        except ImportError:
            remedy = "pip install 'dcgan-shards[ray]'"
            raise UserError(f"--ray {address}", "no package ray", "Ray, an extra", remedy) from None
        stack.callback(ray.shutdown)
        try:
            ray.init(address, **options)
            yield ray
        except (ray.exceptions.RayError, ConnectionError) as error:
            cause = getattr(error, "cause", error)
            if isinstance(cause, UserError):
                raise cause from None
            raise UserError(
                f"--ray {address}",
                f"{type(cause).__name__}: {first_line(cause)}",
                "a cluster that runs, and whose nodes have the same packages and paths",
                "see its state with: ray status. The same command goes on with what is done",
            ) from error
