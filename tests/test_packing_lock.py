"""One process at a time packs into a folder; one that was killed keeps nobody out."""

import os
import signal
import subprocess
import sys
from contextlib import contextmanager

import pytest

from pipeline.errors import UserError
from pipeline.packing.outdir import LOCK, held, swap_in
from pipeline.shards.shard_set import ShardSet
from tests.packing_runs import in_process, pack_folder, packing, tree, waited
from tests.pictures import names_in, numbered_pictures, write_pictures

__all__ = ["in_process"]  # a fixture

HOLD = """
import sys, time
from pathlib import Path
from pipeline.packing.outdir import held
with held(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@contextmanager
def holder(out):
    """Another process that has the folder."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(out)], stdout=subprocess.PIPE)
    with process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"held\n"
            yield process
        finally:
            process.kill()


@pytest.fixture
def pictures(tmp_path):
    return write_pictures(tmp_path / "pictures", numbered_pictures(9))


@pytest.mark.usefixtures("in_process")
@pytest.mark.parametrize("overwrite", [False, True])
def test_a_second_packer_is_refused_and_changes_nothing(pictures, tmp_path, overwrite):
    out = tmp_path / "set"
    pack_folder(pictures, out, seed=1)
    before = tree(out)
    with holder(out), pytest.raises(UserError) as caught:
        pack_folder(pictures, out, overwrite=overwrite)
    assert caught.value.where == f"--out {out}"
    assert caught.value.found == "a folder that another process is packing into"
    assert "wait" in caught.value.remedy
    assert tree(out) == before | {LOCK: b""}  # the holder was killed


@pytest.mark.usefixtures("in_process")
def test_a_killed_packer_keeps_nobody_out(pictures, tmp_path):
    out = tmp_path / "set"
    with holder(out) as process:
        process.send_signal(signal.SIGKILL)
        process.wait(10)
    assert names_in(out) == [LOCK]
    pack_folder(pictures, out)
    assert len(ShardSet.open(out)) == 9
    pack_folder(pictures, tmp_path / "plain")
    assert tree(out) == tree(tmp_path / "plain")


@pytest.mark.usefixtures("in_process")
def test_the_folder_is_held_for_as_long_as_it_is_written(pictures, tmp_path, monkeypatch):
    out, seen = tmp_path / "set", []

    def look(target, *arguments):
        with pytest.raises(UserError, match="another process"), held(out):
            pass
        seen.append(target)
        return swap_in(target, *arguments)

    monkeypatch.setattr("pipeline.packing.pack.swap_in", look)
    pack_folder(pictures, out)
    pack_folder(pictures, out, overwrite=True)
    assert seen == [out, out / ".new"]
    assert LOCK not in names_in(out)


@pytest.mark.usefixtures("in_process")
def test_what_fails_lets_go(pictures, tmp_path):
    theirs = write_pictures(tmp_path / "theirs", {"notes.txt": b"theirs"})
    with pytest.raises(UserError, match="other entries"):
        pack_folder(pictures, theirs)
    assert tree(theirs) == {"notes.txt": b"theirs"}
    with held(theirs):
        assert names_in(theirs) == [LOCK, "notes.txt"]


@pytest.mark.slow
def test_of_two_commands_at_once_one_packs(pictures, tmp_path):
    out = tmp_path / "set"
    words = (pictures, "--out", out, "--workers", 1, "--per-shard", 1)
    with packing(*words) as first:
        assert waited(lambda: (out / LOCK).exists())
        os.kill(first.process.pid, signal.SIGSTOP)
        with packing(*words) as second:
            status, printed = second.end()
        os.kill(first.process.pid, signal.SIGCONT)
        assert status == 1
        assert "another process is packing into" in printed
        assert "Traceback" not in printed
        assert first.end()[0] == 0
    assert len(ShardSet.open(out)) == 9
    assert LOCK not in names_in(out)
