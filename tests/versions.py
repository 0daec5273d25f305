"""Versions of the code: a commit's worktree, commands run with it, and what they leave compared."""

import csv
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import torch

from tests.running import ROOT, environment, files_below

LIMIT = 180
"""Seconds after which a command counts as hanging."""

FILES_LEFT_OUT = (".lock", "env.json", "log.txt", "tensorboard/*")
ENTRIES_LEFT_OUT = frozenset(
    {
        *("step_ms", "img_per_s", "data_wait_pct", "seconds", "spent"),  # times
        *("bytes", "sha256"),  # in the json of a checkpoint, which holds times
        "options",  # in a checkpoint: they stand in config.json
        "message",  # of an alarm
    }
)


@contextmanager
def checkout(commit: str) -> Iterator[Path]:
    """A git worktree of a commit, for as long as it is needed."""
    with tempfile.TemporaryDirectory(prefix="across-code-") as folder:
        code = Path(folder) / "code"
        git = ["git", "-C", str(ROOT), "worktree"]
        subprocess.run([*git, "add", "--quiet", "--detach", str(code), commit], check=True)
        try:
            yield code
        finally:
            subprocess.run([*git, "remove", "--force", str(code)], check=True)


class CommandError(Exception):
    """A command did not end as it should."""


@dataclass(frozen=True)
class Tree:
    """A version of the code, and the folder in which its commands run."""

    code: Path
    folder: Path

    def run(self, *words: object, status: int = 0, stop: bool = False) -> str:
        """Run a module or a script of `tools`, to its end or until its first status line.

        Returns:
            What it printed.

        Raises:
            CommandError: it ends with another status.
        """
        first, *more = map(str, words)
        script = [str(self.code / first)] if first.startswith("tools/") else ["-m", first]
        homes = {name: str(self.folder) for name in ("TMPDIR", "XDG_CACHE_HOME")}
        own = {"PYTHONPATH": str(self.code), "CUDA_VISIBLE_DEVICES": ""}
        with subprocess.Popen(
            [sys.executable, *script, *more],
            cwd=self.folder,
            env=environment() | homes | own,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        ) as process:
            assert process.stdout is not None
            limit = threading.Timer(LIMIT, process.kill)
            limit.start()
            if stop and any("Loss_D" in line for line in process.stdout):
                process.terminate()
            said = process.stdout.read()
            process.wait()
            limit.cancel()
        if process.returncode != (128 + signal.SIGTERM if stop else status):
            command = " ".join(map(str, words))
            told = f"{self.folder.name}: {command}\nstatus {process.returncode}\n{said[-2000:]}"
            raise CommandError(told)
        return said


def differences(one: Path, other: Path, *patterns: str) -> tuple[int, dict[str, str]]:
    """Compare two folders.

    Returns:
        How many files were compared; and what differs, under its name (`netG.pt#main.0.weight`).
    """
    names = [
        name
        for name in sorted(files_below(one) | files_below(other))
        if any(fnmatch(name, pattern) for pattern in patterns)
        and not any(fnmatch(name, pattern) for pattern in FILES_LEFT_OUT)
    ]
    found: dict[str, str] = {}
    for name in names:
        before, here = one / name, other / name
        if not (before.exists() and here.exists()):
            found[name] = "only before" if before.exists() else "only here"
        elif before.read_bytes() != here.read_bytes():
            found |= {f"{name}{entry}": told for entry, told in _unlike(before, here)}
    return len(names), found


def _unlike(before: Path, here: Path) -> Iterator[tuple[str, str]]:
    one, other = _entries(before), _entries(here)
    if one is None or other is None:
        old, new = before.read_bytes(), here.read_bytes()
        begun = len(os.path.commonprefix([old, new]))  # noqa: RUF071  # they are no paths
        yield "", f"from byte {begun:,} on; {len(old):,} bytes before, {len(new):,} here"
        return
    for entry in one | other:
        if entry not in other:
            yield f"#{entry}", "only before"
        elif entry not in one and here.name != "config.json":  # which may have new options
            yield f"#{entry}", "only here"
        elif entry in one and not _same(one[entry], other[entry]):
            yield f"#{entry}", _apart(one[entry], other[entry])


def _entries(path: Path) -> dict[str, Any] | None:
    """What a file holds, by name; None if all its bytes count."""
    if path.suffix == ".pt":
        return dict(_leaves(torch.load(path, map_location="cpu", weights_only=True)))
    if path.suffix == ".jsonl":
        lines = path.read_text().splitlines()
        return dict(_leaves({str(k): json.loads(line) for k, line in enumerate(lines, 1)}))
    if path.name == "rejects.csv":  # but for the reasons
        with path.open(newline="") as file:
            return {row["source"]: row["bytes"] for row in csv.DictReader(file)}
    if path.name == "config.json" or path.parent.name == "checkpoints":
        return dict(_leaves(json.loads(path.read_bytes())))
    return None


def _leaves(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    if not isinstance(value, dict):
        yield name, value
        return
    for key, part in value.items():
        if key not in ENTRIES_LEFT_OUT:
            yield from _leaves(part, f"{name}/{key}" if name else str(key))


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        alike = (one.dtype, one.shape) == (other.dtype, other.shape)
        # As bytes: a NaN is equal to itself, and 0 is not -0
        bits = [each.flatten().view(torch.uint8) for each in (one, other)]
        return alike and bits[0].equal(bits[1])
    return type(one) is type(other) and repr(one) == repr(other)


def _apart(one: Any, other: Any) -> str:
    tensors = [each for each in (one, other) if isinstance(each, torch.Tensor)]
    if len(tensors) < 2:
        return f"{one!r:.60} before, {other!r:.60} here"
    shapes = [f"{str(each.dtype).removeprefix('torch.')} {tuple(each.shape)}" for each in tensors]
    if shapes[0] != shapes[1]:
        return f"{shapes[0]} before, {shapes[1]} here"
    return f"{shapes[0]}, up to {(one.double() - other.double()).abs().max():.3g} apart"
