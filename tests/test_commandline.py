"""What the command lines have in common: -h, and an answer to the ancestors' options."""

import sys
from types import ModuleType

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from dcgan import doctor, evaluate, export, profile, report, sample, train
from dcgan.cli import FORMER
from dcgan.options import TrainConfig
from tools import check_shards, make_demo_faces, make_shards

PROGRAMS = (train, profile, doctor, sample, evaluate, report, export)
TOOLS = (make_shards, check_shards, make_demo_faces)

MEASURED = [*get_command(profile.app).commands]  # type: ignore[attr-defined]
COMMANDS: list[tuple[ModuleType, tuple[str, ...]]] = [
    *((program, ()) for program in (*PROGRAMS, *TOOLS)),
    *((profile, (command,)) for command in MEASURED),
]


@pytest.mark.parametrize(("program", "words"), COMMANDS)
def test_h_is_help_and_help_ends_in_an_example(monkeypatch, program, words):
    monkeypatch.setenv("COLUMNS", "200")
    shown = CliRunner().invoke(program.app, [*words, "-h"]).stdout
    assert shown == CliRunner().invoke(program.app, [*words, "--help"]).stdout
    assert "Usage: " in shown
    if not words:  # an example to go on with
        last = shown.rstrip().rpartition("\n\n")[2]
        assert "dcgan-" in last or "python tools/" in last


OPTIONS = {name.replace("_", "-") for name in TrainConfig.model_fields}


@pytest.mark.parametrize("form", [["{}", "3"], ["{}=3"], ["--shards", "synthetic", "{}"]])
def test_an_option_of_the_ancestors_is_answered_with_ours(monkeypatch, capsys, form):
    assert not {f"--{name}" for name in OPTIONS} & set(FORMER)
    for former, answer in FORMER.items():
        monkeypatch.setattr(sys, "argv", ["dcgan-train", *(word.format(former) for word in form)])
        with pytest.raises(SystemExit) as ended:
            train.main()
        assert ended.value.code == 1
        err = capsys.readouterr().err
        assert err.startswith(f"error: {former}\n")
        ours = answer.split(":")[0].split()[0]
        assert f"  wanted  {ours}" in err
        if ours.startswith("--") and former != "--classes":
            assert ours.removeprefix("--") in OPTIONS
