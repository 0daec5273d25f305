"""TensorBoard events of a run, where the package `tensorboard` is installed.

They repeat what other files of the run folder hold, so training goes on when they cannot be
written: the log says so once, and no more of them are written.
"""

from __future__ import annotations

import html
import importlib.util
import shlex
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from pipeline.errors import first_line

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

GROUPS = {
    **dict.fromkeys(("loss_d", "loss_g"), "losses"),
    **dict.fromkeys(("d_x", "d_gz1", "d_gz2"), "judgement"),
    **dict.fromkeys(("epoch", "nimg"), "progress"),
    **dict.fromkeys(("step_ms", "img_per_s", "data_wait_pct"), "pace"),
}
"""TensorBoard shows the curves whose tags begin alike in one row."""


class Events:
    """Writes a run's events: nothing before `open`, nor after a failure, which it logs, or `close`.

    Each event is in the file when a method returns.
    """

    def __init__(self, log: Callable[[str], object]) -> None:
        self._log = log
        self._writer: SummaryWriter | None = None
        self._hook = threading.excepthook

    def open(self, folder: Path, step: int, options: dict[str, Any]) -> None:
        """Begin a file of events in a folder of their own, with a table of the run's options.

        TensorBoard drops events after `step`, the steps done, which earlier files may hold.
        """
        if importlib.util.find_spec("tensorboard") is None:
            return
        threading.excepthook = self._on_thread_error
        rows = [f"| {_plain(name)} | {_plain(value)} |\n" for name, value in options.items()]
        table = "".join(["| option | value |\n|---|---|\n", *rows])
        try:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(folder), purge_step=step + 1 if step else 0)
        except Exception as error:  # whatever a library can fail with: training does not need it
            self._fail(error)
            return
        self._log(f"events   tensorboard --logdir {shlex.quote(str(folder))}")
        self._write(lambda writer: writer.add_text("options", table, step))

    def tick(self, record: dict[str, Any]) -> None:
        """Write a line of `stats.jsonl`; what is null there is left out."""
        self._scalars(
            {
                f"{GROUPS.get(name, 'other')}/{name}": value
                for name, value in record.items()
                if name != "step"
            },
            record["step"],
        )

    def grid(self, name: str, path: Path, step: int) -> None:
        """Write a PNG under a name, as it was drawn after `step` steps."""

        def add(writer: SummaryWriter) -> None:
            with Image.open(path, formats=("PNG",)) as image:
                writer.add_image(name, np.asarray(image), step, dataformats="HWC")

        self._write(add)

    def metric(self, record: dict[str, Any], step: int) -> None:
        """Write a line of `metrics.jsonl`: the value, its floor, and both at each scale."""
        tag = f"metrics/{record['metric']}"
        scales, floors = record.get("scales") or {}, record.get("floor_scales") or {}
        values = {tag: record["value"], f"{tag}_floor": record.get("floor")}
        values |= {f"{tag}_{scale}": value for scale, value in scales.items()}
        values |= {f"{tag}_{scale}_floor": value for scale, value in floors.items()}
        self._scalars(values, step)

    def close(self) -> None:
        """Write no more; nothing is outstanding."""
        writer, self._writer = self._writer, None
        if writer is not None:
            with suppress(Exception):  # its thread may have died of what was logged before
                writer.close()
        if threading.excepthook == self._on_thread_error:
            threading.excepthook = self._hook

    def _scalars(self, values: dict[str, float | None], step: int) -> None:
        def add(writer: SummaryWriter) -> None:
            for tag, value in values.items():
                if value is not None:
                    writer.add_scalar(tag, value, step)

        self._write(add)

    def _write(self, add: Callable[[SummaryWriter], object]) -> None:
        if self._writer is None:
            return
        try:
            add(self._writer)
            self._writer.flush()  # raises what the writer's thread failed with
        except Exception as error:  # a full disk, or whatever a library can fail with
            self._fail(error)

    def _fail(self, error: Exception) -> None:
        self.close()
        self._log(f"No more TensorBoard events: {first_line(error)}")

    def _on_thread_error(self, failure: threading.ExceptHookArgs) -> None:
        """Show no traceback of the writer's thread: `flush` raises the error, and it is logged."""
        if not type(failure.thread).__module__.startswith("tensorboard."):
            self._hook(failure)


def _plain(value: object) -> str:
    """Text that neither Markdown nor HTML reads anything into, on one line."""
    escaped = html.escape(str(value))
    kept = " ./:,&#;"
    return "".join(c if c.isalnum() or c in kept else f"&#{ord(c)};" for c in escaped)
