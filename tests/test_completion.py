"""The shell completes commands, options and values, by the ways that the guide names."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from dcgan.options import PRESETS, TrainConfig, choices
from tests.needs import require
from tests.running import environment

BIN = Path(sys.executable).parent


def run(words, **variables):
    ended = subprocess.run(
        words,
        env=environment() | variables,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    return ended.stdout


def variable(name):
    return f"_{name.replace('-', '_').upper()}_COMPLETE"


def completed(line):
    """What bash is told to offer for the last word of a line."""
    words = line.split(" ")
    asked = {"COMP_WORDS": line, "COMP_CWORD": str(len(words) - 1)}
    return run([BIN / words[0]], **{variable(words[0]): "complete_bash"}, **asked).split()


def test_each_shell_is_given_a_function(tmp_path):
    require("bash")
    name = "dcgan-train"
    script = run([BIN / name], **{variable(name): "source_bash"})
    (tmp_path / "completion").write_text(script)
    lines = f'. "{tmp_path}/completion"; complete -p {name}'
    assert re.search(rf"-F _\w+ {name}$", run(["bash", "-c", lines]).strip())
    said = run([BIN / name], **{variable(name): "source_zsh"})
    assert said.lstrip().startswith(f"#compdef {name}")
    said = run([BIN / name], **{variable(name): "source_fish"})
    assert f"--command {name}" in said


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("dcgan-train --max-", {"--max-steps", "--max-time"}),
        ("dcgan-train --shards shards --preset ", set(PRESETS)),
        ("dcgan-train --step ", set(choices(TrainConfig.model_fields["step"].annotation))),
        ("dcgan-profile s", {"stages", "step", "store"}),
    ],
)
def test_words_are_completed(line, offered):
    assert set(completed(line)) == offered


def test_bash_completes_a_line_by_the_function(tmp_path):
    """As the guide's line does: eval, then Tab."""
    require("bash")
    name = "dcgan-train"
    lines = (
        f'PATH="{BIN}:$PATH"; eval "$({variable(name)}=source_bash {name})";'
        f" COMP_WORDS=({name} --on-trouble r); COMP_CWORD=2;"
        f" function=$(complete -p {name} | sed 's/.*-F \\([^ ]*\\).*/\\1/');"
        f' $function {name} r --on-trouble; echo "${{COMPREPLY[@]}}"'
    )
    assert run(["bash", "-c", lines], HOME=str(tmp_path)) == "rollback\n"
    assert not list(tmp_path.iterdir())


def test_install_completion_writes_below_home_alone(tmp_path):
    require("bash")
    shell = {"HOME": str(tmp_path), "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}
    said = run([BIN / "dcgan-train", "--install-completion", "bash"], **shell)
    assert "completion installed in" in said
    assert "dcgan-train" in (tmp_path / ".bashrc").read_text()
