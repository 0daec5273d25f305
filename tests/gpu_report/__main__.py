"""`python -m tests.gpu_report`, or `make gpu-report`: what a GPU shows of this project, to be sent.

Tests, checks and measurements by the project's own commands, the most valuable first. The report is
written anew after each: an interrupted one is still a report. Without a GPU this is a rehearsal,
with small sizes.
"""

from __future__ import annotations

import json
import signal
import subprocess
import tarfile
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from io import BytesIO
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import typer

from pipeline.errors import plain_errors
from pipeline.files import write_whole
from tests.gpu_report.parts import GRACE, INTERRUPTED, NOT_REACHED, Part, Result, carry_out
from tests.needs import OBSTACLES
from tests.running import ROOT, TINY, flags

LEAST_SECONDS = 5
"""A part that would have fewer is not begun."""

RELEASE = "7d4ef05"
"""The last commit before layers had forms: what stands for the last release while no tag does."""

STEP = "the step"

PAGE, DATA = "gpu-report.md", "gpu-report.json"

INTRODUCTION = """\
Made by `make gpu-report`. To send it, open an issue of the project, paste this page, and attach
`gpu-report.json`, which holds the same and every single measurement. Both name the GPU, the CPU,
the system, versions of packages and a commit, and have what the commands below printed; the
pictures were drawn for it. Folders are shortened to "…", and so is the name of the machine.
"""


def unpack(commit: str, folder: Path) -> str:
    """Write the files of a commit into a new folder; git's records stay as they are.

    Returns:
        "", or why there is no such commit here.
    """
    try:
        made = subprocess.run(["git", "-C", ROOT, "archive", commit], capture_output=True)
    except OSError as error:
        return f"no git ({error.strerror})"
    if made.returncode != 0:
        return f"no commit {commit} here: no clone, or a shallow one"
    with tarfile.open(fileobj=BytesIO(made.stdout)) as tar:
        tar.extractall(folder, filter="data")
    return ""


def last_release() -> str:
    """The latest tag that this commit descends from, or what stands for one."""
    words = ["git", "-C", str(ROOT), "describe", "--tags", "--abbrev=0"]
    try:
        return subprocess.run(words, capture_output=True, text=True).stdout.strip() or RELEASE
    except OSError:
        return RELEASE


