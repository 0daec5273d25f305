"""Checkpoints: all that it takes to resume a run, in a file that is whole or does not count.

`checkpoints/<nimg>.pt` holds a `State`, as plain values and tensors; `<nimg>.json`, written after
it, its size and sha256. Without a json that agrees, a checkpoint does not exist for us. The sha256
tells that a file is as it was written, not who wrote it: nothing is made of a file before all of it
was compared with `State`, and its tensors with the nets that are to take them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self

import torch
from pydantic import Field, ValidationError, model_validator
from torch import nn

from dcgan.nets.weights import load_tensors
from dcgan.step.determinism import MAX_THREADS
from dcgan.step.train_step import WholeStep
from dcgan.training.monitor import MonitorState
from dcgan.training.schema import Count, Number, Part, Rows, RowsOfRanks, Tensor
from dcgan.training.stats import Spent
from pipeline.errors import UserError, first_line
from pipeline.files import PARTIAL, file_digest, replacing, write_whole

VERSION: Final = 2
"""Of `State`; every later version reads it."""

MAX_SEAL_BYTES = 65_536
"""A json beside a checkpoint has four numbers and a digest."""


class StepState(Part):
    """All that a step changes for good: `WholeStep.state_dict`, with a row of each rank's own."""

    generator: dict[str, Tensor]
    discriminator: dict[str, Tensor]
    average: dict[str, Tensor] | None
    optimizer_d: dict[int, dict[str, Tensor]]
    """By the parameter's place; empty before the first step."""
    optimizer_g: dict[int, dict[str, Tensor]]
    random: Tensor
    """(ranks, bytes) uint8: of each rank's generator of random numbers."""
    rows: RowsOfRanks
    """Statistics since the last tick."""


class Position(Part):
    """Where the batches stand: `Batches.state_dict`."""

    epoch: Count
    batch: Count
    identity: dict[str, str | int]


class State(Part):
    """A run between two steps. A new field is a line here, with a default for older files."""

    version: Literal[2] = VERSION
    options: dict[str, Any]
    """As in `config.json`, for people: a run compares with that file."""
    steps: Count
    rollbacks: Count
    threads: Annotated[int, Field(strict=True, ge=0, le=MAX_THREADS)]
    """Of torch, on the CPU."""
    seconds: Number
    """That the run took so far, in all its processes."""
    spent: Spent
    """On the tick that has begun."""
    step: StepState
    batches: Position
    history: Rows
    """Statistics up to the last tick."""
    watch: MonitorState

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        rows = len(self.history) + self.step.rows.shape[1]
        if rows != self.steps:
            raise ValueError(f"statistics of {rows:,} steps, where {self.steps:,} were done")
        return self

    @classmethod
    def read(cls, found: dict[str, Any], folder: Path) -> Self:
        """Check what `torch.load` gave.

        Raises:
            UserError: another version, or anything in it that no run writes.
        """
        version = dict.get(found, "version")
        if type(version) is not int or version != VERSION:  # what else may take for ever to print
            raise UserError(
                folder,
                f"a checkpoint of version {version if type(version) is int else 'unknown'}",
                f"version {VERSION}",
                "go on with the version of this package that wrote it, or begin a new run",
            )
        try:
            return cls.model_validate(dict(dict.items(found)))
        except ValidationError as error:
            fault = error.errors(include_url=False, include_input=False)[0]
            place = ".".join(f"{part!s:.80}" for part in fault["loc"])
            wrong = fault["msg"].removeprefix("Value error, ")
            raise unfit(f"{place}: {wrong:.200}".removeprefix(": "), folder) from None

    def require_fit(self, step: WholeStep, ranks: int, folder: Path) -> None:
        """Compare the step's tensors with those of a step that is to go on from them.

        Raises:
            UserError: one is missing, or of another shape or type.
        """
        wanted = step.state_dict()
        wanted |= {
            "optimizer_d": _adam(step.update.discriminator) if self.step.optimizer_d else {},
            "optimizer_g": _adam(step.update.generator) if self.step.optimizer_g else {},
            "random": wanted["random"].expand(ranks, -1),
            "rows": self.step.rows.new_empty(ranks, *self.step.rows.shape[1:]),
        }
        found = dict(self.step)
        if found["average"] is None or wanted["average"] is None:  # --ema-nimg may have changed
            del found["average"], wanted["average"]
        fault = _difference(found, wanted, "step")
        try:
            for each in self.step.random if not fault else ():
                torch.Generator(step.random.device).set_state(each.clone())
        except RuntimeError as error:
            fault = f"step.random: {first_line(error)}"
        if fault:
            raise unfit(fault, folder)


def _difference(found: dict[Any, Any], wanted: dict[Any, Any], name: str) -> str:
    """Say what differs in names, shapes and types of tensors; "" if nothing does."""
    if found.keys() != wanted.keys():
        return f"{name}.{min(map(str, found.keys() ^ wanted.keys())):.80}: missing, or too much"
    for key, like in wanted.items():
        each = found[key]
        if isinstance(like, dict):
            if fault := _difference(each, like, f"{name}.{key}"):
                return fault
        elif (each.dtype, each.shape) != (like.dtype, like.shape):
            return f"{name}.{key}: no {like.dtype} of shape {tuple(like.shape)}"
    return ""


def _adam(net: nn.Module) -> dict[int, dict[str, torch.Tensor]]:
    """What `torch.optim.Adam` keeps of each parameter after its first step."""
    return {
        place: {"step": torch.zeros(()), "exp_avg": parameter, "exp_avg_sq": parameter}
        for place, parameter in enumerate(net.parameters())
    }


def unfit(found: str, folder: Path) -> UserError:
    """Say that a checkpoint is whole, but not one of this run."""
    return UserError(
        folder,
        f"a checkpoint that no run of these options wrote: {found}",
        "what dcgan-train writes",
        "delete its .pt and .json to go on from the one before it, or begin a new run",
    )


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

    def newest(self) -> dict[str, Any] | None:
        """Load the newest one that is whole; None if none was ever begun.

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
                return state
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
