"""`dcgan-report`: what a run did, as one page. Also `python -m dcgan.report`."""

from __future__ import annotations

import sys
from pathlib import Path

import typer

from dcgan.cli import SETTINGS, PlainArguments, command
from dcgan.options import ReportOptions, require_place
from dcgan.rundir.folder import RunFolder
from pipeline.errors import UserError, plain_errors
from pipeline.files import write_whole, writing

app = typer.Typer()

COMPARISON = Path("comparison.html")
"""Where a comparison goes by default."""


@app.command(
    cls=PlainArguments,
    context_settings=SETTINGS,
    epilog="For example: dcgan-report runs/0001, or dcgan-report runs/* --out comparison.html.",
)
@command
def report(options: ReportOptions) -> None:
    """Write what a run did as one HTML page, which needs no network and no other file."""
    runs, out = options.runs, options.out
    page = out or (RunFolder(runs[0]).report if len(runs) == 1 else COMPARISON)
    if out is not None and out.suffix.lower() not in (".html", ".htm"):
        raise UserError(
            f"--out {out}", "no name of a page", "a file whose name ends in .html", "rename it"
        )
    if out is not None:
        require_place("--out", out)
    write_page(runs, page)
    sys.stdout.write(f"report   {page}\n")


def write_page(runs: list[Path], out: Path) -> None:
    """Read runs, and write the report of one or the comparison of several, whole or not at all.

    Raises:
        UserError: a folder is no run, is given twice, or the page cannot be written.
    """
    from dcgan.reporting.compare import MOST_RUNS, comparison_page
    from dcgan.reporting.page import run_page
    from dcgan.reporting.read import read_runs

    if len(runs) > MOST_RUNS:
        raise UserError(
            "RUN...",
            f"{len(runs)} runs",
            f"at most {MOST_RUNS}, whose curves can be told apart",
            "compare fewer",
        )
    records = read_runs(runs)
    one = len(records) == 1
    page = run_page(records[0], out.parent) if one else comparison_page(records)
    with writing(out, remedy="choose another --out"):
        # A name or a value may hold half a character, which UTF-8 cannot say
        write_whole(out, page.encode(errors="replace"))


def main() -> None:
    """Run the command line."""
    with plain_errors():
        app()


if __name__ == "__main__":
    main()
