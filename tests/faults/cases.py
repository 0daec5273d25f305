"""Kinds of faults, injected, and the table that comes of them."""

import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.faults.lab import FailedError, ImpossibleError, Lab


@dataclass(frozen=True)
class Case:
    """One kind of fault.

    Args:
        fault: what happens, to what.
        inject: does it to something new, demands what must come of it, and tells that in words.
        times: how often, each time at another moment or place.
        quick: the same for a short round.
    """

    fault: str
    inject: Callable[[Lab], str]
    times: int
    quick: int = 1


@dataclass
class Row:
    """What came of a case."""

    fault: str
    faults: int = 0
    """Injected."""
    outcomes: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0
    """The longest of the injections, with all commands that belong to it."""
    total_seconds: float = 0.0
    failures: list[str] = field(default_factory=list)
    impossible: str = ""

    def outcome(self) -> str:
        if self.impossible:
            return f"not possible here: {self.impossible}"
        told = [text for text, _ in self.outcomes.most_common()]
        return "; ".join(told + (["FAILED"] if self.failures else []))


def carry_out(case: Case, folder: Path, seed: int, times: int, mounts: bool) -> Row:
    """Inject a kind of fault so many times.

    Args:
        case: the kind.
        folder: scratch, shared by all cases.
        seed: of everything random.
        times: how often.
        mounts: whether file systems can be mounted.
    """
    row = Row(case.fault)
    for number in range(times):
        begun = time.monotonic()
        # A folder of the same name each time: a set's place is among a run's options
        lab = Lab(folder / "case", folder / "shared", f"{seed}/{case.fault}/{number}", mounts)
        again = f"python -m tests.faults --only {case.fault!r} --seed {seed}\n"
        try:
            row.outcomes[case.inject(lab)] += 1
        except ImpossibleError as error:
            row.impossible = str(error)
        except FailedError as error:
            row.failures.append(f"{again}{error}")
        except Exception:  # the harness's own: the others are injected all the same
            row.failures.append(again + traceback.format_exc())
        finally:
            lab.close()
        row.faults += lab.faults
        seconds = time.monotonic() - begun
        row.seconds, row.total_seconds = max(row.seconds, seconds), row.total_seconds + seconds
    return row


def table(rows: Sequence[Row]) -> Iterator[str]:
    """Lines of Markdown."""
    yield "| fault | times | outcome | seconds at most |"
    yield "|---|---:|---|---:|"
    for row in rows:
        yield f"| {row.fault} | {row.faults} | {row.outcome()} | {row.seconds:.0f} |"


def summary(rows: Sequence[Row]) -> str:
    """Count all faults, and the injections that were not survived."""
    faults, failed = sum(row.faults for row in rows), sum(len(row.failures) for row in rows)
    told = f"{faults} faults injected, "
    told += f"{failed} injections not survived" if failed else f"{faults} survived"
    if out := sum(bool(row.impossible) for row in rows):
        told += f"; {out} {'kind' if out == 1 else 'kinds'} not possible here"
    return told
