"""The walk goes one way: who may import whom, which library is used where, and who speaks."""

import ast
import shutil
import subprocess
import sys
import tomllib

import pytest

from tests.running import ROOT, environment

LINT_IMPORTS = (
    "from importlinter.cli import lint_imports; raise SystemExit(lint_imports(no_cache=True))"
)

HOMES = {
    "nvidia": {"pipeline.dali", "pipeline.graph", "dcgan.profiling.contenders"},
    "webdataset": {"dcgan.profiling.contenders"},
    "torchvision": {"dcgan.profiling.contenders", "dcgan.judging.neighbours", "dcgan.pictures"},
    "simplejpeg": {"pipeline.checking", "pipeline.storing"},
    "filelock": {"pipeline.files"},
    "matplotlib": {"dcgan.pictures", "dcgan.profiling.report"},
    "plotly": {"dcgan.reporting.page"},
    "jinja2": {"dcgan.reporting.page"},
    "tensorboard": {"dcgan.tracking"},
    "torch_fidelity": {"dcgan.judging.fidelity"},
}
"""By library, the modules that import it: another implementation of what it does goes there too."""

SPEAKERS = {
    "pipeline.errors": "the one message of a failed command",
    "dcgan.log": "training",
    "dcgan.cli": "what a command is at, --version",
    "dcgan.profiling.bench": "progress of a measurement",
    "dcgan.profiling.report": "its tables",
    **dict.fromkeys(
        ("dcgan.doctor", "dcgan.profile", "dcgan.report", "dcgan.sample"), "a command line"
    ),
    "dcgan.judging.evaluation": "its tables",
    **dict.fromkeys(
        ("tools.check_shards", "tools.make_demo_faces", "tools.make_shards"), "a command line"
    ),
}
"""The modules that write to the terminal, and what; all others return values or raise."""


def contracts(folder):
    """What import-linter says of the packages in a folder: its status, and its words."""
    ended = subprocess.run(
        [sys.executable, "-c", LINT_IMPORTS],
        cwd=folder,
        env=environment() | {"PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    return ended.returncode, ended.stdout + ended.stderr


def modules():
    """(dotted name, syntax tree) of all that the product is made of."""
    for folder in ("pipeline", "dcgan", "tools"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            name = path.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".")
            yield name, ast.parse(path.read_text(encoding="utf-8"))


def imported(tree):
    """The libraries that a module imports anywhere, also within functions."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module.partition(".")[0]


def speaks(tree):
    """Whether a module touches the terminal: through sys, typer or rich."""
    for node in ast.walk(tree):
        match node:
            case ast.Attribute(value=ast.Name(id="sys"), attr="stdout" | "stderr"):
                return True
            case ast.Attribute(value=ast.Name(id="typer"), attr="echo" | "secho"):
                return True
            case ast.Name(id="Console" | "print"):
                return True
    return False


def test_imports_point_one_way():
    status, said = contracts(ROOT)
    assert status == 0, said
    assert "7 kept, 0 broken" in said


@pytest.mark.parametrize(
    ("module", "line", "contract"),
    [
        ("pipeline/errors.py", "from dcgan import options", "pipeline knows nothing"),
        ("dcgan/report.py", "def late():\n    from tools import make_shards", "needs the checkout"),
        ("pipeline/index.py", "import pipeline.loader", "layers of pipeline"),
        ("pipeline/loader.py", "from pipeline.packing import pack", "nothing of what packs"),
        ("dcgan/step.py", "from dcgan.trainer import Trainer", "layers of dcgan"),
        ("dcgan/sample.py", "from dcgan.evaluate import app", "layers of dcgan"),
        ("dcgan/checks/data.py", "import dcgan.profiling.step", "layers of dcgan"),
        ("dcgan/profiling/measuring.py", "import dcgan.profiling.step", "circles"),
        ("dcgan/models.py", "from pipeline.batches import Batches", "batches from anything"),
        ("pipeline/sources.py", "from pipeline.shard import write_shard", "circles"),
        ("pipeline/newcomer.py", "", "layers of pipeline"),
    ],
)
def test_the_contracts_would_notice(tmp_path, module, line, contract):
    for package in ("pipeline", "dcgan"):
        shutil.copytree(
            ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__")
        )
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    with (tmp_path / module).open("a", encoding="utf-8") as file:
        file.write(f"\n{line}\n")
    status, said = contracts(tmp_path)
    broken = [told for told in said.splitlines() if told.endswith("BROKEN")]
    assert (status, contract in str(broken)) == (1, True), said


def test_a_library_is_used_where_its_home_is():
    found: dict[str, set[str]] = {library: set() for library in HOMES}
    for name, tree in modules():
        for library in set(imported(tree)) & set(HOMES):
            found[library].add(name)
    assert found == HOMES


def test_only_those_speak_whose_part_it_is():
    assert {name for name, tree in modules() if speaks(tree)} == set(SPEAKERS)


def test_tools_are_scripts_and_the_rest_are_packages():
    assert not (ROOT / "tools" / "__init__.py").exists()
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    installed = set(settings["tool"]["setuptools"]["packages"]) - {"dcgan_tools"}
    found = set()
    for package in ("pipeline", "dcgan"):
        assert (ROOT / package / "py.typed").is_file()
        folders = {path.parent for path in (ROOT / package).rglob("*.py")}
        found |= {folder.relative_to(ROOT).as_posix().replace("/", ".") for folder in folders}
        assert all((folder / "__init__.py").is_file() for folder in folders)
    assert found == installed
