"""What `dcgan-doctor` finds: one line for each thing that it looked at. Loads nothing heavy."""

from __future__ import annotations

import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path

from pipeline import errors
from pipeline.errors import UserError


class Verdict(StrEnum):
    """How a line ends; only a FAIL makes the exit status 1."""

    OK = "ok"
    WARNING = "warning"
    FAIL = "FAIL"
    NOT_CHECKED = "not checked"


@dataclass(frozen=True)
class Finding:
    """One line of the report."""

    name: str
    """Names what was looked at. Where it is empty, `examine` takes the check's own name."""
    verdict: Verdict
    found: str
    """The figure, or what is there; of what was not checked, the reason."""
    wanted: str = ""
    """The threshold, or what would be right."""
    remedy: str = ""
    """What to do, where something is wrong."""


@dataclass(frozen=True)
class Check:
    """Something to look at."""

    name: str
    look: Callable[[], Finding | Iterable[Finding]]
    """Gives one line or several, and may raise."""
    wanted: str = ""
    """What would be right, for those findings that do not say it."""
    obstacle: str | None = None
    """What this machine lacks for it, if anything: then nobody looks."""


def ok(found: str, wanted: str = "", name: str = "") -> Finding:
    """A line for what is as it should be."""
    return Finding(name, Verdict.OK, found, wanted)


def warning(found: str, remedy: str, wanted: str = "") -> Finding:
    """A line for what lets training work, but not as well as it could."""
    return Finding("", Verdict.WARNING, found, wanted, remedy)


def fail(found: str, remedy: str, wanted: str = "", name: str = "") -> Finding:
    """A line for what keeps training from working, or from being right."""
    return Finding(name, Verdict.FAIL, found, wanted, remedy)


def not_checked(reason: str, wanted: str = "") -> Finding:
    """A line for a check that needs what this machine lacks: it says nothing, good or bad."""
    return Finding("", Verdict.NOT_CHECKED, reason, wanted)


def examine(checks: Sequence[Check]) -> Iterator[Finding]:
    """Look at everything; a check that raises is a FAIL, and the others are still made."""
    for check in checks:
        for finding in _look(check):
            if finding.name:  # a line of its own
                yield finding
            else:
                yield replace(finding, name=check.name, wanted=finding.wanted or check.wanted)


def _look(check: Check) -> Iterator[Finding]:
    if check.obstacle is not None:
        yield not_checked(check.obstacle)
        return
    count = 0
    try:
        looked = check.look()
        for finding in [looked] if isinstance(looked, Finding) else looked:
            count += 1
            yield finding
    except UserError as error:
        yield fail(f"{error.where}: {error.found}", error.remedy, error.wanted)
    except Exception as error:  # whatever it is, it is what this command is there to tell
        remedy = "send this report with what you did: dcgan-doctor --verify --json report.json"
        yield fail(first_line(error), remedy, "a check that ends")
    else:
        if not count:  # else a loop over nothing would look like a success
            yield fail("the check found nothing", "report this", "a line at least")


def first_line(error: BaseException) -> str:
    """What an exception says, in one line."""
    return f"{type(error).__name__}: {errors.first_line(error)}"


_ABSOLUTE = re.compile(r"(?<![\w./:~…])/(?:[^\s/'\"`,;:]+/)+")


def without_paths(text: str, keep: Sequence[str]) -> str:
    """Shorten absolute paths to their last part: a report is to be shown to strangers.

    Those in `keep` stay, since the user has typed them.
    """
    kept = {f"\0{place}\0": path for place, path in enumerate(keep) if path}
    for mark, path in kept.items():
        text = text.replace(path, mark)
    folders = (tempfile.gettempdir(), sys.prefix, str(Path.cwd()), os.path.expanduser("~"))  # noqa: PTH111  # Path.home() raises where there is none
    for folder in sorted(folders, key=len, reverse=True):  # they may have spaces in their names
        if folder.count("/") > 1 or folder == tempfile.gettempdir():
            text = text.replace(folder + "/", "…/")
    text = _ABSOLUTE.sub("…/", text)
    for mark, path in kept.items():
        text = text.replace(mark, path)
    return text
