"""The pages are true: commands parse, Python runs, tables say what the code says, all is listed."""

import importlib.util
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.distributed.run import get_args_parser

from dcgan.nets.models import Generator
from dcgan.options import PRESETS
from pipeline.packing.pack import Packing, pack
from pipeline.packing.sources import open_source
from tests.markdown import (
    GUIDES,
    TINY,
    blocks,
    guide,
    lines,
    make_celeba_zip,
    name_of,
    named_as,
    options,
    pages,
    parse,
    program,
    prose,
    shell,
    simple_commands,
)
from tests.packing_runs import without_workers
from tests.running import ROOT, STATUS, flags, tiny, train_here

NOT_RUN = {
    "make": "the README's tests run the demo",
    "source": "the tests run in an environment already",
    "mkdir": "test_readme does; here the archive is in its place",
    "pip": "changes the environment that the tests run in",
    "dcgan-profile": "measures for minutes; test_profile does, on little",
    "dcgan-evaluate runs/0001 --weights": "needs the published weights; test_fidelity makes some",
    "dcgan-doctor --verify": "compiles for a minute; test_doctor_verify does the rest",
}

SMALL = {name: f"{added} --ngf 8 --ndf 8" for name, added in TINY.items()}

WHERE = {
    "dcgan-train": "training",
    "dcgan-sample": "sampling",
    "dcgan-evaluate": "sampling",
    "dcgan-report": "sampling",
    "dcgan-doctor": "quickstart",
    "dcgan-profile": "performance",
    "tools/make_shards.py": "packing",
    "tools/check_shards.py": "packing",
    "tools/make_demo_faces.py": "quickstart",
}
"""The page that names all options of a command."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the guides presuppose: tools, CelebA's archive and lists, a set, a run and weights."""
    here = tmp_path_factory.mktemp("guides")
    (here / "tools").symlink_to(ROOT / "tools")
    (here / "celeba").mkdir()
    make_celeba_zip(here / "celeba/img_align_celeba.zip")
    names = [f"{number:06d}.jpg" for number in range(1, 17)]
    (here / "celeba/list_eval_partition.txt").write_text("".join(f"{name} 0\n" for name in names))
    attributes = "".join(f"{name} 1 -1\n" for name in names)
    (here / "celeba/list_attr_celeba.txt").write_text(f"16\nSmiling Male\n{attributes}")
    source = open_source(here / "celeba")
    with without_workers():
        pack(source, source.members(), here / "shards", Packing())
    train_here(tiny(here / "runs/faces", shards=str(here / "shards"), max_steps=2))
    (here / "runs/0001").mkdir()
    torch.save(Generator().state_dict(), here / "runs/0001/netG_ema.pt")
    return here


@pytest.mark.parametrize("page", pages(), ids=name_of)
def test_commands_are_such_as_their_programs_take(page):
    for line in lines(page, "bash", "sh"):
        for words in simple_commands(line):
            _check(words)


def _check(words: list[str]) -> None:
    match words:
        case ["python", tool, *rest] if tool.startswith("tools/"):
            parse(tool, rest)
        case ["python", "-m", module, *_]:
            assert importlib.util.find_spec(module), f"no module {module}"
        case ["torchrun", *rest]:
            launched = get_args_parser().parse_args(rest)
            assert launched.training_script == "dcgan.train", words
            parse("dcgan-train", launched.training_script_args)
        case ["make", *targets]:
            known = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
            assert set(targets) <= set(known), f"make {targets}"
        case [name, *rest] if name.startswith("dcgan-"):
            parse(name, rest)


def test_a_shell_line_is_taken_apart():
    line = "while dcgan-train --max-time 55; [ $? -eq 75 ]; do :; done && echo 'a; b' | cat"
    assert [words[0] for words in simple_commands(line)] == [
        *("dcgan-train", "[", ":", "done", "echo", "cat"),
    ]


@pytest.mark.parametrize("page", pages(), ids=name_of)
def test_python_is_python(page):
    for block in blocks(page, "python"):
        compile(block, name_of(page), "exec")


@pytest.mark.parametrize("name", ["loader", "step", "training", "sampling"])
def test_python_runs(name, folder, monkeypatch):
    monkeypatch.chdir(folder)
    found = blocks(guide(name), "python")
    assert found
    for block in found:
        exec(compile(block, f"{name}.md", "exec"), {"__name__": "__main__"})


