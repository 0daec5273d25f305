"""What needs no torch does not load it: help and refusals come at once."""

import json
import re
import sys

import pytest

from tests.running import ROOT, run_command

HEAVY = {"torch", "torchvision", "nvidia", "matplotlib", "webdataset", "plotly", "tensorboard"}

TOLD = """
import json, runpy, sys
name, *sys.argv[1:] = sys.argv[1:]
sys.argv[0] = name
try:
    if name.endswith(".py"):
        runpy.run_path(name, run_name="__main__")
    else:
        runpy.run_module(name, run_name="__main__", alter_sys=True)
except SystemExit as end:
    print(json.dumps([end.code, sorted({module.partition(".")[0] for module in sys.modules})]))
"""
"""Runs a module or script with its arguments; the last line is its status and what it loaded."""

TOOLS = sorted(path.as_posix() for path in (ROOT / "tools").glob("*.py"))


def start(tmp_path, *words):
    ended = run_command(sys.executable, "-c", TOLD, *words, cwd=tmp_path)
    status, modules = json.loads(ended.stdout.splitlines()[-1])
    assert "typer" in modules  # so the list is really that of the program
    return status, HEAVY & set(modules), ended.stdout + ended.stderr


COMMANDS = re.findall(r'^dcgan-\w+ = "([\w.]+):main"$', (ROOT / "pyproject.toml").read_text(), re.M)


@pytest.mark.parametrize("program", [*COMMANDS, *TOOLS])
def test_help_and_version_load_nothing_heavy(tmp_path, program):
    status, heavy, said = start(tmp_path, program, "--help")
    assert (status, heavy) == (0, set())
    assert "Usage" in said
    assert "--help" in said
    status, heavy, said = start(tmp_path, program, "--version")
    assert (status, heavy) == (0, set())
    assert re.match(r"dcgan-shards \d+\.\d+\.\d+\n", said)
    assert not list(tmp_path.iterdir())


def test_all_tools_are_asked():
    assert {"make_shards.py", "make_demo_faces.py"} <= {name.split("/")[-1] for name in TOOLS}
    assert len(COMMANDS) == 6


@pytest.mark.parametrize(
    ("words", "status"),
    [
        ("--shards synthetic --lr 5", 1),
        ("--shards synthetic --seed x", 1),
        ("--shards synthetic --batch-size x", 2),
        ("", 2),
    ],
)
def test_options_that_cannot_be_are_refused_before_anything_is_loaded(tmp_path, words, status):
    found, heavy, said = start(tmp_path, "dcgan.train", *words.split())
    assert (found, heavy) == (status, set())
    assert "Traceback" not in said
    assert not list(tmp_path.iterdir())


def test_the_check_would_notice(tmp_path):
    status, heavy, said = start(tmp_path, "dcgan.train", "--shards", "synthetic", "--device", "no")
    assert (status, "torch" in heavy) == (1, True)
    assert not heavy & {"webdataset", "nvidia"}  # the one is never needed, the other not yet
    assert "error: --device no\n" in said
    assert "Traceback" not in said
