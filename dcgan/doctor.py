"""`dcgan-doctor`: is everything in order? Also `python -m dcgan.doctor`."""

from __future__ import annotations

import json as json_format
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, TextIO

import typer

from dcgan.checks.findings import Check, Finding, Verdict, count, examine, without_paths
from dcgan.cli import SETTINGS, command, tell_progress
from dcgan.options import DoctorOptions, require_place
from pipeline.errors import plain_errors
from pipeline.files import write_whole, writing
from pipeline.machine import limit_torch_threads

app = typer.Typer()

MARGIN = "  "


@app.command(
    context_settings=SETTINGS,
    epilog="For a bug report: dcgan-doctor --shards shards/ --verify --json report.json.",
)
@command
def doctor(options: DoctorOptions) -> None:
    """Look over this machine, and say in plain words what is wrong and what puts it right."""
    shards, verify, json = options.shards, options.verify, options.json_file
    if json not in (None, "-"):
        require_place("--json", Path(str(json)))
    out = sys.stderr if json == "-" else sys.stdout
    # With --json -, standard output holds the report alone
    checks, environment = _plan(shards, verify, options.device)
    keep = ["/dev/shm", *([str(shards)] if shards is not None else [])]  # noqa: S108, a word
    headings = {"The machine": checks[0], **({"The device": checks[1]} if verify else {})}
    findings = list(_printed(headings, keep, out))
    out.write(f"\n{summary(findings)}\n")
    if json is not None:
        report = as_json(findings, environment, verify)
        # Standard output may have any encoding, and an escaped character would break the JSON
        text = json_format.dumps(report, indent=1, ensure_ascii=json == "-")
        _publish(json, text + "\n")
    raise typer.Exit(1 if _failed(findings) else 0)


def _plan(
    shards: Path | None, verify: bool, device: str
) -> tuple[tuple[list[Check], list[Check]], dict[str, Any]]:
    """The checks to make, and the environment; loads torch, if there is one."""
    from dcgan.checks import machine
    from dcgan.checks.probes import why_no_torch

    if (obstacle := why_no_torch()) is not None:
        return (machine.without_torch(obstacle, verify), []), {}
    from dcgan.rundir.environment import describe_environment, pick_device

    limit_torch_threads()
    chosen = pick_device(device)
    environment = describe_environment(chosen)
    del environment["command"]  # it begins with the path of somebody's Python
    proofs = []
    if verify:
        from dcgan.checks import verify as proving

        proofs = proving.checks(chosen, tell_progress)
    return (machine.checks(chosen, shards), proofs), environment


def _printed(
    headings: dict[str, list[Check]], keep: Sequence[str], out: TextIO
) -> Iterator[Finding]:
    """Make the checks, and print each group's lines as soon as its columns are known."""
    for heading, checks in headings.items():
        findings = [_shown(finding, keep) for finding in examine(checks)]
        if findings:
            out.write(f"\n{heading}\n{table(findings)}\n")
            out.flush()
        yield from findings


def _shown(finding: Finding, keep: Sequence[str]) -> Finding:
    return replace(
        finding,
        found=without_paths(finding.found, keep),
        wanted=without_paths(finding.wanted, keep),
        remedy=without_paths(finding.remedy, keep),
    )


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
    counts = ", ".join(f"{number} {verdict}" for verdict, number in count(findings).items())
    if _failed(findings):
        return f"{counts}: something is wrong; see the lines marked FAIL"
    if any(finding.verdict is Verdict.WARNING for finding in findings):
        return f"{counts}: nothing is wrong, but see the warnings"
    return f"{counts}: nothing that was checked is wrong"


def as_json(
    findings: Sequence[Finding], environment: dict[str, Any], verified: bool
) -> dict[str, Any]:
    """Plain values, for a bug report."""
    return {
        "program": "dcgan-doctor",
        "verified": verified,
        "verdict": "FAIL" if _failed(findings) else "ok",
        "counts": count(findings),
        "environment": environment,
        "findings": [asdict(finding) for finding in findings],
    }


def _failed(findings: Sequence[Finding]) -> bool:
    return any(finding.verdict is Verdict.FAIL for finding in findings)


def _publish(json: str, text: str) -> None:
    if json == "-":
        sys.stdout.write(text)
        return
    with writing(f"--json {json}"):
        write_whole(Path(json), text.encode())


def main() -> None:
    """Run the command line."""
    with plain_errors():
        app()


if __name__ == "__main__":
    main()
