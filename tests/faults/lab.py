"""Where faults are injected: scratch, commands under a limit, and what they must not leave."""

import ctypes
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

import psutil

from tests.running import environment

LIMIT = 120
"""Seconds after which a command counts as hanging; the longest takes a tenth of it."""

PATIENCE = 15
"""Seconds within which what a killed command started must be gone."""

LOOK = 0.0005
"""Seconds between two looks at whether the moment has come."""

SHARED_MEMORY = Path("/dev/shm")
PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h: what a dead child of ours started becomes ours

FOUR_PARTS = ("error: ", "\n  found   ", "\n  wanted  ", "\n  do      ")


class FailedError(Exception):
    """A fault that was not survived."""


class ImpossibleError(Exception):
    """A fault that this machine does not let us inject."""


@dataclass(frozen=True)
class Ended:
    """A command that is over."""

    status: int
    out: str
    err: str
    hit: bool
    """Whether the fault came before the end."""

    def fail(self, what: str) -> NoReturn:
        told = f"status {self.status}\n{self.out[-1500:]}\n{self.err[-3000:]}"
        raise FailedError(f"{what}\n{told}")

    def finished(self) -> "Ended":
        """Demand success."""
        if self.status != 0:
            self.fail("the command did not succeed")
        return self.plain()

    def refused(self, *said: str) -> "Ended":
        """Demand an error in four parts that mentions this."""
        self.plain()
        if self.status != 1 or not all(part in self.err for part in FOUR_PARTS):
            self.fail("no error in four parts")
        for words in said:
            if words not in self.err:
                self.fail(f"the error does not mention {words!r}")
        return self

    def plain(self) -> "Ended":
        """Demand that no traceback was shown, unless by Python itself while it still started."""
        starting = self.hit and "KeyboardInterrupt" in self.err and " in main\n" not in self.err
        if "Traceback" in self.err + self.out and not starting:
            self.fail("a traceback")
        return self


@dataclass(frozen=True)
class Running:
    """A command that is under way."""

    process: subprocess.Popen[bytes]
    out: Path
    begun: float = field(default_factory=time.monotonic)

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.begun

    def said(self, text: str) -> int:
        """How often it printed this."""
        return self.out.read_bytes().count(text.encode())


Moment = Callable[[Running], bool]
Blow = Callable[[Running], object]


def never(running: Running) -> bool:
    return False


def after(seconds: float) -> Moment:
    return lambda running: running.seconds >= seconds


def line(text: str, times: int) -> Moment:
    return lambda running: running.said(text) >= times


def appears(folder: Path, pattern: str, times: int = 1) -> Moment:
    """When so many files have come to match."""

    def has_come(running: Running) -> bool:
        with suppress(FileNotFoundError):  # a folder is swept away while it is listed
            return len(list(folder.glob(pattern))) >= times
        return False

    return has_come


def by(number: signal.Signals) -> Blow:
    return lambda running: running.process.send_signal(number)


KILL = by(signal.SIGKILL)


def interrupted_twice(pause: float) -> Blow:
    """Ctrl-C, and again for somebody who does not want to wait."""

    def blow(running: Running) -> None:
        running.process.send_signal(signal.SIGINT)
        time.sleep(pause)
        running.process.send_signal(signal.SIGINT)

    return blow


