"""Cases carried out, and the table that comes of them."""

import shutil
import time
import traceback
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.faults.cases import Case
from tests.faults.harm import BALLOON
from tests.faults.lab import FailedError, ImpossibleError, Lab


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
    injections: int = 0
    """Each of one fault, or of several in succession."""
    failed: int = 0
    """Injections that were not survived."""
    impossible: str = ""

    def outcome(self) -> str:
        if self.impossible:
            return f"not possible here: {self.impossible}"
        told = [text for text, _ in self.outcomes.most_common()]
        return "; ".join(told + (["FAILED"] if self.failures else []))


@dataclass(frozen=True)
class Round:
    """How the cases are carried out.

    Args:
        folder: scratch.
        seed: of everything random.
        quick: fewer times.
        mounts: whether file systems can be mounted.
        number: do this one of a case's injections alone; None for all of them.
    """

    folder: Path
    seed: int
    quick: bool
    mounts: bool
    number: int | None = None

    def carry_out(self, case: Case) -> Row:
        row = Row(case.fault)
        times = case.quick if self.quick else case.times
        for number in range(times) if self.number is None else [self.number]:
            self._inject(case, number, row)
        return row

    def _inject(self, case: Case, number: int, row: Row) -> None:
        begun = time.monotonic()
        # A folder of the same name each time: a set's place is among a run's options
        lab = Lab(
            self.folder / "case",
            self.folder / "shared",
            f"{self.seed}/{case.fault}/{number}",
            self.mounts,
        )
        try:
            row.outcomes[case.inject(lab)] += 1
        except ImpossibleError as error:
            row.impossible = str(error)
        except FailedError as error:
            self._fail(case, number, row, str(error))
        except Exception:  # the harness's own: the others are injected all the same
            self._fail(case, number, row, traceback.format_exc())
        finally:
            lab.close()
        row.faults += lab.faults
        row.injections += not row.impossible
        seconds = time.monotonic() - begun
        row.seconds, row.total_seconds = max(row.seconds, seconds), row.total_seconds + seconds

    def _fail(self, case: Case, number: int, row: Row, told: str) -> None:
        row.failed += 1
        again = f"--only {case.fault!r} --seed {self.seed} --number {number}"
        row.failures.append(f"python -m tests.faults {again}\n{told}")
        self._keep(number, case)

    def _keep(self, number: int, case: Case) -> None:
        """What a failure left, to be looked at; without what is mounted."""
        place = (
            self.folder / "failed" / f"{case.fault.replace(' ', '-').replace('/', '-')}-{number}"
        )
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(self.folder / "case", place, ignore=shutil.ignore_patterns(BALLOON))


def table(rows: Sequence[Row]) -> Iterator[str]:
    """Lines of Markdown."""
    yield "| fault | times | outcome | seconds at most |"
    yield "|---|---:|---|---:|"
    for row in rows:
        yield f"| {row.fault} | {row.faults} | {row.outcome()} | {row.seconds:.0f} |"


def summary(rows: Sequence[Row]) -> str:
    """Count all faults; an injection that was not survived fails for all of its own."""
    faults = sum(row.faults for row in rows)
    failed, injections = sum(row.failed for row in rows), sum(row.injections for row in rows)
    told = f"{faults} faults injected, "
    told += f"{failed} of {injections} injections not survived" if failed else f"{faults} survived"
    if out := sum(bool(row.impossible) for row in rows):
        told += f"; {out} {'kind' if out == 1 else 'kinds'} not possible here"
    return told
