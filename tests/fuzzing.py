"""Hostile files: strategies that make them, and what every reader owes its caller all the same."""

import copy
import json
import resource
import signal
import tracemalloc
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

cases: Counter[str] = Counter()
"""How many inputs were tried, by the reader that had to take them."""

MOST_BYTES = 64 << 20
"""Of memory that a reader of a file of a few kilobytes may take."""

MOST_SECONDS = 20


class HangError(BaseException):
    """A reader takes too long; no `except Exception` hides it."""


def some(share: float) -> settings:
    """A share of the profile's examples, for what takes longer than others."""
    profile = settings.default or settings()
    return settings(
        max_examples=max(5, round(profile.max_examples * share)),
        database=None,  # what a reader took once is no news to the next
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    )


def survives(name: str, call: Callable[[], object], *allowed: type[Exception]) -> Any:
    """Call a reader: what it gives, or its error if that is one that it documents.

    A failure of the test: any other error, more than `MOST_BYTES`, more than `MOST_SECONDS`.
    """
    cases[name] += 1
    tracemalloc.start()
    try:
        with _in_time():
            return call()
    except allowed as error:
        return error
    finally:
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < MOST_BYTES, f"{name} took {peak:,} bytes"


@contextmanager
def _in_time() -> Iterator[None]:
    def ring(*_: object) -> None:
        raise HangError

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(MOST_SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@contextmanager
def address_space(more: int) -> Iterator[None]:
    """Let this process map so many bytes more, and no more: torch's memory is not traced."""
    with open("/proc/self/statm") as file:  # noqa: PTH123
        mapped = int(file.read().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (mapped + more, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


PIECES = st.one_of(
    st.binary(max_size=16),
    st.sampled_from([b"\0" * 8, b"\xff" * 8, b"\x7f" + b"\xff" * 7, b"-1", b"9" * 30, b"PK\3\4"]),
    st.sampled_from([b"1 path=../../x\n", b"0" * 12, b"\x80" + b"\0" * 10 + b"\1", b"7" * 11]),
)


@st.composite
def changed_bytes(draw: st.DrawFn, whole: bytes) -> bytes:
    """A valid file, cut, flipped, spliced, overwritten; or any bytes at all."""
    if draw(st.integers(0, 19)) == 0:
        return draw(st.binary(max_size=2000))
    data = bytearray(whole)
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.integers(0, max(0, len(data) - 1)))
        piece = draw(PIECES)
        match draw(st.sampled_from(["cut", "flip", "put", "over", "copy"])):
            case "cut":
                del data[place:]
            case "flip" if data:
                data[place] ^= 1 << draw(st.integers(0, 7))
            case "put":
                data[place:place] = piece
            case "over":
                data[place : place + len(piece)] = piece
            case "copy":
                other = draw(st.integers(0, max(0, len(data) - 1)))
                size = draw(st.integers(0, 600))
                data[place : place + size] = data[other : other + size]
    return bytes(data)


DEEP = "\ue000"
"""Stands for a thousand lists in each other, which `json.dumps` cannot write."""

VALUES = st.one_of(
    st.sampled_from(
        [None, True, False, 0, -1, 1, 2**31, 2**63, 2**64, -(2**63), 10**400, 10**4000]
    ),
    st.sampled_from([0.5, -0.5, 1e308, float("nan"), float("inf"), -float("inf")]),
    st.sampled_from(["", "\ud800", "\0", "../../etc/passwd", "/dev/zero", "x" * 100_000, DEEP]),
    st.sampled_from(["cuda:99999999999", "pipe:id", "</script><script>alert(1)</script>", "1e9"]),
    st.sampled_from([[], {}, [[]], {"": {}}, [0] * 1000, {"a": [{}]}]),
    st.text(max_size=8),
    st.integers(),
    st.floats(),
)


@st.composite
def changed_json(draw: st.DrawFn, value: Any) -> str:
    """A valid object with some of its values replaced, gone, or there twice."""
    value = copy.deepcopy(value)
    for _ in range(draw(st.integers(1, 3))):
        holder, key = draw(st.sampled_from(_places(value))) if _places(value) else ({}, "a")
        match draw(st.sampled_from(["replace", "replace", "replace", "remove", "add"])):
            case "replace":
                holder[key] = copy.deepcopy(draw(VALUES))
            case "remove" if holder:
                del holder[key]
            case "add" if isinstance(holder, dict):
                holder[draw(st.text(max_size=5))] = copy.deepcopy(draw(VALUES))
    text = json.dumps(value).replace(json.dumps(DEEP), "[" * 1000 + "]" * 1000)
    if draw(st.booleans()) and text.endswith("}"):
        name = draw(st.sampled_from(list(value) or ["a"]))
        text = f"{text[:-1]}, {json.dumps(name)}: {json.dumps(draw(VALUES))}}}"
    return text


def _places(value: Any) -> list[tuple[Any, Any]]:
    """Every holder and key in it."""
    found: list[tuple[Any, Any]] = []
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, each in items:
        found.append((value, key))
        if isinstance(each, dict | list):
            found += _places(each)
    return found
