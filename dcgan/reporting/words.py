"""Numbers and values as a report's reader sees them."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

ABSENT = "–"

LONGEST = 300
"""Characters of one value that are shown: a damaged file is not to fill the page."""

MOST_ROWS = 200
"""Rows of one table that are shown."""


def number(value: float | None, digits: int = 4) -> str:
    """With `digits` significant figures and separated thousands."""
    if value is None:
        return ABSENT
    if not math.isfinite(value) or value == 0:
        return str(value) if value else "0"
    size = math.floor(math.log10(abs(value)))
    if not -4 <= size < 12:
        return f"{value:.{digits - 1}e}"
    return f"{value:,.{max(0, digits - 1 - size)}f}"


def percent(value: float | None) -> str:
    """With one decimal."""
    return ABSENT if value is None else f"{value:.1f} %"


def count(value: int | None) -> str:
    """A whole number with separated thousands."""
    return ABSENT if value is None else f"{value:,}"


def duration(seconds: float | None) -> str:
    """Hours, minutes and seconds."""
    if seconds is None or not math.isfinite(seconds):
        return ABSENT
    return str(timedelta(seconds=round(min(seconds, 1e12))))


def short(text: object, longest: int = LONGEST) -> str:
    """Cut where it is too long to show."""
    whole = str(text)
    return whole if len(whole) <= longest else whole[:longest] + "…"


def label(name: str) -> str:
    """A name that fits a legend on a phone; the ends of long names differ more than the middles."""
    return name if len(name) <= 28 else f"{name[:13]}…{name[-14:]}"


def plain(value: Any) -> str:
    """An option's value, much as a command line would have it."""
    if value is None:
        return "not given"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list) and all(isinstance(word, str) for word in value):
        return short(shlex.join(value))
    return short(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))


def flat(values: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Names and values, the names of inner ones after their outer one's."""
    rows: list[tuple[str, str]] = []
    for name, value in values.items():
        if isinstance(value, dict):
            rows += [(short(f"{name}: {inner}"), plain(each)) for inner, each in value.items()]
        else:
            rows.append((short(name), plain(value)))
    return rows[:MOST_ROWS]
