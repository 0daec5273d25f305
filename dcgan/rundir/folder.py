"""The run folder: the names of its files, and how they are read and written."""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline.errors import UserError
from pipeline.files import PARTIAL, locked, write_whole, writing

NUMBERED = Path("runs")
"""Where runs without a name go."""

EXPORTED = "netG.safetensors"
"""The weights in a folder of dcgan-export."""

MODEL_TYPE = "dcgan-generator"
"""What such a folder's `config.json` says, and a run's does not."""

LOCK = ".lock"
"""Locked by the process that trains."""

MAX_OBJECT_BYTES = 1 << 22
"""Size of a file of plain values. The options take about one kilobyte, and the names of ImageNet's
21,841 classes, where a run has such labels, less than one megabyte."""

MAX_LINE = 1 << 16
"""Characters of a line of JSON; ours have a few hundred."""

MAX_LINES_BYTES = 1 << 30
"""Size of a file of such lines; a tick takes about 300 bytes."""

MAX_COUNT = 10**15
"""Largest number of steps or images; a float holds it exactly."""

MAX_NESTED = 64
"""Lists and objects in a text of JSON."""


class RunFolder:
    """Names the files of a run. `nimg` is the number of real images seen so far."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "config.json"
        self.environment = path / "env.json"
        self.log = path / "log.txt"
        self.stats = path / "stats.jsonl"
        self.losses_csv = path / "losses.csv"
        self.losses_png = path / "losses.png"
        self.reals = path / "reals.png"
        self.fakes_init = path / "fakes_init.png"
        self.generator = path / "netG.pt"
        self.discriminator = path / "netD.pt"
        self.generator_average = path / "netG_ema.pt"
        self.generator_best = path / "netG_best.pt"
        self.reals_vs_fakes = path / "reals-vs-fakes.png"
        self.progress = path / "progress.gif"
        self.neighbours = path / "neighbours.png"
        self.neighbours_faces = path / "neighbours-faces.png"
        self.metrics = path / "metrics.jsonl"
        self.alarms = path / "alarms.jsonl"
        self.report = path / "report.html"
        self.export = path / "export"
        self.tensorboard = path / "tensorboard"
        self.samples = path / "samples"
        self.nets = path / "nets"
        self.checkpoints = path / "checkpoints"

    def fakes(self, nimg: int) -> Path:
        """Name the grid of fixed noise after `nimg` images."""
        return self.samples / f"fakes-{nimg:09d}.png"

    def grids(self) -> list[tuple[int, Path]]:
        """Find every grid of fixed noise, with its `nimg`, in order."""
        found = (re.fullmatch(r"fakes-(\d+)\.png", path.name) for path in self.samples.glob("*"))
        return sorted((int(name[1]), self.samples / name[0]) for name in found if name)

    def generator_to_sample(self, raw: bool = False) -> Path:
        """Find the net that pictures are drawn with: the average where there is one, unless `raw`.

        Raises:
            UserError: there is none yet.
        """
        average = self.generator_average
        path = average if average.exists() and not raw else self.generator
        if not path.is_file():
            nets = [f"draw: dcgan-sample {net}" for net in sorted(self.nets.glob("netG-*.pt"))]
            remedy = nets[-1] if nets else "wait for its first checkpoint, or go on with --run"
            raise UserError(self.path, f"no {path.name} in it", "a run with a checkpoint", remedy)
        return path

    def nimg_of_nets(self) -> int:
        """Return what the newest checkpoint had seen, whose nets lie in the folder.

        Without checkpoints it is what the last status line tells; 0 without that too.
        """
        names = (path.stem for path in self.checkpoints.glob("*.json"))
        found = [int(name) for name in names if name.isdecimal()]
        return max(found or [line.get("nimg") or 0 for line in read_lines(self.stats)] or [0])

    def generator_at(self, nimg: int) -> Path:
        return self.nets / f"netG-{nimg:09d}.pt"

    def discriminator_at(self, nimg: int) -> Path:
        return self.nets / f"netD-{nimg:09d}.pt"

    @classmethod
    def open(cls, path: Path) -> RunFolder:
        """Open the folder of a run that has begun, to read it.

        Raises:
            UserError: it is none.
        """
        folder = cls(path)
        if not folder.config.is_file() or (path / EXPORTED).is_file():
            found = "no config.json in it" if path.is_dir() else "no such folder"
            found = "a folder of dcgan-export" if (path / EXPORTED).is_file() else found
            runs = sorted(path.glob("*/config.json"))
            remedy = f"name the run in it, {runs[-1].parent}" if runs else "check the path"
            raise UserError(path, found, "a run folder of dcgan-train", remedy)
        return folder

    @classmethod
    def at(cls, name: str | None) -> RunFolder:
        """Name the folder of a new run, or of one to go on with; makes nothing yet.

        Without a name it is the next free number below `runs/`.

        Raises:
            UserError: something else stands there.
        """
        path = Path(name) if name is not None else _next_number()
        folder = cls(path)
        is_run = folder.config.is_file() and not (path / EXPORTED).is_file()
        if path.exists() and not is_run and not folder._has_only_begun():
            raise UserError(
                f"--run {path}",
                "a folder with other files in it" if path.is_dir() else "a file",
                "a run to go on with, or a new or empty folder",
                "choose another --run, or leave it out to have the run numbered",
            )
        return folder

    def _has_only_begun(self) -> bool:
        """Tell whether nothing is in the folder but what a run makes before its options."""
        first = {f"{self.config.name}{PARTIAL}", LOCK}
        folders = (self.samples, self.nets, self.checkpoints)
        return self.path.is_dir() and all(
            entry.name in first
            or (entry in folders and entry.is_dir() and not any(entry.iterdir()))
            for entry in self.path.iterdir()
        )

    def make(self) -> None:
        """Make the folder and those in it.

        Raises:
            UserError: it cannot be made.
        """
        with writing(f"--run {self.path}", "a folder that can be made"):
            for folder in (self.samples, self.nets, self.checkpoints):
                folder.mkdir(parents=True, exist_ok=True)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder for this process alone; a process that is killed lets go of it too.

        Raises:
            UserError: another process has it.
        """
        refusal = UserError(
            f"--run {self.path}",
            "a run that another process is training",
            "a run that nobody trains at the moment",
            "wait for its end, or choose another --run",
        )
        with locked(self.path / LOCK, refusal):
            yield

    def options(self) -> dict[str, Any]:
        """Read `config.json`.

        Raises:
            UserError: it cannot be read.
        """
        try:
            options = read_object(self.config)
            json.dumps(options, ensure_ascii=False).encode()  # half a character, no path can take
        except (OSError, ValueError) as error:
            raise UserError(
                self.config,
                f"what cannot be read ({error})",
                "the options of a run",
                "restore the file, or choose another --run",
            ) from None
        return options

    def forget_after(self, nimg: int) -> None:
        """Remove the pictures and nets of steps that are about to be done again."""
        for folder in (self.samples, self.nets):
            for path in folder.glob("*"):
                number = re.search(r"-(\d+)\.", path.name)
                if number and int(number[1]) > nimg and not path.is_dir():
                    path.unlink()


