"""Faults, injected into the real commands: `python -m tests.faults` in a process of its own."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import zipfile

import pytest

from dcgan.rundir.folder import RunFolder
from tests.faults.lab import FailedError, Lab
from tests.faults.runs import intact
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
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- table -->\nolder\n<!-- end -->\nafter\n")
    done = faults("--quick", "--only", "bit flipped in a sample", "--out", page)
    assert done.returncode == 0, done.stdout + done.stderr
    told = page.read_text()
    assert told.startswith("before\n")
    assert told.endswith("after\n")
    assert "older" not in told
    assert "| bit flipped in a sample | 1 | named: shard and sample |" in told
    assert done.stdout.endswith("1 faults injected, 1 survived\n")


@pytest.mark.slow
def test_all_faults_are_survived():
    done = faults(seconds=1800)
    assert done.returncode == 0, done.stdout + done.stderr


# The harness notices what it is for


def test_what_hangs_or_is_left_behind_is_named_and_ended(lab, monkeypatch):
    monkeypatch.setattr("tests.faults.lab.PATIENCE", 0.5)
    with pytest.raises(FailedError, match="still running after 1 s"):
        lab.run(*SLEEP, limit=1)
    script = (
        "import subprocess\n"
        f"child = subprocess.Popen({SLEEP}, start_new_session=True)\n"
        "print(child.pid)\n"
    )
    with pytest.raises(FailedError, match=r"left processes behind.*time\.sleep") as error:
        lab.run(sys.executable, "-c", script)
    pid = int(str(error.value).splitlines()[2])
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
    with pytest.raises(FailedError, match="left behind: /"):
        lab.run(sys.executable, "-c", "import tempfile; tempfile.mkdtemp()")


def test_half_a_checkpoint_under_its_final_name_fails_though_nothing_vouches_for_it(tmp_path):
    run = RunFolder(tmp_path / "run")
    run.checkpoints.mkdir(parents=True)
    path = run.checkpoints / "000000040.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("data", bytes(1000))
    seal = {"sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    path.with_suffix(".json").write_text(json.dumps(seal))
    intact(run, least=5)
    with pytest.raises(FailedError, match="no whole checkpoint after step 6"):
        intact(run, least=6)
    (run.checkpoints / "000000048.pt").write_bytes(b"PK" + bytes(500))
    with pytest.raises(FailedError, match="written in place: 000000048"):
        intact(run, least=5)
