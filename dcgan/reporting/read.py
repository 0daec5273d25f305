"""Reads a run folder for its report: as much as can be read, with notes on what cannot."""

from __future__ import annotations

import math
import os
import re
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, TypeVar

import numpy as np
from pydantic import BaseModel, Field, ValidationError

from dcgan.options import RunLabels
from dcgan.rundir.curves import Curve
from dcgan.rundir.folder import MAX_COUNT, RunFolder, each_line, read_object
from dcgan.step import STATISTICS
from pipeline.errors import UserError

Count = Annotated[int, Field(ge=0, le=MAX_COUNT)]
"""A number of steps or images."""

MAX_BYTES = 1 << 28
"""Size of `losses.csv` or `log.txt`: more would take gigabytes as rows, and no page shows them."""


class Tick(BaseModel):
    """A line of `stats.jsonl`; None where a value was not finite."""

    step: Count
    nimg: Count
    epoch: Count | None = None
    loss_d: float | None = None
    loss_g: float | None = None
    d_x: float | None = None
    d_gz1: float | None = None
    d_gz2: float | None = None
    step_ms: float | None = None
    img_per_s: float | None = None
    data_wait_pct: float | None = None


class Metric(BaseModel):
    """A line of `metrics.jsonl`: a number, and where it comes from."""

    nimg: Count
    metric: str
    value: float
    net: str = ""
    floor: float | None = None
    n: Count | None = None
    scales: dict[str, float] | None = None
    floor_scales: dict[str, float] | None = None
    recipe: str = ""
    extractor: str = ""
    digest: str | None = None
    comparable: bool = True
    shards: str = ""
    label: str | None = None
    """What the images of all sides have in common."""


class Alarm(BaseModel):
    """A line of `alarms.jsonl`."""

    step: Count
    nimg: Count
    kind: str
    message: str
    action: str


@dataclass(frozen=True)
class RunRecord:
    """What the files of a run hold, apart from its pictures."""

    folder: RunFolder
    name: str
    """The folder's."""
    config: dict[str, Any]
    environment: dict[str, Any]
    ticks: list[Tick]
    """In the order of their steps."""
    steps: Curve
    """(N,) numbers of the steps in `losses.csv`, increasing."""
    curves: dict[str, Curve]
    """For each of `STATISTICS`, (N,); may hold nan and inf."""
    metrics: list[Metric]
    """In the order in which they were measured."""
    alarms: list[Alarm]
    status: str
    """How the run ended, from `log.txt`."""
    notes: list[str] = field(default_factory=list)
    """Remarks on files that are absent or damaged."""

    @property
    def options(self) -> dict[str, Any]:
        """The options for people: the labels in a line, and without the tuner's choice."""
        shown = {name: value for name, value in self.config.items() if name != "tuning"}
        with suppress(ValidationError):
            if shown.get("labels") is not None:
                shown["labels"] = RunLabels.model_validate(shown["labels"]).describe()
        return shown

    @property
    def nimg(self) -> int | None:
        """Real images seen at the last tick."""
        return self.ticks[-1].nimg if self.ticks else None

    @property
    def steps_done(self) -> int | None:
        """The last step that any file tells of."""
        ends = [self.ticks[-1].step] if self.ticks else []
        ends += [int(self.steps[-1])] if self.steps.size else []
        return max(ends, default=None)

    @property
    def images_per_step(self) -> float | None:
        """The global batch: what turns a step into a count of images."""
        if self.ticks and self.ticks[-1].step > 0:
            return self.ticks[-1].nimg / self.ticks[-1].step
        batch = self.config.get("batch_size")
        return float(batch) if isinstance(batch, int) and 0 < batch <= MAX_COUNT else None

    @property
    def seconds(self) -> float | None:
        """Spent in steps: each tick's steps times its mean duration."""
        total, before = 0.0, 0
        for tick in self.ticks:
            total += (tick.step - before) * (tick.step_ms or 0.0) / 1e3
            before = tick.step
        return total if self.ticks else None

    def of_ticks(self, name: str) -> Curve:
        """A column of `stats.jsonl`, (ticks,), nan where it has none."""
        values = (getattr(tick, name) for tick in self.ticks)
        return np.array([math.nan if value is None else value for value in values])

    def median(self, name: str) -> float | None:
        """Over the ticks."""
        values = self.of_ticks(name)
        values = values[np.isfinite(values)]
        return float(np.median(values)) if values.size else None

    def measured(self, metric: str) -> list[Metric]:
        """One metric's values of the whole set, by images seen."""
        found = (each for each in self.metrics if each.metric == metric and each.label is None)
        return sorted(found, key=lambda each: each.nimg)

    def best(self, metric: str) -> Metric | None:
        """The lowest of them."""
        return min(self.measured(metric), key=lambda each: each.value, default=None)


