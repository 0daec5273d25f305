"""Faults, injected into the real commands: `python -m tests.faults` in a process of its own."""

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from dcgan.rundir.folder import RunFolder
from pipeline.errors import UserError
from tests.faults import __main__ as harness
from tests.faults.cases import Case
from tests.faults.lab import Ended, FailedError, ImpossibleError, Lab, after
from tests.faults.page import page
from tests.faults.rows import Round, Row, summary, table
from tests.faults.runs import Training, intact
from tests.packing_runs import needs_proc
from tests.running import ROOT, environment

pytestmark = needs_proc

SLEEP = [sys.executable, "-c", "import time; time.sleep(60)"]


def faults(*words: object, seconds: float = 120) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tests.faults", *map(str, words)]
    return subprocess.run(
        command, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=seconds
    )


@pytest.fixture
def lab(tmp_path):
    lab = Lab(tmp_path / "case", tmp_path / "shared", "0", mounts=False)
    yield lab
    lab.close()


# The quickest kinds, whatever else is run


def test_damage_to_a_set_is_noticed(tmp_path):
    only = ("bit flipped in a sample", "manifest cut off")
    words = [word for name in only for word in ("--only", name)]
    done = faults("--quick", *words, "--out", tmp_path / "page.md")
    assert done.returncode == 0, done.stdout + done.stderr
    told = (tmp_path / "page.md").read_text()
    assert "| bit flipped in a sample | 3 | named: shard and sample |" in told
    assert "| manifest cut off | 1 | named: the file |" in told
    assert " survived" in done.stdout.splitlines()[-1]


@pytest.mark.slow
def test_all_faults_are_survived():
    done = faults(seconds=1800)
    assert done.returncode == 0, done.stdout + done.stderr


# The harness notices what it is for


def test_a_command_that_hangs_is_ended_and_fails(lab):
    with pytest.raises(FailedError, match="still running after 1 s"):
        lab.run(*SLEEP, limit=1)


def test_a_process_left_behind_is_named_and_ended(lab, monkeypatch):
    monkeypatch.setattr("tests.faults.lab.PATIENCE", 0.5)
    script = (
        "import subprocess, sys\n"
        f"child = subprocess.Popen({SLEEP}, start_new_session=True)\n"
        "print(child.pid)\n"
    )
    with pytest.raises(FailedError, match=r"left processes behind.*time\.sleep") as error:
        lab.run(sys.executable, "-c", script)
    pid = int(str(error.value).splitlines()[2])
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL


@pytest.mark.parametrize("place", ["tempfile.mkdtemp()", "'/dev/shm/of-a-test'"])
def test_a_temporary_file_and_shared_memory_left_behind_are_named(lab, place):
    script = f"import tempfile, pathlib; pathlib.Path({place}).mkdir(exist_ok=True)"
    try:
        with pytest.raises(FailedError, match="left behind: /"):
            lab.run(sys.executable, "-c", script)
    finally:
        if Path("/dev/shm/of-a-test").exists():
            Path("/dev/shm/of-a-test").rmdir()


def test_a_blow_comes_at_its_moment_and_counts(lab):
    ended = lab.run(*SLEEP, at=after(0.2))
    assert (ended.status, ended.hit, lab.faults) == (-signal.SIGKILL, True, 1)
    ended = lab.run(sys.executable, "-c", "", at=after(60))
    assert (ended.status, ended.hit, lab.faults) == (0, False, 1)


FOUR = "error: a\\n  found   b\\n  wanted  c\\n  do      d\\n"


@pytest.mark.parametrize(
    ("text", "status", "complaint"),
    [
        (FOUR, 1, None),
        (FOUR, 0, "no error in four parts"),
        (FOUR.replace("wanted", "needed"), 1, "no error in four parts"),
        (FOUR + "Traceback (most recent call last):", 1, "a traceback"),
        (FOUR.replace("error: a", "error: z"), 1, "does not mention"),
    ],
)
def test_what_counts_as_a_clear_error(lab, text, status, complaint):
    script = f"import sys; sys.stderr.write('{text}'); sys.exit({status})"
    ended = lab.run(sys.executable, "-c", script)
    if complaint is None:
        ended.refused("error: a")
    else:
        with pytest.raises(FailedError, match=complaint):
            ended.refused("error: a")


MAIN = '  File "x.py", line 3, in main\n'