@pytest.fixture(scope="module")
def trained(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same, with runs that commands can go on with."""
    here = shutil.copytree(folder, tmp_path_factory.mktemp("trained") / "here", symlinks=True)
    shutil.rmtree(here / "runs")
    for number in ("0001", "0002"):
        shell(f"dcgan-train --shards shards/ --run runs/{number} {SMALL['dcgan-train']}", here)
    return here


@pytest.mark.slow
@pytest.mark.parametrize("name", GUIDES)
def test_commands_run(name, trained, tmp_path):
    here = shutil.copytree(trained, tmp_path / "here", symlinks=True)
    run = [line for line in lines(guide(name), "bash") if not line.startswith(tuple(NOT_RUN))]
    assert run
    for line in run:
        if line == "python tools/make_shards.py celeba/":
            shutil.rmtree(here / "shards")
        shell(f"{line} {SMALL.get(line.split()[0], '')}", here)


def test_commands_left_out_stand_in_a_guide():
    commands = [line for name in GUIDES for line in lines(guide(name), "bash")]
    assert all(any(line.startswith(left) for line in commands) for left in NOT_RUN)


@pytest.mark.parametrize("name", GUIDES)
def test_a_guide_says_what_it_answers_and_begins_with_a_command(name):
    title, sentence, fence = guide(name).read_text().split("\n\n")[:3]
    assert title.startswith("# ")
    assert re.fullmatch(r"[A-Z][^.]+\.", sentence)
    assert fence.startswith("```bash\n")


@pytest.mark.parametrize("command", WHERE)
def test_every_option_stands_on_its_commands_page(command):
    text = guide(WHERE[command]).read_text()
    named = set(re.findall(r"(?<![\w-])--[A-Za-z][\w-]*", text))
    missing = options(command) - named
    assert not missing, f"{WHERE[command]}.md says nothing of {sorted(missing)}"


@pytest.mark.parametrize("command", ["dcgan-train", "tools/make_shards.py"])
def test_tables_have_each_option_once_with_its_default(command):
    told = _table(guide(WHERE[command]).read_text())
    wanted = {named_as(each): _default(each) for each in program(command).params}
    assert set(told) - {"--version"} == options(command)
    wanted = {name: wanted[name] for name in options(command)}
    for name, default in wanted.items():
        assert default is None or told[name] == default, f"{name}: {told[name]}, not {default}"


def _table(text: str) -> dict[str, str]:
    """Of each option in the first cells of the table of options: its second cell."""
    _, table = re.split(r"^\|[^|]*\| default \|", text, flags=re.MULTILINE)
    rows = re.findall(r"^\| (`--[^|]+) \| ([^|]*)\|", table, re.MULTILINE)
    cells = [(name, said) for cell, said in rows for name in re.findall(r"`(--[\w-]+)`", cell)]
    found = {name: said.replace("`", "").strip() for name, said in cells}
    assert len(found) == len(cells), "an option stands twice"
    return found


def _default(parameter) -> str | None:
    """A default as a table has it; None where that may use words of its own."""
    if parameter.required:
        return "required"
    if isinstance(parameter.show_default, str):
        return parameter.show_default
    if isinstance(parameter.default, bool):
        return "off"
    if isinstance(parameter.default, float):
        return f"{parameter.default:g}"
    return None if parameter.default is None else str(parameter.default)


def test_presets_are_told_as_they_are():
    rows = re.findall(r"^\| `(\w+)` \| `([^`]+)` \|$", guide("training").read_text(), re.MULTILINE)
    assert {name: said.split() for name, said in rows} == {
        name: flags(**preset) for name, preset in PRESETS.items()
    }


def test_the_status_line_is_one():
    (line,) = blocks(guide("training"), "text")
    assert re.fullmatch(STATUS, line.strip())


def test_every_module_is_in_the_reference_once():
    listed = [
        name
        for page in sorted((ROOT / "docs/api").glob("*.md"))
        for name in re.findall(r"^\.\. automodule:: (\S+)$", page.read_text(), re.MULTILINE)
    ]
    modules = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for package in ("pipeline", "dcgan")
        for path in (ROOT / package).rglob("*.py")
    ]
    assert sorted(listed) == sorted(modules)


def test_a_modules_heading_is_its_name():
    for page in sorted((ROOT / "docs/api").glob("*.md")):
        if page.stem != "index":
            headings = re.findall(r"^## (\S+)$", prose(page), re.MULTILINE)
            assert headings == re.findall(r"automodule:: (\S+)", page.read_text())


@pytest.mark.slow
def test_the_site_builds_without_a_warning(tmp_path):
    """As `make docs` does."""
    command = f"{sys.executable} -m sphinx --fail-on-warning --quiet -b html docs"
    done = subprocess.run(
        [*command.split(), tmp_path], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert "AdversarialStep" in (tmp_path / "api/nets-and-step.html").read_text()