def read_run(path: Path) -> RunRecord:
    """Read a run that is finished, going on, broken off or incomplete.

    Raises:
        UserError: nothing in the folder comes from a run.
    """
    folder = RunFolder(path)
    files = (folder.environment, folder.log, folder.stats, folder.losses_csv, folder.samples)
    if not any(file.exists() for file in files):
        RunFolder.open(path)
    notes: list[str] = []
    ticks = {tick.step: tick for tick in _rows(folder.stats, Tick, notes)}
    steps, curves = _losses(folder.losses_csv, notes)
    return RunRecord(
        folder=folder,
        name=path.resolve().name,
        config=_object(folder.config, notes),
        environment=_object(folder.environment, notes),
        ticks=[ticks[step] for step in sorted(ticks)],
        steps=steps,
        curves=curves,
        metrics=_rows(folder.metrics, Metric, notes, needed=False),
        alarms=_rows(folder.alarms, Alarm, notes, needed=False),
        status=_status(folder.log, notes),
        notes=notes,
    )


def read_runs(paths: list[Path]) -> list[RunRecord]:
    """Read runs to compare, under names that differ.

    Raises:
        UserError: a folder is no run, or is given twice.
    """
    records: dict[Path, RunRecord] = {}
    for path in paths:
        if path.resolve() in records:
            raise UserError(path, "given twice", "different runs", "name each run once")
        records[path.resolve()] = read_run(path)
    names = [record.name for record in records.values()]
    return [
        record if names.count(record.name) == 1 else replace(record, name=str(path))
        for path, record in records.items()
    ]


Row = TypeVar("Row", bound=BaseModel)


def _rows(path: Path, kind: type[Row], notes: list[str], needed: bool = True) -> list[Row]:
    rows, damaged = [], 0
    if needed and not path.exists():
        notes.append(f"{path.name} is not there.")
    try:
        for record in each_line(path):
            try:
                rows.append(kind.model_validate(record))
            except ValidationError:
                damaged += 1
    except UserError as error:
        notes.append(f"{path.name} is not read: it has {error.found}.")
    except OSError as error:
        notes.append(f"{path.name} cannot be read: {error.strerror}.")
    _note_damaged(path, damaged, notes)
    return rows


def _note_damaged(path: Path, lines: int, notes: list[str]) -> None:
    if lines:
        notes.append(f"{path.name}: lines that make no sense and were left out: {lines:,}.")


def _object(path: Path, notes: list[str]) -> dict[str, Any]:
    try:
        return read_object(path)
    except FileNotFoundError:
        notes.append(f"{path.name} is not there.")
    except (OSError, ValueError):
        notes.append(f"{path.name} cannot be read: it is damaged.")
    return {}


def _text(path: Path, notes: list[str]) -> str:
    """A file's text, empty where there is none."""
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            if os.fstat(file.fileno()).st_size <= MAX_BYTES:
                return file.read()
        notes.append(f"{path.name} is not read: it has more than {MAX_BYTES:,} bytes.")
    except FileNotFoundError:
        notes.append(f"{path.name} is not there.")
    except OSError as error:
        notes.append(f"{path.name} cannot be read: {error.strerror}.")
    return ""


def _losses(path: Path, notes: list[str]) -> tuple[Curve, dict[str, Curve]]:
    rows: dict[float, list[float]] = {}
    damaged = 0
    text = _text(path, notes)
    # Without the last line where a killed run did not end it
    for line in text[: text.rfind("\n") + 1].splitlines()[1:]:
        try:
            step, *row = map(float, line.split(","))
        except ValueError:
            row = []
        if len(row) == len(STATISTICS) and math.isfinite(step):
            rows[step] = row
        else:
            damaged += 1
    _note_damaged(path, damaged, notes)
    steps = sorted(rows)
    table = np.array([rows[step] for step in steps]).reshape(-1, len(STATISTICS))
    return np.array(steps), dict(zip(STATISTICS, table.T, strict=True))


_TURNS = re.compile(
    r"^(Starting training|Resuming training|Going on with training|"
    r"Training finished|Training broke off|Time is up|Stopped).*$",
    re.MULTILINE,
)
"""Lines of `log.txt` at which a run begins and ends: see `dcgan.training.trainer`."""


def _status(path: Path, notes: list[str]) -> str:
    text = _text(path, notes)
    turns = list(_TURNS.finditer(text))
    if not turns:
        return "not started" if text else "unknown"
    line, turn = turns[-1][0], turns[-1][1]
    if turn in ("Starting training", "Resuming training", "Going on with training"):
        return "running, or killed"
    return line if turn == "Training broke off" else line.split(": ")[0]
