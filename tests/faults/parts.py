"""Sets that are packed in parts: parts and whoever finishes them killed, and those that differ."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path

from tests.fault_store import FaultStore
from tests.faults.cases import Case
from tests.faults.kills import a_blow, packed
from tests.faults.lab import (
    KILL,
    Ended,
    FailedError,
    ImpossibleError,
    Lab,
    Moment,
    after,
    appears,
    never,
)
from tests.faults.runs import CLEAR, EXACT, packing
from tests.packing_runs import tree
from tests.running import run_command

PARTS = 3

Where = tuple[list[object], Path]
"""The words that name a place, and the folder in which its files or objects lie."""

Place = Callable[[Lab], AbstractContextManager[Where]]


@contextmanager
def _folder(lab: Lab) -> Iterator[Where]:
    yield ["--out", lab.folder / "set"], lab.folder / "set"


@contextmanager
def _store(lab: Lab) -> Iterator[Where]:
    (lab.folder / "root" / "bucket").mkdir(parents=True)
    with FaultStore(lab.folder / "root") as store:
        where: list[object] = ["--out", "s3://bucket/set", "--endpoint", store.url]
        yield where, lab.folder / "root" / "bucket" / "set"


def _machine(words: list[object], machine: object) -> list[object]:
    """The words of one of several machines: each has a cache of its own."""
    return [*words, "--shard-cache", f"cache-{machine}"] if "--endpoint" in words else words


def _make(
    lab: Lab, words: list[object], *more: object, machine: object = 0, at: Moment = never
) -> Ended:
    command = [*packing(lab), *_machine(words, machine), *more]
    return lab.run(*command, at=at, do=a_blow(lab.random)).plain()


def _part(lab: Lab, words: list[object], number: int) -> None:
    _make(lab, words, "--part", f"{number}/{PARTS}", machine=number).finished()


def _moment(lab: Lab, there: Path) -> Moment:
    """While a part begins, packs or records; or while the set is joined."""
    draw, records = lab.random, len(list(there.glob(".packing/**/shard-*.json")))
    patterns = (".packing/**/plan.json", "*.tar.partial", "samples.csv*", "manifest.json*")
    moments = (
        after(draw.uniform(0.05, 2)),
        appears(there, ".packing/**/shard-*.json", records + draw.randint(1, 5)),
        appears(there, draw.choice(patterns)),
    )
    return draw.choice(moments)


def _killed(lab: Lab, place: Place) -> str:
    """Parts in a random order, each killed now and then; so is whoever finishes the set."""
    wanted = packed(lab)
    with place(lab) as (words, there):
        for number in lab.random.sample(range(PARTS), PARTS):
            part = ("--part", f"{number}/{PARTS}")
            for _ in range(2):
                _make(lab, words, *part, machine=number, at=_moment(lab, there))
            _part(lab, words, number)
        _make(lab, words, "--finish", at=_moment(lab, there))
        ended = _make(lab, words, "--finish", machine=lab.random.choice((0, 9)))
        if ended.status:  # it was killed after the manifest
            ended.refused("a complete shard set")
        _require_same(there, wanted)
    return EXACT


def _two_finish(lab: Lab, place: Place) -> str:
    wanted = packed(lab)
    with place(lab) as (words, there):
        for number in range(PARTS):
            _part(lab, words, number)
        with ThreadPoolExecutor() as threads:
            commands = [[*packing(lab), *_machine(words, each), "--finish"] for each in (0, 1)]
            running = [threads.submit(run_command, *each, cwd=lab.folder) for each in commands]
        lab.faults += 1
        for done in (each.result() for each in running):
            told = "another process is packing" in done.stderr or "a complete" in done.stderr
            if done.returncode and not told:
                raise FailedError(done.stdout + done.stderr)
        _require_same(there, wanted)
    return EXACT


def _another_plan(lab: Lab, place: Place) -> str:
    """A part with another seed, another number of parts, or of fewer images."""
    wanted = packed(lab)
    with place(lab) as (words, there):
        _part(lab, words, 0)
        before = tree(there)
        other, named = lab.random.choice(
            ((["--seed", 1], "seed 0"), (["--limit", 2399], "images 2400"), ([], "parts 3"))
        )
        part = "1/3" if other else "1/4"
        _make(lab, words, "--part", part, *other, machine=1).refused("other options", named)
        lab.faults += 1
        if tree(there) != before:
            raise FailedError("something has changed")
        for number in range(1, PARTS):
            _part(lab, words, number)
        _make(lab, words, "--finish").finished()
        _require_same(there, wanted)
    return CLEAR


def _missing(lab: Lab, place: Place) -> str:
    wanted, missing = packed(lab), lab.random.randrange(PARTS)
    with place(lab) as (words, there):
        for number in {*range(PARTS)} - {missing}:
            _part(lab, words, number)
        ended = _make(lab, words, "--finish", machine=8)
        ended.refused("1 of 3 parts", f"--part {missing}/{PARTS}")
        lab.faults += 1
        _part(lab, words, missing)
        _make(lab, words, "--finish", machine=9).finished()
        _require_same(there, wanted)
    return CLEAR


def _driver_killed(lab: Lab) -> str:
    """Of a local Ray cluster, which ends with it."""
    try:
        import ray  # noqa: F401
    except ImportError:
        raise ImpossibleError("Ray is not installed") from None
    wanted, out = packed(lab), lab.folder / "set"
    command = [*packing(lab), "--out", out, "--ray", "local", "--workers", 2]
    at = appears(out, ".packing/shard-*.json", lab.random.randint(1, 10))
    lab.run(
        *command, at=at, do=KILL, patience=120, leaves="ray-*"
    )  # Ray's own agents take a minute
    lab.run(*command).finished()
    _require_same(out, wanted)
    return EXACT


def _require_same(there: Path, wanted: Path) -> None:
    if tree(there) != tree(wanted):
        raise FailedError(f"another set than without a fault: {sorted(tree(there))}")


CASES = (
    *(
        Case(f"{fault} in a {name}", partial(inject, place=place), times)
        for name, place in (("folder", _folder), ("store", _store))
        for fault, inject, times in (
            ("parts and their finish ended by a signal", _killed, 3),
            ("two that finish a set", _two_finish, 2),
            ("part of another plan", _another_plan, 2),
            ("part missing at the finish", _missing, 1),
        )
    ),
    Case("driver of a Ray cluster killed", _driver_killed, 1),
)
