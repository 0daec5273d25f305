"""Several ranks on one machine: functions of this package, or `dcgan-train`, each in a process."""

import importlib
import os
import pickle
import socket
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import IO, Any

from dcgan.distributed import Ranks
from tests.running import ROOT, environment

LIMIT = 120
"""Seconds after which processes count as hanging."""


def start(
    count: int, *words: object, output: IO[str] | None = None, **more: str
) -> list[subprocess.Popen[str]]:
    """Start a Python command once for each rank, as torchrun does; its words go to `output`."""
    with closing(socket.socket()) as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    meeting |= dict.fromkeys(("WORLD_SIZE", "LOCAL_WORLD_SIZE"), str(count))
    return [
        subprocess.Popen(
            [sys.executable, *map(str, words)],
            env=environment() | meeting | more | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            cwd=ROOT,
            stdout=output or subprocess.PIPE,
            stderr=output or subprocess.PIPE,
            text=True,
        )
        for rank in range(count)
    ]


def end(processes: list[subprocess.Popen[str]]) -> list[tuple[int, str, str]]:
    """Wait for their ends: status, stdout and stderr of each."""
    try:
        told = [process.communicate(timeout=LIMIT) for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [(process.wait(), *each) for process, each in zip(processes, told, strict=True)]


def in_ranks(
    function: Callable[[Ranks], Any], folder: Path, count: int = 2, dying: int | None = None
) -> list[Any]:
    """What a function of a test module gives on each rank; the one that is to die calls `leave`."""
    words = ("-m", "tests.ranks", function.__module__, function.__name__, folder)
    ended = end(start(count, *words))
    found = []
    said = "".join(f"rank {rank}: {each}\n" for rank, each in enumerate(ended))
    for rank, (status, _, _) in enumerate(ended):
        assert (status != 0) == (rank == dying), said.replace("\\n", "\n")
        found.append(pickle.loads((folder / f"{rank}.pickle").read_bytes()))
    return found


def leave(folder: Path, ranks: Ranks, given: Any) -> None:
    (folder / f"{ranks.rank}.pickle").write_bytes(pickle.dumps(given))


def main() -> None:
    """Be one rank: join the others, call the function, leave what it gives."""
    import torch

    torch.set_num_threads(1)
    module, name, folder = sys.argv[1:]
    with Ranks.joined() as ranks:
        leave(Path(folder), ranks, getattr(importlib.import_module(module), name)(ranks))
    if not ranks.complete:  # the others are gone, and their threads may be waited for
        os._exit(0)


if __name__ == "__main__":
    main()