class Lab:
    """A folder to do harm in, and what the faults of a case share.

    Args:
        folder: new for each injection.
        shared: for what is made once: `once`.
        seed: of all that is random in the injection.
        mounts: whether file systems can be mounted here.

    Attributes:
        faults: how many were injected so far.
    """

    def __init__(self, folder: Path, shared: Path, seed: str, mounts: bool) -> None:
        self.folder, self._shared, self._mounts = folder, shared, mounts
        self.random = random.Random(seed)
        self.faults = 0
        self._before = {process.pid for process in psutil.Process().children(recursive=True)}
        self._mounted: list[Path] = []
        folder.mkdir(parents=True)
        _adopt_orphans(True)

    def once(self, name: str, make: Callable[[Path], object]) -> Path:
        """A folder that many injections read, made by the first."""
        path = self._shared / name
        if not path.exists():
            unfinished = path.with_name(path.name + ".unfinished")
            shutil.rmtree(unfinished, ignore_errors=True)
            unfinished.mkdir(parents=True)
            make(unfinished)
            unfinished.rename(path)
        return path

    def run(
        self,
        *words: object,
        at: Moment = never,
        do: Blow = KILL,
        limit: float = LIMIT,
        patience: float = PATIENCE,
        leaves: str = "",
    ) -> Ended:
        """Run a command to its end, and do harm when the moment comes.

        Args:
            words: of the command.
            at: the moment.
            do: the harm.
            limit: seconds.
            patience: seconds for what it started to be gone after it.
            leaves: a pattern of temporary folders that it may leave behind if it is hit.

        Raises:
            FailedError: it hangs, or leaves processes, temporary files or shared memory behind.
        """
        out, err, temporary = (self.folder / name for name in ("stdout", "stderr", "tmp"))
        temporary.mkdir(exist_ok=True)
        shared_before = set(SHARED_MEMORY.iterdir())
        homes = {
            "TMPDIR": str(temporary),
            "XDG_CACHE_HOME": str(self._shared / "cache"),
            # torch makes this folder, which is to stay, as soon as it is imported in some ways
            "TORCHINDUCTOR_CACHE_DIR": str(self._shared / "inductor"),
            # Nobody looks for credentials elsewhere
            "AWS_ACCESS_KEY_ID": "a name",
            "AWS_SECRET_ACCESS_KEY": "a secret",
        }
        with out.open("wb") as stdout, err.open("wb") as stderr:
            process = subprocess.Popen(
                [str(word) for word in words],
                stdout=stdout,
                stderr=stderr,
                env=environment() | homes,
                cwd=self.folder,
                start_new_session=True,
            )
        running = Running(process, out)
        hit = False
        try:
            while process.poll() is None and running.seconds < limit:
                if not hit and at(running):
                    hit = process.poll() is None
                    do(running)
                time.sleep(LOOK)
        finally:
            hangs = process.poll() is None
            left = _await_quiet(0 if hangs else patience, self._before)
            process.wait()
        self.faults += hit
        told, complained = (path.read_text(errors="replace") for path in (out, err))
        ended = Ended(process.returncode, told, complained, hit)
        if hangs:
            ended.fail(f"still running after {limit:.0f} s")
        if left:
            ended.fail(f"left processes behind: {left}")
        if hit and leaves:
            for path in temporary.glob(leaves):
                shutil.rmtree(path)
        remains = [*temporary.iterdir(), *(set(SHARED_MEMORY.iterdir()) - shared_before)]
        if remains:
            ended.fail(f"left behind: {', '.join(map(str, remains))}")
        return ended

    def small_disk(self, megabytes: float) -> Path:
        """An empty file system of its own.

        Raises:
            ImpossibleError: nothing can be mounted here.
        """
        self._require_mounts()
        path = self.folder / "disk"
        path.mkdir()
        options = f"size={int(megabytes * 1e6)}"
        self._mount(path, "-t", "tmpfs", "-o", options, "tmpfs", path)
        return path

    def read_only(self, path: Path) -> None:
        """Make a folder read-only, for root too.

        Raises:
            ImpossibleError: nothing can be mounted here.
        """
        self._require_mounts()
        self._mount(path, "--bind", path, path)
        _mount("-o", "remount,ro,bind", path)

    def writable(self, path: Path) -> None:
        """Undo `read_only`."""
        subprocess.run(["umount", path], check=True)
        self._mounted.remove(path)

    def close(self) -> None:
        """Unmount what is mounted, and remove the folder."""
        for path in self._mounted:
            subprocess.run(["umount", "--lazy", path], check=True)
        shutil.rmtree(self.folder)
        _adopt_orphans(False)

    def _mount(self, path: Path, *words: object) -> None:
        _mount(*words)
        self._mounted.append(path)

    def _require_mounts(self) -> None:
        if not self._mounts:
            raise ImpossibleError("nothing can be mounted here")


def _adopt_orphans(yes: bool) -> None:
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, int(yes), 0, 0, 0)


def _mount(*words: object) -> None:
    subprocess.run(["mount", *map(str, words)], check=True)


def _await_quiet(patience: float, before: set[int]) -> list[str]:
    """Wait until nothing that we started lives; end what stays, and tell its command lines."""
    end = time.monotonic() + patience
    while (left := _living(before)) and time.monotonic() < end:
        time.sleep(0.01)
    told = []
    for process in left:
        with suppress(psutil.NoSuchProcess):
            told.append(" ".join(process.cmdline())[:120])
            process.kill()
    return told


def _living(before: set[int]) -> list[psutil.Process]:
    """All below us but those that lived `before`: somebody else's, as pytest's."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess, ChildProcessError):
            if process.pid in before:
                continue
            if process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
            else:  # adopted by us: nobody else will ask how it ended
                os.waitpid(process.pid, os.WNOHANG)
    return found
