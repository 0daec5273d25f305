"""Faults, injected into the real commands: `python -m tests.faults` in a process of its own."""

import subprocess
import sys

import pytest

from tests.packing_runs import needs_proc
from tests.running import ROOT, environment

pytestmark = needs_proc


def faults(*words: object, seconds: float = 120) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tests.faults", *map(str, words)]
    return subprocess.run(
        command, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=seconds
    )


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
    done = faults(seconds=3600)
    assert done.returncode == 0, done.stdout + done.stderr
