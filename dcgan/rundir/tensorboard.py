"""TensorBoard events of a run, where the package `tensorboard` is installed.

They repeat what the run folder holds in other files, so training goes on when they cannot be
written: it says so once, and writes no more of them.

The records are tensorboard's and torch's, the file is opened here, and each event is in it when a
method returns, as with `stats.jsonl`. `SummaryWriter` has a thread write: when that fails, on a
full disk for example, the thread prints a traceback; and it computes checksums in Python beside the
steps, where the clock does not see it, rather than between two of them.
"""

from __future__ import annotations

import html
import importlib.util
import math
import shlex
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from PIL import Image

GROUPS = {
    **dict.fromkeys(("loss_d", "loss_g"), "losses"),
    **dict.fromkeys(("d_x", "d_gz1", "d_gz2"), "judgement"),
    **dict.fromkeys(("epoch", "nimg"), "progress"),
    **dict.fromkeys(("step_ms", "img_per_s", "data_wait_pct"), "pace"),
}
"""TensorBoard shows the curves whose tags begin alike in one row."""

NAME = "events.out.tfevents"
"""What TensorBoard takes for events, and reads in the order of names."""


class Tracking:
    """Writes one file of events; a run that goes on begins another beside it.

    Attributes:
        told: one line, how to look at them.
    """

    def __init__(self, folder: Path, step: int, say: Callable[[str], object]) -> None:
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.summary.writer.record_writer import RecordWriter
        from torch.utils.tensorboard.summary import text

        self._event, self._summary = Event, Summary
        self._text: Callable[[str, str], Any] = text
        self._say, self._step = say, step
        self.told = f"tensorboard --logdir {shlex.quote(str(folder))}"
        folder.mkdir(parents=True, exist_ok=True)
        self._file: BinaryIO | None = _next_file(folder).open("xb")
        self._records = RecordWriter(self._file)
        # Whoever reads this drops the steps from here on that earlier files hold
        undone = step + 1 if step else 0
        try:
            self._write(file_version="brain.Event:2")
            self._write(step=undone, session_log=SessionLog(status=SessionLog.START))
        except BaseException:
            self.close()
            raise

    @classmethod
    def open(cls, folder: Path, step: int, say: Callable[[str], object]) -> Tracking | None:
        """Begin a file of events.

        Args:
            folder: for events alone; made where it is missing.
            step: steps done where the run goes on; later ones of earlier files are to vanish.
            say: told once, if events cannot be written or no more.

        Returns:
            None where tensorboard is not installed, or does not work.
        """
        if importlib.util.find_spec("tensorboard") is None:
            return None
        try:
            return cls(folder, step, say)
        except Exception as error:  # whatever a library can fail with: training does not need it
            say(f"No TensorBoard events: {_in_a_line(error)}")
            return None

    def options(self, options: dict[str, Any]) -> None:
        """Write the run's options, as a table."""
        rows = "".join(f"| {_plain(name)} | {_plain(value)} |\n" for name, value in options.items())
        with self._unharmed():
            table = f"| option | value |\n|---|---|\n{rows}"
            self._write(step=self._step, summary=self._text("options", table))

    def tick(self, record: dict[str, Any]) -> None:
        """Write a line of `stats.jsonl`; what is null there is left out."""
        values = {f"{GROUPS.get(name, 'other')}/{name}": record[name] for name in record}
        del values["other/step"]
        self._scalars(values, record["step"])

    def grid(self, name: str, path: Path, step: int) -> None:
        """Write a picture as it is.

        Args:
            name: under which TensorBoard shows it.
            path: of the PNG.
            step: steps done when it was drawn.
        """
        with self._unharmed():
            with Image.open(path, formats=("PNG",)) as image:
                (width, height), channels = image.size, len(image.getbands())
            picture = self._summary.Image(
                encoded_image_string=path.read_bytes(),
                width=width,
                height=height,
                colorspace=channels,
            )
            value = self._summary.Value(tag=name, image=picture)
            self._write(step=step, summary=self._summary(value=[value]))

    def metric(self, record: dict[str, Any], step: int) -> None:
        """Write a line of `metrics.jsonl`: the value, its floor, and both at each scale."""
        tag = f"metrics/{record['metric']}"
        values = {tag: record["value"], f"{tag}_floor": record.get("floor")}
        values |= {f"{tag}_{scale}": value for scale, value in _scales(record, "scales")}
        values |= {
            f"{tag}_{scale}_floor": value for scale, value in _scales(record, "floor_scales")
        }
        self._scalars(values, step)

    def close(self) -> None:
        """Write no more; nothing is outstanding."""
        file, self._file = self._file, None
        if file is not None:
            with suppress(OSError):  # of what failed before, and was told
                file.close()

    def _scalars(self, values: dict[str, float | None], step: int) -> None:
        known = {tag: value for tag, value in values.items() if value is not None}
        with self._unharmed():
            finite = (
                self._summary.Value(tag=tag, simple_value=value)
                for tag, value in known.items()
                if math.isfinite(value)
            )
            self._write(step=step, summary=self._summary(value=finite))

    def _write(self, **content: Any) -> None:
        if self._file is not None:
            event = self._event(wall_time=time.time(), **content)
            self._records.write(event.SerializeToString())
            self._file.flush()

    @contextmanager
    def _unharmed(self) -> Iterator[None]:
        """Turn a failure to write events into a line, and an end of them."""
        try:
            yield
        except Exception as error:  # a full disk, or whatever a library can fail with
            self.close()
            self._say(f"No more TensorBoard events: {_in_a_line(error)}")


def _next_file(folder: Path) -> Path:
    """The file after the last one, by number: a clock may be set back between two sessions."""
    endings = (path.suffix[1:] for path in folder.glob(f"{NAME}.*"))
    last = max((int(ending) for ending in endings if ending.isdecimal()), default=0)
    return folder / f"{NAME}.{last + 1:06d}"


def _scales(record: dict[str, Any], name: str) -> list[tuple[str, float]]:
    return list((record.get(name) or {}).items())


def _plain(value: object) -> str:
    """Text that neither Markdown nor HTML reads anything into, on one line."""
    escaped = html.escape(str(value))
    kept = " ./:,&#;"
    return "".join(c if c.isalnum() or c in kept else f"&#{ord(c)};" for c in escaped)


def _in_a_line(error: Exception) -> str:
    lines = str(error).splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
