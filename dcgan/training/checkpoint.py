"""Checkpoints: all that it takes to resume a run, in a file that is whole or does not count.

`checkpoints/<nimg>.pt` holds a `State` (dcgan/training/state.py); `<nimg>.json`, written after it,
its size and sha256. Without a json that agrees, a checkpoint does not count. The sha256 tells that
a file is as it was written, not who wrote it: `State.read` checks what is in it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from dcgan.nets.weights import load_tensors
from pipeline.errors import UserError, first_line
from pipeline.files import PARTIAL, file_digest, replacing, write_whole

MAX_SEAL_BYTES = 65_536
"""A json beside a checkpoint has four numbers and a digest."""


class Checkpoints:
    """The checkpoints of a run.

    Args:
        folder: which exists.
        keep: how many of the newest stay, beside the best one.
        log: takes a line on each checkpoint that does not count.
    """

    def __init__(self, folder: Path, keep: int, log: Callable[[str], object]) -> None:
        self.folder, self._keep, self._log = folder, keep, log

    def save(self, nimg: int, state: dict[str, Any]) -> Path:
        """Write a checkpoint, and remove those that are no longer kept.

        Args:
            nimg: images seen, which names it.
            state: tensors and plain values.

        Raises:
            UserError: it cannot be written; those before it are as they were.
        """
        path = self.folder / f"{nimg:09d}.pt"
        try:
            with replacing(path) as temporary:
                torch.save(state, temporary)
                seal = {"bytes": temporary.stat().st_size, "sha256": file_digest(temporary)}
            write_whole(path.with_suffix(".json"), json.dumps({**seal, "nimg": nimg}).encode())
        except (OSError, RuntimeError) as error:  # torch's own writer raises RuntimeError
            if isinstance(error, torch.OutOfMemoryError):
                raise
            raise UserError(
                path,
                f"cannot be written ({_reason(error)})",
                "room for a checkpoint; the ones before it are whole",
                "make room, then give the same command with the same --run to go on",
            ) from error
        self._prune()
        return path

    def newest(self) -> tuple[Path, dict[str, Any]] | None:
        """Load the newest one that is whole, and name it; None if none was ever begun.

        Raises:
            UserError: there are some, and none of them is whole.
        """
        found = sorted(self.folder.glob("*.pt"), reverse=True)
        for path in found:
            if self._seal(path) is None:
                self._log(f"{path} is cut off or changed: passed over")
                continue
            try:
                state = load_tensors(path)
            except Exception as error:  # whole, and still not ours: whatever torch trips over
                self._log(f"{path} does not load ({type(error).__name__}): passed over")
                continue
            if isinstance(state, dict):
                return path, state
        # One without a json is of a process that was killed in between: it was never there
        if any(path.with_suffix(".json").exists() for path in found):
            raise UserError(
                self.folder,
                f"{len(found)} checkpoints, none of them whole",
                "one whose size and sha256 are those in the json beside it",
                "bring one back from a copy, or begin a new run; its nets can be --netG and --netD",
            )
        return None

    def forget_after(self, nimg: int) -> None:
        """Remove those that are later, for others to take their places; the oldest stays."""
        for path in sorted(self.folder.glob("*.pt"))[1:]:
            if path.stem.isdecimal() and int(path.stem) > nimg:
                self._remove(path)

    def judged(self, nimg: int, swd: float) -> None:
        """Note how good the net of a checkpoint was found to be; the lowest of all stays."""
        path = self.folder / f"{nimg:09d}.pt"
        seal = _read_seal(path)
        if seal is not None:
            write_whole(path.with_suffix(".json"), json.dumps({**seal, "swd": swd}).encode())
            self._prune()

    def best(self) -> float | None:
        """The lowest distance of all that are kept."""
        judged = [swd for path in self.folder.glob("*.pt") if (swd := self._swd(path)) is not None]
        return min(judged, default=None)

    def _prune(self) -> None:
        paths = sorted(self.folder.glob("*.pt"))
        best = self.best()
        # Counting those that do not count would have the last whole one go
        kept = set([path for path in paths if _has_its_size(path)][-self._keep :])
        kept |= {path for path in paths if best is not None and self._swd(path) == best}
        for path in paths:
            if path not in kept:
                self._remove(path)
        for left in self.folder.glob(f"*{PARTIAL}"):  # of a process that was killed
            left.unlink()

    def _remove(self, path: Path) -> None:
        path.with_suffix(".json").unlink(missing_ok=True)  # first: then it does not count
        path.unlink()

    def _swd(self, path: Path) -> float | None:
        swd = (_read_seal(path) or {}).get("swd")
        return swd if isinstance(swd, float) and math.isfinite(swd) else None

    def _seal(self, path: Path) -> dict[str, Any] | None:
        """What the json says, if the file is as it says."""
        seal = _read_seal(path)
        # No file: a folder, a link to nowhere, or a pipe, which would block
        if seal is None or not path.is_file() or seal.get("bytes") != path.stat().st_size:
            return None
        return seal if seal.get("sha256") == file_digest(path) else None


def _has_its_size(path: Path) -> bool:
    return path.is_file() and (_read_seal(path) or {}).get("bytes") == path.stat().st_size


def _read_seal(path: Path) -> dict[str, Any] | None:
    try:
        if not path.with_suffix(".json").is_file():
            return None
        with path.with_suffix(".json").open("rb") as file:
            seal = json.loads(file.read(MAX_SEAL_BYTES))
    except (OSError, ValueError, RecursionError):
        return None
    return seal if isinstance(seal, dict) else None


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return first_line(error)