def make_parts(work: Path, no_gpu: str, code: Path | None = None) -> list[Part]:
    """All parts, the most valuable first, after the two that draw what to measure with.

    Args:
        work: a folder for what they share.
        no_gpu: "", or why there is none: then sizes are small.
        code: of the last release; None for git's.
    """
    faces, shards = work / "faces", work / "shards"
    release, missing = "the last release", ""
    if code is None:
        release, code = last_release(), work / "release"
        missing = unpack(release, code)
    count, turns, nets = 2048, flags(rounds=3, seconds=0.3), list[str]()
    batches = flags(batch_size=128)  # which fill a card; the last release's default
    if no_gpu:
        count, turns = 128, flags(rounds=1, seconds=0)
        batches = flags(**{name: TINY[name] for name in ("batch_size", "image_size")})
        nets = flags(**{name: TINY[name] for name in ("ngf", "ndf")})
    pack = ("tools/make_shards.py", faces, "--out", shards, "--per-shard", count // 4)
    tests = ("pytest", "-m", "gpu", "--quiet", "--durations=10", "--continue-on-collection-errors")
    doctor = ("-m", "dcgan.doctor", "--verify", "--shards", shards)
    small = ("-m", "dcgan.profile", "step", *turns, *nets)
    step = (*small, *batches)
    on_set = ("--shards", shards, *turns, *batches)
    return [
        Part("drawing", ("tools/make_demo_faces.py", faces, "--count", count), 40, json=False),
        Part("packing", pack, 20, json=False),
        Part("tests that need a GPU", ("-m", *tests), 80, no_gpu, json=False),
        Part("dcgan-doctor --verify", doctor, 110),
        Part("the step in the default batches", small, 30),
        Part("training", ("-m", "dcgan.profile", "train", *on_set, *nets), 45),
        Part(f"{STEP} of {release}", step, 40, missing, code=code),
        Part(STEP, (*step, "--tune"), 180),
        Part("loaders", ("-m", "dcgan.profile", "compare", *on_set), 75),
        Part("kernels of a replay", ("-m", "tests.gpu_report.kernels"), 30, no_gpu),
        Part("killed and resumed", ("-m", "tests.gpu_report.resume", shards, work), 60),
    ]


def report(parts: Sequence[Part], work: Path, out: Path, minutes: float) -> list[Result]:
    """Carry out all parts that there is time for, and write the report after each."""
    began = time.monotonic()
    results: list[Result] = []
    for part in parts:
        left = 60 * minutes - GRACE - (time.monotonic() - began)
        if left < LEAST_SECONDS:
            break
        results.append(carry_out(part, min(part.seconds, left), work))
        result = results[-1]
        print(f"{result.seconds:5.0f} s  {result.name}: {result.outcome}", flush=True)
        later = [Result(each.name, "", NOT_REACHED) for each in parts[len(results) :]]
        write([*results, *later], out, time.monotonic() - began)
        if result.outcome == INTERRUPTED:
            break
    return results


def write(results: Sequence[Result], out: Path, seconds: float) -> None:
    """Write the page and the data."""
    data = {"seconds": round(seconds, 1), "parts": [asdict(each) for each in results]}
    write_whole(out / DATA, json.dumps(data, indent=1).encode())
    write_whole(out / PAGE, page(results, seconds).encode())


def page(results: Sequence[Result], seconds: float) -> str:
    """Markdown: the machine, a table of the parts, and what each printed."""
    # Of this commit: the last release's step names its own
    machines = (_field(each, "environment") for each in results if f"{STEP} of " not in each.name)
    machine: dict[str, Any] = next(filter(None, machines), {})
    lines = [f"# A report on {machine.get('device_name', 'a GPU')}", "", INTRODUCTION]
    facts = machine | machine.get("packages", {})
    lines += [f"- {name}: {facts[name]}" for name in facts if name not in ("command", "packages")]
    lines += ["", f"{seconds:.0f} seconds in all:", "", "| part | outcome | s |", "|---|---|---|"]
    lines += [f"| {each.name} | {each.outcome} | {each.seconds:.0f} |" for each in results]
    lines += ["", *compare_steps(results)]
    for each in results:
        if each.printed:
            lines += ["", f"## {each.name}: {each.outcome}", "", f"`{each.command}`", ""]
            lines += ["````text", each.printed.strip("\n"), "````"]
    return "\n".join([*lines, ""])


def compare_steps(results: Sequence[Result]) -> Iterator[str]:
    """A table of milliseconds: the step of the last release, this one, and their ratio."""
    turns = {each.name: _field(each, "turns") for each in results}
    before = next((turns[name] for name in turns if name.startswith(f"{STEP} of ")), {})
    here = turns.get(STEP, {})
    if both := [name for name in before if name in here]:
        yield from ("| step | ms, last release | ms, here | × |", "|---|---|---|---|")
    for name in both:
        old, new = (median(turn["step_ms"] for turn in each[name]) for each in (before, here))
        yield f"| {name} | {old:.3f} | {new:.3f} | {old / new:.2f} |"


def _field(result: Result, name: str) -> dict[str, Any]:
    return result.found.get(name, {}) if isinstance(result.found, dict) else {}


def main(
    out: Annotated[
        Path, typer.Option(exists=True, file_okay=False, help="Folder for the report's two files.")
    ] = ROOT,
    minutes: Annotated[float, typer.Option(min=1, help="That all of it may take.")] = 6.0,
    release: Annotated[
        Path | None, typer.Option(help="The last release's code, where git has none of it.")
    ] = None,
) -> None:
    """Make the report; exits with 1 if a part failed or was cut off, with 130 on Ctrl-C."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    no_gpu = "no GPU" if OBSTACLES["gpu"]() else ""
    with tempfile.TemporaryDirectory(prefix="gpu-report-", ignore_cleanup_errors=True) as folder:
        work = Path(folder).resolve()
        parts = make_parts(work, no_gpu, release and release.resolve())
        results = report(parts, work, out, minutes)
    print(f"\n{PAGE} says what it and {DATA} hold, and where to send them.")
    if results[-1].outcome == INTERRUPTED:
        raise typer.Exit(130)
    raise typer.Exit(1 if any(each.failed for each in results) else 0)


if __name__ == "__main__":
    with plain_errors():
        typer.run(main)
