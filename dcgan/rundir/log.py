"""A run's log: on the terminal, where a live bar shows the progress, and in `log.txt`."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TextIO

from rich.console import Console

from dcgan.cli import progress
from pipeline.errors import plain


class Log:
    """Prints lines, unless quiet. From `write_to` on, the file has them too, earlier ones first."""

    def __init__(self, quiet: bool = False) -> None:
        self._console = Console(
            highlight=False, markup=False, emoji=False, soft_wrap=True, quiet=quiet
        )
        self._lines: list[str] = []
        self._file: TextIO | None = None

    def __call__(self, text: str = "") -> None:
        self._console.print(_plain(text))
        self.write(text)

    def write(self, text: str) -> None:
        """Write lines into the file alone."""
        text = _plain(text)
        if self._file is None:
            self._lines.append(text)
        else:
            self._file.write(text + "\n")
            self._file.flush()

    def write_to(self, path: Path) -> None:
        if self._file is not None:
            return
        self._file = path.open("a", encoding="utf-8")
        self._file.writelines(line + "\n" for line in self._lines)
        self._lines.clear()

    def close(self) -> None:
        if self._file is not None:
            self._file.close()

    def progress(self, total: int, done: int = 0) -> AbstractContextManager[Callable[[], None]]:
        """Show a bar below the lines on a terminal; see `dcgan.cli.progress`."""
        return progress(self._console, "training", total, done)


def _plain(text: str) -> str:
    # A line may have names from a file in it; line breaks are ours
    return "\n".join(map(plain, text.split("\n")))
