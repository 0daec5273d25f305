"""The options of `dcgan-profile`: what is refused, how it is told, and what `--help` costs."""

import json
import sys
import tomllib

import pytest

from dcgan.options import MeasuringSet
from dcgan.profiling.report import Bars, Report, publish
from pipeline.errors import UserError
from tests.running import ROOT, assert_four_parts, run_command

COMMANDS = ("loader", "stages", "compare", "sweep", "train", "step")


def options(**changes):
    return MeasuringSet(**({"shards": ROOT} | changes))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("rounds", 0),
        ("seconds", -1),
        ("seconds", float("nan")),
        ("images", 0),
        ("workers", 0),
        ("batch_size", 0),
        ("image_size", 7),
        ("seed", -1),
        ("json_file", ROOT),
        ("json_file", ROOT / "nowhere" / "found.json"),
        ("plot_file", ROOT / "found.svg"),
    ],
)
def test_options_that_cannot_be_are_refused(field, value):
    assert options().rounds == 5
    with pytest.raises(UserError) as refused:
        options(**{field: value})
    assert_four_parts(refused.value, MeasuringSet.flag(field), str(value))


def test_a_file_that_cannot_be_written_is_told(tmp_path):
    report = Report("loader", {"device": "cpu"}, [], [], [Bars("", "", {})], {})
    with pytest.raises(UserError) as refused:
        publish(report, tmp_path / ("x" * 300), None)
    assert_four_parts(refused.value, "xxx")


TOLD = """
import json, runpy, sys
sys.argv = ["dcgan-profile", *sys.argv[1:]]
try:
    runpy.run_module("dcgan.profile", run_name="__main__", alter_sys=True)
except SystemExit as end:
    print(json.dumps([end.code, sorted({name.partition(".")[0] for name in sys.modules})]))
"""


@pytest.mark.parametrize("words", [["--help"], *([command, "--help"] for command in COMMANDS)])
def test_help_loads_nothing_heavy(tmp_path, words):
    ended = run_command(sys.executable, "-c", TOLD, *words, cwd=tmp_path)
    status, modules = json.loads(ended.stdout.splitlines()[-1])
    assert (status, "typer" in modules) == (0, True)
    assert not {"torch", "torchvision", "nvidia", "matplotlib", "webdataset", "numpy"} & set(
        modules
    )
    assert "Usage" in ended.stdout


def test_the_command_is_installed():
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    assert scripts["dcgan-profile"] == "dcgan.profile:main"


def test_an_error_is_told_without_a_traceback(tmp_path):
    words = ["-m", "dcgan.profile", "compare", "--shards", "nowhere"]
    ended = run_command(sys.executable, *words, cwd=tmp_path)
    assert ended.returncode == 1
    assert ended.stderr.startswith("error: nowhere\n  found   no such folder\n")


def test_noise_is_no_set_to_measure_a_loader_with(tmp_path):
    ended = run_command(
        *(sys.executable, "-m", "dcgan.profile", "loader", "--shards", "synthetic"), cwd=tmp_path
    )
    assert ended.returncode == 1
    assert ended.stderr.startswith("error: --shards synthetic\n  found   noise")
    assert "dcgan-profile step" in ended.stderr
