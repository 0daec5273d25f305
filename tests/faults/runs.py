"""The commands as the faults find them: what they work on, and what they end with unharmed."""

import hashlib
import json
import shutil
import signal
import sys
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from dcgan.rundir.folder import RunFolder
from pipeline.files import PARTIAL
from tests.faults.lab import (
    KILL,
    Blow,
    Ended,
    FailedError,
    Lab,
    Moment,
    Running,
    by,
    line,
    never,
)
from tests.packing_runs import TOOLS
from tests.pictures import encode, numbered_pictures, smooth, write_pictures
from tests.running import DCGAN_TRAIN, TINY, flags, read_stats

PACE = ("step_ms", "img_per_s", "data_wait_pct")
NETS = ("netG.pt", "netD.pt", "netG_ema.pt")
STATUS = "Loss_D"
LOG_EVERY, STEPS = 4, 48
EXACT = "resumed to the same bytes"
CLEAR = "clear error, then the same bytes"
UNHARMED = "finished with the same bytes"

OPTIONS = TINY | {
    "max_steps": STEPS,
    "log_every": LOG_EVERY,
    "sample_every": 12,
    "checkpoint_every": 0,
    "cache": "off",
}
"""Most of such a run's time goes into checkpoints: that is where faults are to come."""


def tool(name: str, *words: object) -> list[object]:
    return [sys.executable, TOOLS / name, *words]


def command(name: str, *words: object) -> list[object]:
    return [DCGAN_TRAIN.with_name(f"dcgan-{name}"), *words]


def evaluating(run: Path) -> list[object]:
    return command("evaluate", run, "--n", 16, "--device", "cpu", "--workers", 1)


def small_set(lab: Lab) -> Path:
    """43 images with labels, in shards of eight: an epoch is five steps, and three images over."""

    def make(folder: Path) -> None:
        pictures = numbered_pictures(43)
        source = write_pictures(folder / "pictures", pictures)
        words = [source, "--out", folder / "set", "--per-shard", 8, "--workers", 1]
        words += ["--labels", write_labels(folder, pictures)]
        lab.run(*tool("make_shards.py", *words)).finished()

    return lab.once("small", make) / "set"


class Training:
    """One run, by the real command.

    Args:
        lab: where it goes.
        shards: of its images.
        run: its folder; by default one of the lab's.
        options: beside `OPTIONS`, and against them.
    """

    def __init__(
        self, lab: Lab, shards: Path | str, run: Path | None = None, **options: Any
    ) -> None:
        self.lab = lab
        self.run = RunFolder(run or lab.folder / "run")
        # Named from the place where it stands, so that a set that has moved is the same one
        self._options = OPTIONS | {"shards": shards} | options

    def go(self, at: Moment = never, do: Blow = KILL) -> Ended:
        return self.lab.run(*self.words(), at=self._watched(at), do=do)

    def words(self) -> list[object]:
        """The whole command."""
        return [*self.command(), *flags(**self._options), "--run", self.run.path]

    def command(self) -> list[object]:
        return [DCGAN_TRAIN]

    def _watched(self, at: Moment) -> Moment:
        """Look at the checkpoints as well: a kill seldom meets what is wrong for a millisecond."""
        known = _without_file(self.run)

        def look(running: Running) -> bool:
            early = _without_file(self.run) - known
            if early:
                raise FailedError(f"sealed before they were there: {sorted(early)}")
            return at(running)

        return look

    def go_to_the_end(self, stats: bool = True) -> None:
        """Demand what a run that was never harmed comes to.

        Args:
            stats: compare those, too.
        """
        ended = self.go().finished()
        left = [str(path) for path in self.run.path.rglob(f"*{PARTIAL}")]
        if left:
            ended.fail(f"left behind: {', '.join(left)}")
        differing = differences(whole(self.lab), self.run, stats)
        if differing:
            ended.fail(f"other bytes than without a fault: {', '.join(differing)}")
        intact(self.run, least=STEPS)


