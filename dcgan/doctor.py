"""`dcgan-doctor`: is everything in order? Also `python -m dcgan.doctor`."""

from __future__ import annotations

import json as json_format
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import typer

from dcgan.checks.findings import Check, Finding, Verdict, examine, without_paths
from dcgan.checks.system import why_no_torch, without_torch
from dcgan.cli import SETTINGS, Command, command, tell_progress
from dcgan.options import DoctorOptions, require_place
from pipeline.errors import plain_errors
from pipeline.files import write_whole, writing
from pipeline.machine import limit_torch_threads

app = typer.Typer()

MARGIN = "  "


@app.command(
    cls=Command,
    context_settings=SETTINGS,
    epilog="For a bug report: dcgan-doctor --shards shards/ --verify --json report.json.",
)
@command
def doctor(options: DoctorOptions) -> None:
    """Look over this machine, and say in plain words what is wrong and what puts it right."""
    json = options.json_file
    if json not in (None, "-"):
        require_place("--json", Path(str(json)))
    # With --json -, standard output holds the report alone
    out = sys.stderr if json == "-" else sys.stdout
    groups, environment = _plan(options)
    keep = ["/dev/shm"]  # noqa: S108, a word
    keep += [str(each) for each in (options.shards, options.shard_cache) if each is not None]
    findings = []
    for heading, checks in groups.items():
        # Each group's lines are printed as soon as its columns are known
        found = [_shown(finding, keep) for finding in examine(checks)]
        out.write(f"\n{heading}\n{table(found)}\n")
        out.flush()
        findings += found
    out.write(f"\n{summary(findings)}\n")
    if json is not None:
        report = as_json(findings, environment, options.verify)
        # Standard output may have any encoding, and an escaped character would break the JSON
        text = json_format.dumps(report, indent=1, ensure_ascii=json == "-") + "\n"
        if json == "-":
            sys.stdout.write(text)
        else:
            with writing(f"--json {json}"):
                write_whole(Path(json), text.encode())
    raise typer.Exit(1 if count(findings)[Verdict.FAIL] else 0)


def _plan(options: DoctorOptions) -> tuple[dict[str, list[Check]], dict[str, Any]]:
    """The checks to make, by heading, and the environment; loads torch, if there is one."""
    if (obstacle := why_no_torch()) is not None:
        return {"The machine": without_torch(obstacle, options.verify)}, {}
    from dcgan.checks import machine
    from dcgan.rundir.environment import describe_environment, pick_device

    limit_torch_threads()
    device = pick_device(options.device)
    environment = describe_environment(device)
    del environment["command"]  # it begins with the path of somebody's Python
    groups = {"The machine": machine.checks(device, options)}
    if options.verify:
        from dcgan.checks import verify

        groups["The device"] = verify.checks(device, tell_progress)
    return groups, environment


def _shown(finding: Finding, keep: Sequence[str]) -> Finding:
    found, wanted, remedy = (
        without_paths(text, keep) for text in (finding.found, finding.wanted, finding.remedy)
    )
    return replace(finding, found=found, wanted=wanted, remedy=remedy)


def table(findings: Sequence[Finding]) -> str:
    """Lines in columns: name, verdict, what was found, what is wanted; a remedy stands below."""
    names = max(len(finding.name) for finding in findings)
    verdicts = max(len(finding.verdict) for finding in findings)
    founds = max((len(each.found) for each in findings if each.wanted), default=0)
    founds = min(founds, 60)  # one long line is not to push all the others apart
    lines = []
    for finding in findings:
        columns = (finding.name.ljust(names), finding.verdict.ljust(verdicts))
        wanted = f"{MARGIN}wanted: {finding.wanted}" if finding.wanted else ""
        found = finding.found.ljust(founds) if wanted else finding.found
        lines.append(MARGIN.join((*columns, found)) + wanted)
        if finding.remedy:
            lines.append(" " * names + f"{MARGIN}→ {finding.remedy}")
    return "\n".join(MARGIN + line for line in lines)


def summary(findings: Sequence[Finding]) -> str:
    """The last line: the counts, and what they mean."""
    counted = count(findings)
    counts = ", ".join(f"{number} {verdict}" for verdict, number in counted.items())
    if counted[Verdict.FAIL]:
        return f"{counts}: something is wrong; see the lines marked FAIL"
    if counted[Verdict.WARNING]:
        return f"{counts}: nothing is wrong, but see the warnings"
    return f"{counts}: nothing that was checked is wrong"


def count(findings: Sequence[Finding]) -> dict[str, int]:
    """How many lines there are of each verdict."""
    verdicts = [finding.verdict for finding in findings]
    return {verdict.value: verdicts.count(verdict) for verdict in Verdict}


def as_json(
    findings: Sequence[Finding], environment: dict[str, Any], verified: bool
) -> dict[str, Any]:
    """Plain values, for a bug report."""
    counts = count(findings)
    return {
        "program": "dcgan-doctor",
        "verified": verified,
        "verdict": "FAIL" if counts[Verdict.FAIL] else "ok",
        "counts": counts,
        "environment": environment,
        "findings": [asdict(finding) for finding in findings],
    }


def main() -> None:
    """Run the command line."""
    with plain_errors():
        app()


if __name__ == "__main__":
    main()
