"""The pages are true: commands parse, Python runs, tables say what the code says, all is listed."""

import ast
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
from pipeline.packing.sources.open import open_source
from tests.markdown import (
    GUIDES,
    TINY,
    anchors,
    blocks,
    guide,
    lines,
    links,
    make_celeba_zip,
    name_of,
    pages,
    parse,
    shell,
    simple_commands,
)
from tests.packing_runs import without_workers
from tests.running import ROOT, STATUS, flags, tiny, train_here

NOT_RUN = {
    "make": "the README's tests run the demo",
    "source": "the tests run in an environment already",
    "mkdir": "test_readme does; here the archive is in its place",
    "npm": "fetches what .ci/run has fetched",
    "pip": "changes the environment that the tests run in",
    "dcgan-profile": "measures for minutes; test_profile does, on little",
    "dcgan-doctor --verify": "compiles for a minute; test_doctor_verify does the rest",
}

SMALL = {name: f"{added} --ngf 8 --ndf 8" for name, added in TINY.items()}


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
    train_here(tiny(here / "runs/faces", shards=str(here / "shards"), max_steps=2, ema_nimg=100))
    (here / "runs/0001").mkdir()
    torch.save(Generator().state_dict(), here / "runs/0001/netG_ema.pt")
    return here


@pytest.mark.parametrize("page", pages(), ids=name_of)
def test_commands_are_such_as_their_programs_take_and_python_is_python(page):
    for line in lines(page, "bash", "sh"):
        for words in simple_commands(line):
            _check(words)
    for block in blocks(page, "python"):
        compile(block, name_of(page), "exec")


def _check(words: list[str]) -> None:
    match words:
        case ["python", tool, *rest] if tool.startswith("tools/"):
            parse(tool, rest)
        case ["python", "-m", module, *_]:
            assert importlib.util.find_spec(module), f"no module {module}"
        case ["torchrun", *rest]:
            launched = get_args_parser().parse_args(rest)
            assert launched.training_script in ("dcgan.train", "dcgan.evaluate"), words
            parse(launched.training_script.replace(".", "-"), launched.training_script_args)
        case ["make", *words]:
            targets = [word for word in words if "=" not in word]
            known = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
            assert set(targets) <= set(known), f"make {targets}"
        case [name, *rest] if name.startswith("dcgan-"):
            parse(name, rest)


@pytest.mark.parametrize("name", ["loader", "step", "sampling"])
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


def test_the_reference_of_options_is_of_these_commands():
    spec = importlib.util.spec_from_file_location("options_page", ROOT / "docs/options.py")
    assert spec is not None
    assert spec.loader is not None
    written = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(written)
    assert written.PAGE.read_text() == written.page(), "run make docs"


def test_presets_are_told_as_they_are():
    rows = re.findall(r"^\| `(\w+)` \| `([^`]+)` \|$", guide("training").read_text(), re.MULTILINE)
    assert {name: said.split() for name, said in rows} == {
        name: flags(**preset) for name, preset in PRESETS.items()
    }


def test_the_status_line_is_one():
    (line,) = blocks(guide("training"), "text")
    assert re.fullmatch(STATUS, line.strip())


@pytest.mark.slow
def test_the_site_builds_without_a_warning(tmp_path):
    """As `make docs` does."""
    command = f"{sys.executable} -m sphinx --fail-on-warning --quiet -b html docs"
    done = subprocess.run(
        [*command.split(), tmp_path], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert "AdversarialStep" in (tmp_path / "api/dcgan.step.html").read_text()


@pytest.mark.parametrize("page", pages(), ids=name_of)
def test_links_lead_somewhere(page):
    for target in links(page):
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.is_relative_to(ROOT), f"{target} is outside the repository"
        assert file.exists(), target
        if anchor:
            lines = re.fullmatch(r"L\d+(-L\d+)?", anchor)
            assert lines or anchor in anchors(file), f"{target}: no such heading"


def test_tests_that_pages_name_exist():
    assert len(pages()) > 15
    assert len(links(ROOT / "docs/index.md")) > 10
    for page in pages():
        for file, name in re.findall(r"`(tests/\w+\.py)::(\w+)`", page.read_text()):
            assert f"def {name}(" in (ROOT / file).read_text(), f"{name_of(page)}: {file}::{name}"


def test_the_gpu_claims_name_the_tests_that_need_a_gpu():
    needed = set()
    for path in (ROOT / "tests").glob("test_*.py"):
        text = path.read_text()
        for each in ast.parse(text).body:
            if isinstance(each, ast.FunctionDef) and each.name.startswith("test_"):
                marks = " ".join(map(ast.unparse, each.decorator_list))
                if "mark.gpu" in marks or "\npytestmark = pytest.mark.gpu\n" in text:
                    needed.add(f"tests/{path.name}::{each.name}")
    assert set(re.findall(r"`(tests/\S+)` \(gpu\)", guide("gpu").read_text())) == needed
