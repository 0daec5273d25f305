"""What needs no torch does not load it: help and refusals come at once."""

import json
import re
import sys

import pytest

from tests.running import ROOT, run_command

HEAVY = {
    *("torch", "torchvision", "torch_fidelity", "nvidia"),
    *("matplotlib", "webdataset", "plotly", "tensorboard", "dlib"),
}

TOLD = """
import json, runpy, sys, time
name, *sys.argv[1:] = sys.argv[1:]
sys.argv[0] = name
try:
    if name.endswith(".py"):
        runpy.run_path(name, run_name="__main__")
    else:
        runpy.run_module(name, run_name="__main__", alter_sys=True)
except SystemExit as end:
    loaded = sorted({module.partition(".")[0] for module in sys.modules})
    print(json.dumps([end.code, loaded, time.process_time()]))
"""
"""Runs a module or script; the last line is its status, what it loaded, and its CPU seconds."""

MOST_SECONDS = 1.0
"""Of CPU time, the interpreter's start included: help that takes longer is asked for less often."""

TOOLS = sorted(path.as_posix() for path in (ROOT / "tools").glob("*.py"))


def start(tmp_path, *words):
    ended = run_command(sys.executable, "-c", TOLD, *words, cwd=tmp_path)
    status, modules, seconds = json.loads(ended.stdout.splitlines()[-1])
    assert "typer" in modules  # so the list is really that of the program
    if "torch" not in modules:
        assert 0 < seconds < MOST_SECONDS
    return status, HEAVY & set(modules), ended.stdout + ended.stderr


COMMANDS = re.findall(
    r'^dcgan-\w+ = "([\w.]+):main"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE
)


@pytest.mark.parametrize("program", [*COMMANDS, *TOOLS])
def test_help_loads_nothing_heavy(tmp_path, program):
    status, heavy, said = start(tmp_path, program, "--help")
    assert (status, heavy) == (0, set())
    assert "Usage" in said
    assert "--help" in said


@pytest.mark.parametrize(
    ("words", "status", "told"),
    [
        ("dcgan.train --version", 0, r"dcgan-shards \d+\.\d+\.\d+\n"),
        ("dcgan.train --shards synthetic --lr 5", 1, "error: --lr"),
        ("dcgan.train --shards synthetic --batch-size x", 2, "Invalid value"),
    ],
)
def test_nor_do_the_version_and_options_that_cannot_be(tmp_path, words, status, told):
    found, heavy, said = start(tmp_path, *words.split())
    assert (found, heavy) == (status, set())
    assert re.search(told, said)
    assert "Traceback" not in said
    assert not list(tmp_path.iterdir())


def test_the_check_would_notice(tmp_path):
    status, heavy, said = start(tmp_path, "dcgan.train", "--shards", "synthetic", "--device", "no")
    assert (status, "torch" in heavy) == (1, True)
    assert not heavy & {"webdataset", "nvidia"}  # the one is never needed, the other not yet
    assert "error: --device no\n" in said
    assert "Traceback" not in said
