"""The parts of a set as tasks of a Ray cluster, which does those of a node that dies on another."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from pipeline.errors import UserError, first_line
from pipeline.machine import usable_cores
from pipeline.packing.outdir import HeldError
from pipeline.packing.parts import PartDone, PartedSet
from pipeline.packing.plan import Deal
from pipeline.packing.shard import Entry
from pipeline.remote.store import UnreachableError

LOCAL = "local"
"""The address of a cluster that is this machine, and ends with the command."""

MAX_TASKS = 256
"""Tasks of a set, if it has as many shards. Their number is a function of the set alone, so that
another cluster may go on with it."""

RETRIES = 10
"""Of a task: nodes that die under it, or times that a store gives no answer for a minute."""

STORE_BYTES = 256 << 20
"""Of a local cluster's memory for arguments: more of them go to the disk."""

PATIENCE = 60.0
"""Seconds for a process of a dead node to end, which may outlive it by a moment."""


def pack_on_ray(
    address: str,
    parted: PartedSet,
    shards: Deal,
    workers: int | None,
    progress: Callable[[int, int], None],
) -> None:
    """Pack all parts of a set.

    Args:
        address: of a cluster as `ray.init` takes it, or "local".
        parted: the set.
        shards: all of it.
        workers: of a local cluster, tasks at once; None for one a core.
        progress: called with the images of the parts that are done, and all.

    Raises:
        UserError: there is no such cluster, or its nodes cannot do the tasks; or from a part.
    """
    with _cluster(address, workers) as ray:
        common = ray.put(replace(parted, packing=replace(parted.packing, workers=0)))
        again = {"max_retries": RETRIES, "retry_exceptions": [UnreachableError]}
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


def _pack(
    parted: PartedSet, number: int, shards: Mapping[int, list[Entry]], folder: Path
) -> PartDone:
    """What a task does, on some node."""
    with suppress(OSError):  # relative paths are the driver's, if this node has its folder
        os.chdir(folder)
    end = time.monotonic() + PATIENCE
    while True:
        try:
            return parted.pack(number, shards)
        except HeldError:
            if time.monotonic() > end:
                raise
            time.sleep(1)


@contextmanager
def _cluster(address: str, workers: int | None) -> Iterator[Any]:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is sent to Ray's makers
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    with ExitStack() as stack:
        if address == LOCAL:
            # Ray listens on 127.0.0.1 alone, as it does on Windows; it looks when it is imported
            os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
            folder = TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True)
            options["_temp_dir"] = stack.enter_context(folder)
            options["num_cpus"] = workers or usable_cores()
            options |= {"object_store_memory": STORE_BYTES, "include_dashboard": False}
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
            raise cause if isinstance(cause, UserError) else _trouble(address, cause) from None


def _trouble(address: str, error: BaseException) -> UserError:
    return UserError(
        f"--ray {address}",
        f"{type(error).__name__}: {first_line(error)}",
        "a cluster that runs, whose nodes have this version of dcgan-shards, and the same paths",
        "see its state with: ray status. The same command goes on with the parts that are done",
    )
