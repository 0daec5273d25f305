"""`python -m tests.faults`: inject faults into the real commands, and tell what came of them."""

import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import typer

from pipeline.errors import UserError, plain_errors
from pipeline.files import write_whole
from pipeline.machine import usable_cores
from tests.faults import damage, disks, exports, kills, numbers, parts, ranks, stores
from tests.faults.cases import Row, carry_out, summary, table
from tests.faults.lab import LIMIT, SHARED_MEMORY

MODULES = (kills, parts, ranks, disks, damage, numbers, stores, exports)
CASES = tuple(case for module in MODULES for case in module.CASES)
INSIDE = "DCGAN_FAULTS_INSIDE"
"""Set in a process whose mounts nobody else sees, and which vanish with it."""

BEGIN, END = "<!-- table -->", "<!-- end -->"
"""The marks in the page between which the results stand."""

app = typer.Typer(add_completion=False)


@app.command()
def faults(
    quick: Annotated[bool, typer.Option("--quick", help="Each kind once or a few times.")] = False,
    only: Annotated[
        list[str] | None, typer.Option(help="The kinds whose name holds this text.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of moments, places and bits.")] = 0,
    out: Annotated[Path | None, typer.Option(help="Put the table into this page.")] = None,
) -> None:
    """Inject faults into the real commands, and demand what each must come to.

    Exits with status 1, and names the command that shows it again, if one was not survived.
    """
    cases = [case for case in CASES if not only or any(text in case.fault for text in only)]
    if not cases:
        names = "\n          ".join(case.fault for case in CASES)
        raise UserError(f"--only {only}", "no such fault", f"one of\n          {names}", "choose")
    mounts = _mount_shared_memory()
    rows = []
    with tempfile.TemporaryDirectory(prefix="faults-") as folder:
        for case in cases:
            times = case.quick if quick else case.times
            rows.append(carry_out(case, Path(folder).resolve(), seed, times, mounts))
            _tell(rows[-1])
    sys.stdout.write("\n" + "\n".join(table(rows)) + f"\n\n{summary(rows)}\n")
    if any(row.failures for row in rows):
        raise typer.Exit(1)
    if out is not None:
        write_whole(out, _updated(out.read_text(), rows, seed).encode())


def _updated(page: str, rows: Sequence[Row], seed: int) -> str:
    """The page with these results between its marks."""
    made = f"{platform.system()}, {usable_cores()} cores ({platform.machine()}), Python"
    made += f" {platform.python_version()}, torch {version('torch')}, seed {seed}"
    minutes = sum(row.total_seconds for row in rows) / 60
    told = [
        *table(rows),
        "",
        f"**{summary(rows)}**, in {minutes:.0f} minutes, on {made}. A command that had not ended",
        f"after {LIMIT} seconds would have failed.",
    ]
    before, _, after = page.partition(BEGIN)
    return "\n".join([before + BEGIN, *told, END + after.partition(END)[2]])


def _tell(row: Row) -> None:
    sys.stdout.write(f"{row.total_seconds:5.0f} s  {row.faults:3}  {row.fault}: {row.outcome()}\n")
    for failure in row.failures:
        sys.stdout.write(f"\n{failure}\n\n")
    sys.stdout.flush()


def _mount_shared_memory() -> bool:
    """Shared memory of our own, in which nobody else's comes and goes; whether that worked."""
    if INSIDE not in os.environ:
        return False
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", SHARED_MEMORY], check=True)
    return True


def _go_inside() -> None:
    """Become a process with mounts of its own, if the system lets us."""
    if INSIDE in os.environ or shutil.which("unshare") is None:
        return
    for more in ([], ["--map-root-user"]):  # as root; as a user in a name space of their own
        words = ["unshare", "--mount", "--propagation", "private", *more]
        if subprocess.run([*words, "true"], capture_output=True, check=False).returncode == 0:
            again = [*words, sys.executable, "-m", "tests.faults", *sys.argv[1:]]
            os.execvpe(words[0], again, os.environ | {INSIDE: "1"})


def main() -> None:
    """Run the command line."""
    _go_inside()
    with plain_errors():
        app()


if __name__ == "__main__":
    main()
