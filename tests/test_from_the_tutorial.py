"""docs/from-the-tutorial.md: whatever it names exists, and no line of the tutorial is left out."""

import ast
import importlib
import inspect
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch
from typer import Typer
from typer.main import get_command

from dcgan import train
from dcgan.nets.models import Discriminator
from dcgan.nets.weights import load_generator, load_weights
from dcgan.options import PRESETS
from dcgan.profiling import tutorial_step
from dcgan.rundir.folder import RunFolder
from dcgan.sampling.generate import generate, latents
from dcgan.step.adversarial import AdversarialStep
from pipeline.images.pixels import to_uint8
from tests.reference.tutorial import TutorialDiscriminator, TutorialGenerator
from tests.running import ROOT, TINY, tiny, train_here
from tools import make_shards

FILE = ROOT / "docs/from-the-tutorial.md"
PAGE = FILE.read_text()
CODE = re.compile(r"`([^`]+)`")
NAMED = re.compile(r"\[`([\w.]+)`\]\(\.\./(\S+?)\.py\)")


def rows() -> list[tuple[str, str, str]]:
    """Their side, ours, and what differs."""
    found = []
    for line in PAGE.splitlines():
        cells = [cell.strip() for cell in line.strip().removesuffix("|").split("|")[1:]]
        if len(cells) == 3 and cells[1] not in ("here", "---"):
            found.append((cells[0], cells[1], cells[2]))
    return found


THEIRS = [code for theirs, _, _ in rows() for code in CODE.findall(theirs)]
OURS = [code for _, ours, _ in rows() for code in CODE.findall(NAMED.sub("", ours))]


def options(app: Typer) -> set[str]:
    return {name for option in get_command(app).params for name in option.opts}


def outputs() -> set[str]:
    """The files of a run, by their names in it: with grids and nets after some images."""
    run = RunFolder(Path())
    numbered = [run.fakes(64_000), run.generator_at(202_496), run.discriminator_at(202_496)]
    named = [path for path in vars(run).values() if path != run.path]
    return {path.as_posix() for path in named + numbered}


def test_the_page_has_its_tables():
    assert len(rows()) > 60
    assert len(NAMED.findall(PAGE)) > 30
    assert len(OURS) > 50


@pytest.mark.parametrize(("name", "file"), sorted(set(NAMED.findall(PAGE))))
def test_each_linked_name_is_where_its_link_leads(name, file):
    module = file.replace("/", ".")
    assert name.startswith(f"{module}."), f"{name} is not in {file}.py"
    found: Any = importlib.import_module(module)
    for part in name.removeprefix(f"{module}.").split("."):
        # An attribute that the constructor makes stands in its text alone
        if not hasattr(found, part) and f"self.{part} = " in inspect.getsource(found):
            return
        found = getattr(found, part)
    defined_in = getattr(inspect.unwrap(found), "__module__", module)
    assert defined_in == module or not callable(found), f"{name} only passes through {module}"


@pytest.mark.parametrize("code", sorted(set(OURS)))
def test_whatever_else_is_ours_exists(code):
    words = code.split()
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    if words[0].startswith("--"):
        assert words[0] in options(train.app)
    elif words[0] == "tools/make_shards.py":
        assert {word for word in words if word.startswith("--")} <= options(make_shards.app)
    elif words[0] in scripts:
        assert len(words) == 1
    elif "self." in code or code.startswith("torch."):
        assert code in inspect.getsource(AdversarialStep.__call__)
    else:
        assert code in outputs()


def test_options_in_the_remarks_and_commands_exist():
    remarks = " ".join(what for _, _, what in rows())
    named = set(re.findall(r"`(--[\w-]+)", remarks))
    assert len(named) > 4
    assert named <= options(train.app)
    (preset,) = re.findall(r"--preset (\w+)", PAGE)
    assert preset in PRESETS


def test_every_statement_of_the_tutorials_step_has_its_row():
    (step,) = (
        node
        for node in ast.walk(ast.parse(inspect.getsource(tutorial_step.tutorial_step)))
        if isinstance(node, ast.FunctionDef) and node.name == "step"
    )
    statements = [ast.unparse(node) for node in step.body if not isinstance(node, ast.Return)]
    assert len(statements) == 24
    spans = [span.replace("data[0]", "data") for span in THEIRS]  # which holds classes too
    patterns = [re.escape(span).replace("…", ".*") for span in spans]
    for statement in statements:
        assert any(re.fullmatch(each, statement) for each in patterns), statement


def test_every_parameter_of_the_ancestors_has_its_row():
    theirs = "\n".join(cell for cell, _, _ in rows())
    words = set(re.findall(r"[\w-]+", theirs))
    tutorial = "dataroot workers batch_size image_size nc nz ngf ndf num_epochs lr beta1 ngpu"
    examples = (
        "--dataset --dataroot --workers --batchSize --imageSize --nz --ngf --ndf --niter --lr"
        " --beta1 --dry-run --ngpu --netG --netD --outf --manualSeed --classes --accel --cuda --mps"
    )
    port = "Dataroot Workers BatchSize ImageSize Nc Nz Ngf Ndf NumEpochs Lr Beta1 Ngpu manualSeed"
    missing = set(f"{tutorial} {examples} {port} manualSeed".split()) - words
    assert not missing


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights")
    train_here(tiny(folder / "runs/0001", image_size=64, max_steps=2, log_every=2))
    return folder


def test_a_generator_of_a_run_loads_into_the_tutorials_class(trained, monkeypatch):
    monkeypatch.chdir(trained)
    (block,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    names: dict[str, Any] = {
        "torch": torch,
        "Generator": lambda ngpu: TutorialGenerator(TINY["nz"], TINY["ngf"]),
    }
    exec(block, names)
    noise = latents(range(8), TINY["nz"])
    with torch.no_grad():
        theirs = to_uint8(names["netG"](noise)).int()
    ours = generate(load_generator(Path("runs/0001/netG_ema.pt")), noise).int()
    assert (theirs - ours).abs().max() <= 1
    assert len(theirs.unique()) > 8
    assert not torch.equal(theirs[0], theirs[1])


def test_a_discriminator_of_a_run_loads_into_the_tutorials_class(trained):
    path = trained / "runs/0001/netD.pt"
    theirs, ours = TutorialDiscriminator(TINY["ndf"]), Discriminator(64, TINY["ndf"])
    theirs.load_state_dict(torch.load(path, weights_only=True))
    load_weights(ours, path, "--netD")
    images = torch.rand(4, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        found, wanted = theirs.eval()(images).flatten(), ours.eval()(images).sigmoid()
    assert torch.allclose(found, wanted, atol=1e-6)
    assert found.std() > 0
