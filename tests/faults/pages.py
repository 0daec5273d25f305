"""Commands that write one file, ended by signals: the older stays until the new one is whole."""

import shutil
from collections.abc import Callable
from pathlib import Path

from dcgan.rundir.folder import RunFolder
from pipeline.files import PARTIAL
from tests.faults.cases import Case
from tests.faults.kills import KILLS, SECONDS, a_blow
from tests.faults.lab import Ended, FailedError, Lab, after, appears
from tests.faults.runs import command, whole


def _report(lab: Lab) -> str:
    run = RunFolder(lab.folder / "run")
    shutil.copytree(whole(lab).path, run.path)
    run.report.write_text("an older report")
    words = command("report", run.path)

    def check(ended: Ended) -> None:
        page = run.report.read_text()
        if page != "an older report" and not page.rstrip().endswith("</html>"):
            ended.fail("half a report")

    return _write(lab, words, run.report, check)


def _sample(lab: Lab) -> str:
    net, grid = whole(lab).generator, lab.folder / "pictures" / "grid.png"

    def draw(folder: Path, seeds: str) -> list[object]:
        words = ("--seeds", seeds, "--grid", folder / "grid.png", "--device", "cpu")
        return command("sample", net, *words)

    older = lab.once("older", lambda out: lab.run(*draw(out, "0-63")).finished())
    newer = lab.once("newer", lambda out: lab.run(*draw(out, "64-319")).finished())
    shutil.copytree(older, grid.parent)
    whole_ones = [(folder / "grid.png").read_bytes() for folder in (older, newer)]

    def check(ended: Ended) -> None:
        if grid.read_bytes() not in whole_ones:
            ended.fail("half a picture")

    told = _write(lab, draw(grid.parent, "64-319"), grid, check)
    if grid.read_bytes() != whole_ones[1]:
        raise FailedError("another picture than without a fault")
    return told


def _write(lab: Lab, words: list[object], path: Path, check: Callable[[Ended], None]) -> str:
    """End a command three times, then let it finish."""
    for _ in range(KILLS):
        moments = (
            after(lab.random.uniform(0.05, SECONDS)),
            appears(path.parent, f"{path.name}{PARTIAL}"),
        )
        ended = lab.run(*words, at=lab.random.choice(moments), do=a_blow(lab.random))
        if ended.hit:
            ended.plain()
        check(ended)
    ended = lab.run(*words).finished()
    check(ended)
    left = sorted(entry.name for entry in path.parent.glob(f"*{PARTIAL}"))
    if left:
        ended.fail(f"left behind: {', '.join(left)}")
    return "the older one, then the new one"


CASES = (
    Case("report ended by a signal", _report, 1),
    Case("sampling ended by a signal", _sample, 1),
)
