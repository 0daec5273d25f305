"""docs/from-the-tutorial.md: the code that it names exists, and weights go both ways."""

import importlib
import inspect
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from dcgan.nets.models import Discriminator
from dcgan.nets.weights import load_generator, load_weights
from dcgan.sampling.generate import generate, latents
from dcgan.step.adversarial import AdversarialStep
from pipeline.images.pixels import to_uint8
from tests.reference.tutorial import TutorialDiscriminator, TutorialGenerator
from tests.running import ROOT, TINY, tiny, train_here

PAGE = (ROOT / "docs/from-the-tutorial.md").read_text()
NAMED = re.compile(r"\[`([\w.]+)`\]\(\.\./(\S+?)\.py\)")


def test_each_linked_name_is_where_its_link_leads():
    for name, file in set(NAMED.findall(PAGE)):
        module = file.replace("/", ".")
        found: Any = importlib.import_module(module)
        for part in name.removeprefix(f"{module}.").split("."):
            # An attribute that the constructor makes stands in its text alone
            if not hasattr(found, part) and f"self.{part} = " in inspect.getsource(found):
                break
            found = getattr(found, part)


def test_the_lines_of_our_step_are_as_they_stand_there():
    shown = [code for code in re.findall(r"`([^`\n]+)`", PAGE) if "self." in code]
    assert len(shown) >= 10
    ours = inspect.getsource(AdversarialStep)
    assert not [code for code in shown if code not in ours]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights")
    train_here(tiny(folder / "runs/0001", image_size=64, max_steps=2, ema_nimg=100))
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