def is_export(folder: Path) -> bool:
    """Whether a folder's `config.json` is one of dcgan-export.

    Raises:
        ValueError: it is nothing of ours.
        OSError: it cannot be read.
    """
    return read_object(folder / "config.json").get("model_type") == MODEL_TYPE


def _next_number() -> Path:
    numbers = (int(path.name) for path in NUMBERED.glob("*") if path.name.isdecimal())
    return NUMBERED / f"{max(numbers, default=0) + 1:04d}"


def write_object(path: Path, values: dict[str, Any]) -> None:
    """Write plain values by name, for programs and people."""
    write_whole(path, json.dumps(values, indent=1).encode() + b"\n")


def append_line(path: Path, record: dict[str, Any]) -> None:
    """Add a line to a file of JSON lines, below a last one that a killed process cut off."""
    line = json.dumps(record, allow_nan=False).encode() + b"\n"
    with path.open("a+b") as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
            line = line if file.read() == b"\n" else b"\n" + line
        file.write(line)


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Read a file of JSON lines, without those that make no sense; none if it is absent.

    Raises:
        UserError: the file is larger than any of ours.
        OSError: it cannot be read.
    """
    return [record for record in each_line(path) if record is not None]


def each_line(path: Path) -> Iterator[dict[str, Any] | None]:
    """Read a file of JSON lines one by one; see `read_lines`.

    Yields:
        None for a line that makes no sense. What a killed process cut off at the end is passed
        over, and so are empty lines.
    """
    if not path.exists():
        return
    with path.open(encoding="utf-8", errors="replace") as file:
        if os.fstat(file.fileno()).st_size > MAX_LINES_BYTES:
            raise UserError(
                path,
                f"more than {MAX_LINES_BYTES:,} bytes",
                "a file that a run wrote",
                "move it away; a run goes on without it",
            )
        # Of a line that is longer than any of ours, pieces: none of them is a record
        for line in iter(lambda: file.readline(MAX_LINE), ""):
            record = None
            with contextlib.suppress(ValueError):
                record = read_json(line)
            if isinstance(record, dict) and _counts(record):
                yield record
            elif line.strip() and line.endswith("\n"):
                yield None


def read_json(text: str) -> Any:
    """Read JSON that anybody may have written: nothing deep, and no number that JSON has not.

    Raises:
        ValueError: it is none.
    """
    # Of a thousand lists inside each other, what reads or writes them fails
    brackets = text.count("[") + text.count("{")
    if brackets > MAX_NESTED and _in_strings(text) < brackets - MAX_NESTED:
        raise ValueError(f"more than {MAX_NESTED} lists and objects")
    return json.loads(text, parse_constant=_finite, parse_float=_finite)


def _in_strings(text: str) -> int:
    """Count the opening brackets within strings, such as the names of labels."""
    # Without an end a string goes to that of the text, so that nothing is searched twice
    strings = re.findall(r'"(?:[^"\\]|\\.)*"?', text)
    return sum(string.count("[") + string.count("{") for string in strings)


def read_object(path: Path) -> dict[str, Any]:
    """Read plain values by name, as `write_object` wrote them.

    Raises:
        ValueError: the file holds anything else.
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        values = read_json(file.read(MAX_OBJECT_BYTES).decode())
    if not isinstance(values, dict):
        raise ValueError(f"it is a {type(values).__name__}")  # noqa: TRY004  # of JSON
    return values


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"the number {text:.20}")
    return value


def _counts(record: dict[str, Any]) -> bool:
    """Tell whether steps and images are numbers that a run can have."""
    return record.get("step", 0) is not None and all(
        value is None or (type(value) is int and 0 <= value <= MAX_COUNT)
        for value in (record.get("nimg"), record.get("step", 0))
    )
