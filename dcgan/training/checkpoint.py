"""Checkpoints: files with all that is needed to resume a run, complete or ignored.

`checkpoints/<nimg>.pt` holds a `State` (dcgan/training/state.py). `<nimg>.json`, written after it,
holds its size and SHA-256. A checkpoint without a json that agrees is ignored. The SHA-256 shows
that a file is as it was written, but not who wrote it: `State.read` checks the content.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch

from dcgan.nets.weights import load_tensors
from dcgan.step.train_step import Log
from pipeline.errors import UserError, first_line
from pipeline.files import PARTIAL, file_digest, replacing, write_whole

MAX_SEAL_BYTES = 65_536
"""Bytes to read at most of the json beside a checkpoint, which has four numbers and a digest."""


class Checkpoints:
    """The checkpoints of a run, in a folder that exists.

    The newest `keep` are kept, besides the best one; one that is ignored is logged.
    """

    def __init__(self, folder: Path, keep: int, log: Log) -> None:
        self.folder, self._keep, self._log = folder, keep, log

    def save(self, nimg: int, state: dict[str, Any]) -> Path:
        """Write a checkpoint of tensors and plain values, and remove those that are no longer kept.

        Its name is `nimg`, the images seen.

        Raises:
            UserError: the file cannot be written; earlier checkpoints are unchanged.
        """
        path = self.folder / f"{nimg:09d}.pt"
        try:
            older = _read_seal(path)
            with replacing(path) as temporary:
                torch.save(state, temporary)
                seal = {"bytes": temporary.stat().st_size, "sha256": file_digest(temporary)}
                if older is not None:  # a kill before or after the change of files loses neither
                    _write_seal(path, {**older, "next": seal})
            kept = {"swd": older["swd"]} if older is not None and "swd" in older else {}
            _write_seal(path, {**seal, "nimg": nimg, **kept})
        except (OSError, RuntimeError) as error:  # torch's own writer raises RuntimeError
            if isinstance(error, torch.OutOfMemoryError):
                raise
            raise UserError(
                path,
                f"cannot be written ({_reason(error)})",
                "room for a checkpoint; the earlier ones are complete",
                "make room, then resume by the same command with the same --run",
            ) from error
        self._prune()
        return path

    def newest(self) -> tuple[Path, dict[str, Any]] | None:
        """Load the newest checkpoint that is complete, with its path; None if there is none at all.

        Raises:
            UserError: there are checkpoints, but none is complete.
        """
        found = sorted(self.folder.glob("*.pt"), reverse=True)
        for path in found:
            if not _is_complete(path):
                has_json = path.with_suffix(".json").exists()
                why = "does not agree with its .json" if has_json else "has no .json beside it"
                self._log(f"{path} {why}: ignored")
                continue
            try:
                state = load_tensors(path)
            except Exception as error:  # complete, but not ours; torch may raise anything
                self._log(f"{path} does not load ({type(error).__name__}): ignored")
                continue
            if isinstance(state, dict):
                return path, state
        # A file without a json was left by a process killed between the two: it never counted
        if any(path.with_suffix(".json").exists() for path in found):
            raise UserError(
                self.folder,
                f"{len(found)} checkpoints, none of them whole",
                "one whose size and sha256 agree with the json beside it",
                "restore one from a copy, or begin a new run from this one's nets with"
                " --netG and --netD",
            )
        return None

    def forget_after(self, nimg: int) -> None:
        """Remove the checkpoints after `nimg` before a rollback; the oldest one is always kept."""
        for path in sorted(self.folder.glob("*.pt"))[1:]:
            if path.stem.isdecimal() and int(path.stem) > nimg:
                self._remove(path)

    def record_distance(self, nimg: int, swd: float) -> None:
        """Record the distance of a checkpoint's net; the checkpoint with the lowest one is kept."""
        path = self.folder / f"{nimg:09d}.pt"
        seal = _read_seal(path)
        if seal is not None:
            _write_seal(path, {**seal, "swd": swd})
            self._prune()

    def best(self) -> float | None:
        """Return the lowest distance recorded for a checkpoint; None if there is none."""
        distances = [
            swd for path in self.folder.glob("*.pt") if (swd := self._swd(path)) is not None
        ]
        return min(distances, default=None)

    def _prune(self) -> None:
        paths = sorted(self.folder.glob("*.pt"))
        best = self.best()
        # Only complete ones are counted: else the last complete one might be removed
        kept = set([path for path in paths if _has_its_size(path)][-self._keep :])
        kept |= {path for path in paths if best is not None and self._swd(path) == best}
        for path in paths:
            if path not in kept:
                self._remove(path)
        for left in self.folder.glob(f"*{PARTIAL}"):  # left by a process that was killed
            left.unlink()

    def _remove(self, path: Path) -> None:
        path.with_suffix(".json").unlink(missing_ok=True)  # first, so that the rest is ignored
        path.unlink()

    def _swd(self, path: Path) -> float | None:
        swd = (_read_seal(path) or {}).get("swd")
        return swd if isinstance(swd, float) and math.isfinite(swd) else None


def _is_complete(path: Path) -> bool:
    """Whether a checkpoint agrees with its json: by its size, and then by its sha256."""
    if not _has_its_size(path):
        return False
    digest = file_digest(path)
    return any(seal.get("sha256") == digest for seal in _seals(path))


def _has_its_size(path: Path) -> bool:
    # It may be no file, but a folder, a dangling link, or a pipe, which would block
    return path.is_file() and any(seal.get("bytes") == path.stat().st_size for seal in _seals(path))


def _seals(path: Path) -> list[dict[str, Any]]:
    """What the json vouches for: the file, and the one that was about to take its place."""
    seal = _read_seal(path) or {}
    return [each for each in (seal, seal.get("next")) if isinstance(each, dict)]


def _write_seal(path: Path, seal: dict[str, Any]) -> None:
    write_whole(path.with_suffix(".json"), json.dumps(seal).encode())


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
