"""The content of a checkpoint, declared once: names, types, shapes and bounds.

A `State` is written as plain values and tensors. What is read from a file is checked against its
declaration before it is used, and its tensors against those of the step that will load them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self

import torch
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator
from torch import nn

from dcgan.nets.weights import is_plain
from dcgan.rundir.folder import MAX_COUNT
from dcgan.step import STATISTICS
from dcgan.step.determinism import MAX_THREADS
from dcgan.step.train_step import WholeStep
from dcgan.training.clock import Number, Spent
from pipeline.errors import UserError, first_line

VERSION: Final = 2
"""The version of `State`. Every later version must read it."""

NonNegative = Annotated[int, Field(strict=True, ge=0, le=MAX_COUNT)]
"""A count, for example of steps."""


class Part(BaseModel):
    """A part of a state. Unknown names are refused."""

    model_config = ConfigDict(extra="forbid", arbitrary_types_allowed=True)


def _plain(tensor: torch.Tensor) -> torch.Tensor:
    if not is_plain(tensor):
        raise ValueError("a tensor without storage for all its numbers")
    return tensor


def _rows(dimensions: int) -> AfterValidator:
    def check(tensor: torch.Tensor) -> torch.Tensor:
        shape = (tensor.dim(), tensor.shape[-1:], tensor.dtype)
        if shape != (dimensions, (len(STATISTICS),), torch.float32):
            raise ValueError(f"no rows of {len(STATISTICS)} numbers")
        return tensor

    return AfterValidator(check)


Tensor = Annotated[torch.Tensor, AfterValidator(_plain)]
Rows = Annotated[Tensor, _rows(2)]
"""(steps, 5) float32, in the order of `STATISTICS`."""
RowsOfRanks = Annotated[Tensor, _rows(3)]
"""(ranks, steps, 5) float32."""


class StepState(Part):
    """All that a step changes: `WholeStep.state_dict`, with one row per rank where ranks differ."""

    generator: dict[str, Tensor]
    discriminator: dict[str, Tensor]
    average: dict[str, Tensor] | None
    """The EMA of the generator."""
    optimizer_d: dict[int, dict[str, Tensor]]
    """Adam's state of each parameter, by its position; empty before the first step."""
    optimizer_g: dict[int, dict[str, Tensor]]
    random: Tensor
    """(ranks, bytes) uint8: the state of each rank's random generator."""
    rows: RowsOfRanks
    """Statistics since the last tick."""


class Position(Part):
    """The position of the batches: `Batches.state_dict`."""

    epoch: NonNegative
    batch: NonNegative
    identity: dict[str, str | int]


class Streaks(Part):
    """The lengths of current streaks, and what else the next alarm depends on."""

    non_finite: NonNegative = 0
    """Consecutive rows with a non-finite value, up to the last row."""
    saturated: NonNegative = 0
    """Consecutive rows that show saturation."""
    alike: NonNegative = 0
    """Consecutive grids that show collapse."""
    alike_from: NonNegative = 0
    """The step of the first of these grids."""
    best: Number = 0.0
    """Largest spread of a grid so far."""


class MonitorState(Part):
    """What a resumed run needs to raise the same alarms as an uninterrupted one."""

    health: Streaks
    reals_spread: Number | None


class State(Part):
    """A run between two steps. A new field needs a default, for older files."""

    version: Literal[2] = VERSION
    options: dict[str, Any]
    """The options as in `config.json`, for information: a resumed run reads that file."""
    steps: NonNegative
    rollbacks: NonNegative
    threads: Annotated[int, Field(strict=True, ge=0, le=MAX_THREADS)]
    """Torch's number of threads on the CPU."""
    seconds: Number
    """The time that the run took so far, in this and all earlier processes."""
    spent: Spent
    """The time spent on the tick in progress."""
    step: StepState
    batches: Position
    history: Rows
    """Statistics up to the last tick."""
    watch: MonitorState

    @property
    def ranks(self) -> int:
        """The number of processes that trained the run."""
        return len(self.step.rows)

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        if not self.ranks:
            raise ValueError("the statistics of no process")
        rows = len(self.history) + self.step.rows.shape[1]
        if rows != self.steps:
            raise ValueError(f"statistics of {rows:,} steps, but {self.steps:,} were done")
        return self

    @classmethod
    def read(cls, found: dict[str, Any], path: Path) -> Self:
        """Check what `torch.load` read from `path`.

        Raises:
            UserError: it has another version, or contains anything that no run writes.
        """
        version = dict.get(found, "version")
        if type(version) is not int or version != VERSION:  # other types may be huge when printed
            raise UserError(
                path,
                f"a checkpoint of version {version if type(version) is int else 'unknown'}",
                f"version {VERSION}",
                "resume with the version of this package that wrote it, or begin a new run",
            )
        try:
            return cls.model_validate(dict(dict.items(found)))
        except ValidationError as error:
            fault = error.errors(include_url=False, include_input=False)[0]
            place = ".".join(f"{part!s:.80}" for part in fault["loc"])
            wrong = fault["msg"].removeprefix("Value error, ")
            raise unfit(f"{place}: {wrong:.200}".removeprefix(": "), path) from None

    def require_fit(self, step: WholeStep, path: Path) -> None:
        """Compare the saved tensors with those of the step that will load them.

        Raises:
            UserError: a tensor is missing, or has another shape or type.
        """
        wanted = step.state_dict()
        wanted |= {
            "optimizer_d": _adam(step.update.discriminator) if self.step.optimizer_d else {},
            "optimizer_g": _adam(step.update.generator) if self.step.optimizer_g else {},
            "random": wanted["random"].expand(self.ranks, -1),
            "rows": self.step.rows,
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
            raise unfit(fault, path)


def _difference(found: dict[Any, Any], wanted: dict[Any, Any], name: str) -> str:
    """Describe the first difference in names, shapes or types of tensors; "" if there is none."""
    if found.keys() != wanted.keys():
        return f"{name}.{min(map(str, found.keys() ^ wanted.keys())):.80}: missing, or unexpected"
    for key, like in wanted.items():
        each = found[key]
        if isinstance(like, dict):
            if fault := _difference(each, like, f"{name}.{key}"):
                return fault
        elif (each.dtype, each.shape) != (like.dtype, like.shape):
            return f"{name}.{key}: not {like.dtype} of shape {tuple(like.shape)}"
    return ""


def _adam(net: nn.Module) -> dict[int, dict[str, torch.Tensor]]:
    """Return tensors like those that `torch.optim.Adam` keeps after its first step."""
    return {
        place: {"step": torch.zeros(()), "exp_avg": parameter, "exp_avg_sq": parameter}
        for place, parameter in enumerate(net.parameters())
    }


def unfit(found: str, path: Path) -> UserError:
    """Make the error for a checkpoint that is complete, but not one of this run."""
    return UserError(
        path,
        f"a checkpoint that no run with these options wrote: {found}",
        "what dcgan-train writes",
        f"delete it and {path.stem}.json to resume from the one before it, or begin a new run",
    )