@pytest.mark.parametrize(
    ("frame", "hit", "error", "passes"),
    [
        ("", True, "KeyboardInterrupt", True),
        (MAIN, True, "KeyboardInterrupt", False),
        ("", False, "KeyboardInterrupt", False),
        ("", True, "ImportError", False),
    ],
)
def test_only_an_interrupt_before_a_command_began_may_show_a_traceback(frame, hit, error, passes):
    ended = Ended(-2, "", f"Traceback (most recent call last):\n{frame}{error}\n", hit)
    if passes:
        ended.plain()
    else:
        with pytest.raises(FailedError, match="a traceback"):
            ended.plain()


@pytest.fixture
def run(tmp_path):
    """With one whole checkpoint, of step 5."""
    run = RunFolder(tmp_path / "run")
    run.checkpoints.mkdir(parents=True)
    path = run.checkpoints / "000000040.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("data", bytes(1000))
    seal = {"sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    path.with_suffix(".json").write_text(json.dumps(seal))
    return run


def test_a_checkpoint_that_is_whole_counts(run):
    intact(run, least=5)
    with pytest.raises(FailedError, match="no whole checkpoint after step 6"):
        intact(run, least=6)


def test_half_a_checkpoint_under_its_final_name_fails_though_nothing_vouches_for_it(run):
    (run.checkpoints / "000000048.pt").write_bytes(b"PK" + bytes(500))
    with pytest.raises(FailedError, match="written in place: 000000048"):
        intact(run, least=5)


@pytest.mark.parametrize("first", ["json", "pt"])
def test_a_json_that_is_there_before_its_checkpoint_is_seen(lab, run, first, monkeypatch):
    (run.checkpoints / "000000008.json").touch()  # of before this command: none of its doing
    second = "pt" if first == "json" else "json"
    script = (
        "import pathlib, time\n"
        f"path = pathlib.Path({str(run.checkpoints)!r}) / '000000048'\n"
        f"path.with_suffix('.{first}').touch(); time.sleep(0.3)\n"
        f"path.with_suffix('.{second}').touch()\n"
    )
    monkeypatch.setattr("tests.faults.runs.DCGAN_TRAIN", sys.executable)
    monkeypatch.setattr("tests.faults.runs.flags", lambda **options: ["-c", script])
    training = Training(lab, Path("none"), run.path)
    if first == "pt":
        training.go().finished()
    else:
        with pytest.raises(FailedError, match=r"sealed before they were there: .'000000048.json'"):
            training.go()


# The table


def test_a_fault_that_is_not_survived_is_told_with_what_shows_it_again(tmp_path):
    draws = []

    def inject(lab: Lab) -> str:
        lab.faults += 1
        draws.append(lab.random.random())
        if len(draws) == 2:
            raise FailedError("this happened")
        return "well"

    case = Case("a fault", inject, 3)
    row = Round(tmp_path, 7, quick=False, mounts=False).carry_out(case)
    assert len(set(draws)) == 3
    assert row.outcomes == {"well": 2}
    (told,) = row.failures
    assert told.splitlines() == [
        "python -m tests.faults --only 'a fault' --seed 7 --number 1",
        "this happened",
    ]
    Round(tmp_path, 7, quick=False, mounts=False, number=1).carry_out(case)
    assert draws[3] == draws[1]
    assert "FAILED" in list(table([row]))[2]
    assert "1 of 3" in summary([row])


def test_an_error_of_the_harness_fails_and_the_round_goes_on(tmp_path):
    def inject(lab: Lab) -> str:
        raise ValueError("of ours")

    row = Round(tmp_path, 0, quick=False, mounts=False).carry_out(Case("x", inject, 2))
    assert (row.failed, row.injections) == (2, 2)
    assert row.failures[1].endswith("ValueError: of ours\n")


def test_impossible_ones_are_counted_apart(tmp_path):
    def inject(lab: Lab) -> str:
        raise ImpossibleError("no such thing")

    row = Round(tmp_path, 0, quick=False, mounts=False).carry_out(Case("x", inject, 2))
    good = Row("y", faults=5, injections=2)
    assert summary([row, good]) == "5 faults injected, 5 survived; 1 kind not possible here"
    told = page([row, good], 7)
    assert "| x | 0 | not possible here: no such thing | 0 |" in told
    assert re.search(
        r"Made on \w+ with \d+ cores \(\w+\), Python 3.*, torch 2.*, with seed 7", told
    )


def test_an_unknown_fault_is_refused_with_the_names_of_all():
    with pytest.raises(UserError, match="disk full under training"):
        harness.faults(only=["earthquake"])
