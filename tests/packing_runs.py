"""Packing as tests run it: the command in a process that can be killed, or in this one."""

import io
import os
import shutil
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import chdir, contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import UserError
from pipeline.packing.pack import Packed, Packing, pack
from pipeline.packing.plan import Entry
from pipeline.packing.shard import Progress, Work, write_shard
from pipeline.packing.sources.open import open_source
from pipeline.shards.manifest import PROGRESS
from pipeline.shards.shard_set import ShardSet

TOOLS = Path(__file__).parent.parent / "tools"
MARK = "PACKING_TEST"
"""An environment variable: workers inherit it, so that those of one run can be found."""


needs_proc = pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")


def tree(folder: Path) -> dict[str, bytes]:
    """All files below a folder."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def state(folder: Path) -> str:
    """What readers say of a folder: complete, unfinished or nothing."""
    try:
        ShardSet.open(folder)
    except UserError as error:
        return "unfinished" if "unfinished" in error.found else "nothing"
    return "complete"


def finished_shards(folder: Path) -> int:
    return len(list((folder / PROGRESS).glob("shard-*.json")))


def serially(
    work: Work, shards: Mapping[int, list[Entry]], left: Sequence[int]
) -> Iterator[Progress]:
    """Write shards in this process, whatever number of workers is asked for."""
    for number in left:
        yield from write_shard(work, (number, shards[number]))


@contextmanager
def without_workers() -> Iterator[None]:
    """Within the block, packing is done by this process: each worker would import torch anew."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipeline.packing.pack._written", serially)
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


@pytest.fixture
def in_process() -> Iterator[None]:
    """Packing has no workers: patches reach all of it, and it takes milliseconds."""
    with without_workers():
        yield


def pack_folder(pictures: Path, out: Path, **options: object) -> Packed:
    source = open_source(pictures)
    return pack(source, source.members(), out, Packing(**options))  # type: ignore[arg-type]


def run_here(
    main: Callable[[], None], *words: object, cwd: Path | None = None
) -> tuple[int, str, str]:
    """Run a command in this process: its exit status, and what it prints, without a traceback."""
    out, err = io.StringIO(), io.StringIO()
    with (
        pytest.MonkeyPatch.context() as patch,
        chdir(cwd or Path()),
        redirect_stdout(out),
        redirect_stderr(err),
    ):
        patch.setattr(sys, "argv", ["command", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            main()
    assert "Traceback" not in err.getvalue()
    return int(ended.value.code or 0), out.getvalue(), err.getvalue()


def four_parts(stderr: str) -> list[str]:
    """An error's four parts, in whatever else was printed; what it lists is left out."""
    error = stderr[stderr.index("error: ") :].splitlines()
    where, *parts = [line for line in error if not line.startswith(" " * 10)]
    assert [part[:10] for part in parts] == ["  found   ", "  wanted  ", "  do      "], stderr
    assert all(part[10:] for part in parts)
    return [where.removeprefix("error: "), *(part[10:] for part in parts)]


def run_tool(name: str, *arguments: object, cwd: Path | None = None, status: int = 0) -> str:
    """What a tool prints, stdout first; it must end with `status` and without a traceback."""
    done = subprocess.run(
        [sys.executable, str(TOOLS / name), *map(str, arguments)],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    printed = done.stdout + done.stderr
    assert "Traceback" not in printed, printed
    assert done.returncode == status, printed
    return printed


def evaluated(expression: str) -> Generator[Any, None, None]:
    """A task for workers; here, since what imports this module does not load torch."""
    yield eval(expression)


SHARED_MEMORY = {
    "full": "mount -t tmpfs -o size=4k tmpfs /dev/shm && head -c 4096 /dev/zero >/dev/shm/full",
    "read-only": "mount -t tmpfs -o ro tmpfs /dev/shm",
}
"""Ways in which /dev/shm may be of no use, and how a shell brings each about."""


def with_shared_memory(kind: str, words: Sequence[object]) -> subprocess.CompletedProcess[str]:
    """Run a command where /dev/shm is so, for nobody else; skip where mounts are not allowed."""
    unshare = ["unshare", "--map-root-user", "--mount", "sh", "-c"]
    if (
        shutil.which("unshare") is None
        or subprocess.run([*unshare, SHARED_MEMORY[kind]]).returncode
    ):
        pytest.skip("cannot mount a file system of one's own")
    script = f'{SHARED_MEMORY[kind]} && exec "$@"'
    return subprocess.run(
        [*unshare, script, "sh", *map(str, words)], capture_output=True, text=True, timeout=120
    )


@dataclass
class Run:
    """A packing command that is under way."""

    process: subprocess.Popen[str]
    mark: str = field(repr=False)

    def members(self) -> list[int]:
        """Living processes of this run: itself, its workers, and what multiprocessing adds."""
        pids = [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdecimal()]
        return [pid for pid in pids if self._is(pid)]

    def _is(self, pid: int) -> bool:
        try:
            environment = Path(f"/proc/{pid}/environ").read_bytes()
        except OSError:
            return False
        return f"{MARK}={self.mark}".encode() in environment.split(b"\0")

    def workers(self) -> list[int]:
        """Those that pack: the resource tracker is multiprocessing's own."""
        command_lines = {pid: _command_line(pid) for pid in self.members()}
        return [pid for pid, line in command_lines.items() if b"spawn_main" in line]

    def kill(self) -> bool:
        """SIGKILL to the parent alone; whether it was still running."""
        running = self.process.poll() is None
        self.process.kill()
        self.process.wait(10)
        return running

    def end(self, seconds: float = 30) -> tuple[int, str]:
        """Exit status and what was printed."""
        stdout, stderr = self.process.communicate(timeout=seconds)
        return self.process.returncode, stdout + stderr

    def vanishes(self, seconds: float) -> bool:
        return waited(lambda: not self.members(), seconds)


def _command_line(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def waited(condition: Callable[[], object], seconds: float = 20) -> bool:
    """Whether a condition came true in time."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.002)
    return True


@contextmanager
def packing(*arguments: object) -> Iterator[Run]:
    """Start the packing command in a session of its own; nothing of it outlives the block."""
    mark = uuid.uuid4().hex
    process = subprocess.Popen(
        [sys.executable, str(TOOLS / "make_shards.py"), *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env=os.environ | {MARK: mark},
    )
    with process:
        run = Run(process, mark)
        try:
            yield run
        finally:
            for pid in run.members():
                os.kill(pid, 9)