def whole(lab: Lab) -> RunFolder:
    """A run that nothing happened to."""
    shards = small_set(lab)
    path = lab.once("whole", lambda folder: Training(lab, shards, folder).go().finished())
    return RunFolder(path)


def half(lab: Lab) -> Path:
    """A run that was asked to stop about half-way."""
    shards = small_set(lab)

    def make(folder: Path) -> None:
        at = line(STATUS, STEPS // LOG_EVERY // 2)
        ended = Training(lab, shards, folder).go(at, by(signal.SIGTERM)).plain()
        if ended.status != 128 + signal.SIGTERM:
            ended.fail("a run that stops when asked to")
        lab.faults -= 1  # made once for many, not an injection

    return lab.once("half", make)


def half_done(lab: Lab, run: Path | None = None) -> Training:
    """A copy of `half`, to be harmed."""
    path = run or lab.folder / "run"
    shutil.copytree(half(lab), path)
    return Training(lab, small_set(lab), path)


def differences(one: RunFolder, other: RunFolder, stats: bool) -> list[str]:
    """What of two runs should be equal and is not."""
    names = [*NETS, "losses.csv", "losses.png"]
    found = [name for name in names if not _same(one.path / name, other.path / name)]
    if one.grids()[-1][1].read_bytes() != other.grids()[-1][1].read_bytes():
        found.append("the last grid")
    if stats and _ticks(one) != _ticks(other):
        found.append("stats.jsonl")
    return found


def _same(one: Path, other: Path) -> bool:
    return other.is_file() and one.read_bytes() == other.read_bytes()


def _ticks(run: RunFolder) -> list[dict[str, Any]]:
    return [{name: tick[name] for name in tick if name not in PACE} for tick in read_stats(run)]


def sealed(run: RunFolder) -> list[int]:
    """The steps of those checkpoints that agree with the json beside them, in order."""
    found = []
    for path in sorted(run.checkpoints.glob("*.pt")):
        seal = path.with_suffix(".json")
        if seal.is_file():
            told = json.loads(seal.read_bytes())
            if told["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest():
                found.append(int(path.stem) // TINY["batch_size"])
    return found


def _without_file(run: RunFolder) -> set[str]:
    """Each json that vouches for a checkpoint which is not there."""
    return {
        seal.name
        for seal in run.checkpoints.glob("*.json")
        # The json again: a checkpoint that is removed loses it first
        if not seal.with_suffix(".pt").exists() and seal.exists()
    }


def intact(run: RunFolder, least: int) -> None:
    """Demand a whole checkpoint of so many steps, or more, and no half one under a final name."""
    torn = [path.name for path in run.checkpoints.glob("*.pt") if not zipfile.is_zipfile(path)]
    if torn:
        raise FailedError(f"written in place: {', '.join(torn)}")
    found = sealed(run)
    if max(found, default=0) < least:
        raise FailedError(f"no whole checkpoint after step {least}: there are {found}")


def steps_told(run: RunFolder) -> int:
    """Steps in the last whole line of the statistics: a checkpoint was written before each."""
    if not run.stats.exists():
        return 0
    lines = [text for text in run.stats.read_text().splitlines(True) if text.endswith("}\n")]
    return json.loads(lines[-1])["step"] if lines else 0


def write_labels(folder: Path, names: Iterable[str]) -> Path:
    """A file that sorts images into five classes."""
    path = folder / "classes.csv"
    path.write_text("".join(f"{name},{number % 5}\n" for number, name in enumerate(names)))
    return path


def packing(lab: Lab) -> list[object]:
    """The command that packs enough labelled pictures to be at it for a second; lacks its --out."""

    def make(folder: Path) -> None:
        kinds = [encode(smooth(160, 120, seed)) for seed in range(7)]
        pictures = {f"{k:04d}.jpg": kinds[k % len(kinds)] for k in range(2400)}
        write_pictures(folder / "pictures", pictures)
        write_labels(folder, pictures)

    many = lab.once("many", make)
    words = ["--labels", many / "classes.csv", "--per-shard", 120]
    return tool("make_shards.py", many / "pictures", *words)
