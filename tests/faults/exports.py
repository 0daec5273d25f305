"""Nets that are exported: the command killed, twice at once, without room, with damaged files."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.faults.cases import Case
from tests.faults.harm import fill, make_room
from tests.faults.kills import a_blow
from tests.faults.lab import FailedError, Lab, Moment, after, appears
from tests.faults.runs import Training, command, small_set
from tests.packing_runs import tree
from tests.running import run_command

WHOLE = "whole, the earlier or the new"
SECONDS = 8.0
"""Which a command takes, about."""


def _run(lab: Lab) -> Path:
    def make(folder: Path) -> None:
        Training(lab, small_set(lab), folder / "run").go().finished()

    return lab.once("to export", make) / "run"


def _words(lab: Lab, *more: object) -> list[object]:
    return command("export", _run(lab), "--out", lab.folder / "net", *more)


def _exported(lab: Lab, name: str, *more: object) -> dict[str, bytes]:
    """What nobody harms comes to."""

    def make(folder: Path) -> None:
        lab.run(*command("export", _run(lab), "--out", folder / "net", *more)).finished()

    return tree(lab.once(name, make) / "net")


def _require_one_of(lab: Lab, *wanted: dict[str, bytes]) -> None:
    found = tree(lab.folder / "net") if (lab.folder / "net").exists() else {}
    if found not in wanted:
        raise FailedError(f"a mixture, or a part: {sorted(found)}")


def _moment(lab: Lab) -> Moment:
    names = ("config.json", "netG.safetensors", "netG.onnx", "samples.png", "README.md")
    pattern = f"net.partial/{lab.random.choice(names)}*"
    return lab.random.choice(
        (after(lab.random.uniform(0.5, SECONDS)), appears(lab.folder, pattern))
    )


def _killed(lab: Lab) -> str:
    """With an earlier export in its place, or with none."""
    average, raw = _exported(lab, "average"), _exported(lab, "raw", "--raw-net")
    before: dict[str, bytes] = {}
    if lab.random.random() < 0.7:
        lab.run(*_words(lab)).finished()
        before = average
    lab.run(*_words(lab, "--raw-net"), at=_moment(lab), do=a_blow(lab.random)).plain()
    if not (lab.folder / "net.earlier").exists():  # else it ended between the two renames
        _require_one_of(lab, before, raw)
    lab.run(*_words(lab, "--raw-net")).finished()
    _require_one_of(lab, raw)
    left = {path.name for path in lab.folder.iterdir()} - {"net", "tmp", "stdout", "stderr"}
    if left:
        raise FailedError(f"left behind: {left}")
    return WHOLE


def _two_at_once(lab: Lab) -> str:
    average, raw = _exported(lab, "average"), _exported(lab, "raw", "--raw-net")
    with ThreadPoolExecutor() as threads:
        # A cache without the page's runtime, as the others have
        alone = ["env", f"XDG_CACHE_HOME={lab.folder}/cache"]
        commands = [[*alone, *_words(lab)], [*alone, *_words(lab, "--raw-net")]]
        running = [threads.submit(run_command, *each, cwd=lab.folder) for each in commands]
    lab.faults += 1
    for done in (each.result() for each in running):
        if done.returncode and "another dcgan-export" not in done.stderr:
            raise FailedError(done.stdout + done.stderr)
    _require_one_of(lab, average, raw)
    return WHOLE


def _no_room(lab: Lab) -> str:
    wanted = _exported(lab, "average")
    disk = lab.small_disk(2)
    words = command("export", _run(lab), "--out", disk / "net")
    fill(disk, int(lab.random.choice((0, 5e3, 5e4))))
    lab.faults += 1
    lab.run(*words).refused("No space left")
    if (disk / "net").exists():
        raise FailedError("a part of a folder")
    make_room(disk)
    lab.run(*words).finished()
    if tree(disk / "net") != wanted:
        raise FailedError("another folder than without a fault")
    return "clear error, then the same bytes"


def _damaged(lab: Lab) -> str:
    """One byte of a file that is read again, or a cut: it is refused, or read as it was."""
    lab.run(*_words(lab)).finished()
    names = ("netG.safetensors", "config.json")
    path = lab.folder / "net" / lab.random.choice(names)
    data = bytearray(path.read_bytes())
    place = lab.random.randrange(min(len(data), 2000))
    if lab.random.random() < 0.5:
        data[place] ^= 1 << lab.random.randrange(8)
    else:
        del data[place:]
    path.write_bytes(data)
    lab.faults += 1
    ended = lab.run(*command("sample", lab.folder / "net", "--seeds", "0-3", "--device", "cpu"))
    if ended.status:
        ended.refused()
    ended.plain()
    return "refused in words, or drawn"


CASES: tuple[Case, ...] = tuple(
    Case(fault, inject, times)
    for fault, inject, times in (
        ("export ended by a signal", _killed, 6),
        ("two exports into one folder", _two_at_once, 2),
        ("disk full under an export", _no_room, 2),
        ("file of an exported folder damaged", _damaged, 6),
    )
)
