"""A part of the report: one command under a time limit, and what came of it."""

from __future__ import annotations

import json
import os
import platform
import re
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from dcgan.checks.findings import without_paths
from tests.running import OF_A_TERMINAL, ROOT

GRACE = 5.0
"""Seconds that a part has after Ctrl-C to tell how far it came, before it is killed."""

TAIL = 5000
"""Characters that are kept of what a part printed: an issue takes 65,536, and ten parts print."""

OK, INTERRUPTED, NOT_REACHED = "ok", "interrupted", "not reached"
CANNOT = "could not run: "
NO_OPTION = "No such option"
"""Typer's words, of a version that cannot do this yet."""


@dataclass(frozen=True)
class Part:
    """One command."""

    name: str
    words: tuple[object, ...]
    """After `python`."""
    seconds: float
    """That it may take."""
    obstacle: str = ""
    """Why it cannot run here, if anything."""
    json: bool = True
    """Whether it takes `--json FILE`."""
    code: Path = ROOT
    """The checkout whose code it runs."""


@dataclass(frozen=True)
class Result:
    """What came of a part, fit to be shown to strangers."""

    name: str
    command: str
    outcome: str
    seconds: float = 0.0
    status: int | None = None
    """Negative, the signal that ended it."""
    printed: str = ""
    found: Any = None
    """The command's JSON."""

    @property
    def failed(self) -> bool:
        return not self.outcome.startswith((OK, CANNOT))


def carry_out(part: Part, limit: float, work: Path) -> Result:
    """Run a part; at the limit, or on Ctrl-C, it ends with all that it started.

    Args:
        part: what to run.
        limit: in seconds.
        work: a folder for its files.
    """
    words = [*map(str, part.words)]
    command = shown(" ".join(["python", *words]))
    if part.obstacle:
        return Result(part.name, command, CANNOT + part.obstacle)
    said, found, temporary = (work / name for name in ("said", "found.json", "tmp"))
    found.unlink(missing_ok=True)
    temporary.mkdir(exist_ok=True)
    kept = {name: value for name, value in os.environ.items() if name not in OF_A_TERMINAL}
    own = {"PYTHONPATH": str(part.code), "PYTHONUNBUFFERED": "1", "TMPDIR": str(temporary)}
    words += ["--json", str(found)] if part.json else []
    began, cut = time.monotonic(), ""
    with said.open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, *words],
            cwd=part.code,
            env=kept | own,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            process.wait(limit)
        except subprocess.TimeoutExpired:
            cut = f"cut off after {limit:.0f} s"
        except KeyboardInterrupt:
            cut = INTERRUPTED
        finally:
            _end(process)
    spent, printed = round(time.monotonic() - began, 1), said.read_text(errors="replace")
    outcome = cut or _outcome(process.returncode, printed)
    facts = None
    with suppress(OSError, ValueError):  # it may not have come to that
        facts = shown(json.loads(found.read_text()))
    printed = shown(printed[-TAIL:])
    return Result(part.name, command, outcome, spent, process.returncode, printed, facts)


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a process and all that it started."""
    below = []
    with suppress(psutil.NoSuchProcess):
        below = psutil.Process(process.pid).children(recursive=True)  # some have left its group
    if process.poll() is None:
        process.send_signal(signal.SIGINT)
        with suppress(subprocess.TimeoutExpired):
            process.wait(GRACE)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    for child in below:
        with suppress(psutil.NoSuchProcess):
            child.kill()
    process.wait()


def _outcome(status: int, printed: str) -> str:
    if status == 0:
        return OK
    for line in printed.splitlines():
        if NO_OPTION in line:
            return CANNOT + line.strip(" │")
    return f"failed with status {status}"


def shown(value: Any) -> Any:
    """Plain values in whose texts no folder outside the checkout is named, nor the machine."""
    if isinstance(value, dict):
        return {name: shown(each) for name, each in value.items()}
    if isinstance(value, list):
        return [shown(each) for each in value]
    if not isinstance(value, str):
        return value
    home = re.escape(os.path.expanduser("~"))  # noqa: PTH111  # Path.home() raises without one
    text = re.sub(rf"{home}(?![\w/.-])", "~", value.replace(f"{ROOT}/", ""))
    # Of what is left of a path, the last part: a temporary folder has its user's name in it
    text = re.sub(r"…/([^\s/'\"`,;:]+/)+", "…/", without_paths(text, ["/dev/shm"]))
    return re.sub(rf"\b{re.escape(platform.node() or 'localhost')}\b", "…", text)
