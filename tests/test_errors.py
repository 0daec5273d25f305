"""The error that people see: four parts, exit status 1, and no traceback."""

import errno
import pickle
import signal
import subprocess
import sys

import pytest

from pipeline.errors import UserError, plain_errors
from tests.running import environment

ERROR = UserError("--out x", "a file", "a folder", "choose another --out")


def test_the_four_parts_stand_on_their_own_lines():
    assert str(ERROR).splitlines() == [
        "--out x",
        "  found   a file",
        "  wanted  a folder",
        "  do      choose another --out",
    ]


def test_it_crosses_a_process_border_whole():
    listing = UserError("set", "2 faults:", "none", "copy it", ["one", "two"])
    assert str(pickle.loads(pickle.dumps(listing))) == str(listing)
    copy = pickle.loads(pickle.dumps(ERROR))
    assert type(copy) is UserError
    assert str(copy) == str(ERROR)
    assert (copy.where, copy.found, copy.wanted, copy.remedy) == (
        "--out x",
        "a file",
        "a folder",
        "choose another --out",
    )


def test_plain_errors_prints_and_exits_with_1(capsys):
    with pytest.raises(SystemExit) as exit_, plain_errors():
        raise ERROR
    assert exit_.value.code == 1
    captured = capsys.readouterr()
    assert captured.err == f"error: {ERROR}\n"
    assert captured.out == ""


@pytest.mark.parametrize(
    "error",
    [
        ZeroDivisionError("of ours"),
        FileNotFoundError(errno.ENOENT, "No such file or directory", "gone"),
        OSError(errno.ENOSPC, "No space left on device"),  # of which file, nobody knows
        PermissionError(errno.EACCES, "Permission denied", 3),  # an open file's number
    ],
)
def test_plain_errors_hides_no_error_of_ours(error):
    with pytest.raises(type(error)) as raised, plain_errors():
        raise error
    assert raised.value is error


def test_what_a_path_meets_on_the_machine_is_told_in_four_parts(capsys, tmp_path):
    (tmp_path / "loop").symlink_to("loop")
    for path, found in (
        (tmp_path / ("x" * 300), "File name too long"),
        (tmp_path / "loop", "Too many levels of symbolic links"),
    ):
        with pytest.raises(SystemExit) as exit_, plain_errors():
            path.open()
        assert exit_.value.code == 1
        where, *parts = capsys.readouterr().err.splitlines()
        assert where == f"error: {path}"
        assert parts[0] == f"  found   {found}"
        assert [part.split()[0] for part in parts] == ["found", "wanted", "do"]


@pytest.mark.parametrize("number", ["EACCES", "EPERM", "EROFS", "ENOSPC", "EDQUOT"])
def test_so_is_what_root_never_meets(capsys, number):
    with pytest.raises(SystemExit) as exit_, plain_errors():
        raise OSError(getattr(errno, number), "the reason", "runs/0001/netG.pt")
    assert exit_.value.code == 1
    assert capsys.readouterr().err.startswith("error: runs/0001/netG.pt\n  found   the reason\n")


def test_what_standard_output_cannot_encode_is_escaped():
    script = "from pipeline.errors import plain_errors\nwith plain_errors(): print('178×218 µ')"
    ascii_only = environment() | {"PYTHONIOENCODING": "ascii"}
    words = [sys.executable, "-c", script]
    ended = subprocess.run(words, env=ascii_only, capture_output=True, text=True, timeout=30)
    assert (ended.returncode, ended.stdout) == (0, "178\\xd7218 \\xb5\n"), ended.stderr


@pytest.mark.parametrize("stopped", ["", "stopped; nothing was left behind"])
def test_plain_errors_says_nothing_of_what_an_interrupt_broke(stopped):
    script = (
        "import os, signal\n"
        "from pipeline.errors import plain_errors\n"
        f"with plain_errors({stopped!r}):\n"
        "    try:\n"
        "        os.kill(os.getpid(), signal.SIGINT)\n"
        "    finally:\n"
        "        raise ImportError('cannot load module more than once per process')\n"
    )
    words = [sys.executable, "-c", script]
    ended = subprocess.run(words, env=environment(), capture_output=True, text=True, timeout=30)
    assert (ended.returncode, ended.stdout, ended.stderr.strip()) == (130, "", stopped)


SHUTDOWN = """
import atexit, os, signal
from pipeline.errors import plain_errors
atexit.register(lambda: os.kill(os.getpid(), signal.SIGINT))
with plain_errors():
    pass
"""


@pytest.mark.parametrize(("before", "status"), [("", -signal.SIGINT), ("trap '' INT; ", 0)])
def test_ctrl_c_in_the_shutdown_shows_no_traceback_and_an_ignored_one_stays_ignored(before, status):
    words = ["sh", "-c", f'{before}exec "$0" -c "$1"', sys.executable, SHUTDOWN]
    ended = subprocess.run(words, env=environment(), capture_output=True, text=True, timeout=30)
    assert (ended.returncode, ended.stdout, ended.stderr) == (status, "", "")
