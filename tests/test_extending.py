"""docs/extending.md: its examples are the files beside it, run, and keep the rules of the step."""

import importlib.util
import re
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from dcgan.rundir.folder import RunFolder
from dcgan.step.adversarial import AdversarialStep
from dcgan.train import app
from dcgan.training.session import train
from pipeline.shards.shard_set import ShardSet
from tests.packing_runs import without_workers
from tests.pictures import names_in, smooth, stored
from tests.running import ROOT, cells, read_losses

FILE = ROOT / "docs/extending.md"
PAGE = FILE.read_text()
EXAMPLES = ROOT / "docs/examples"
SHOWN = re.findall(
    r"^\[docs/(\S+)\]\(\1\):\n\n```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL
)
CODES = [code for _, code in SHOWN]
FRAGMENTS = [
    code
    for code in re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    if code not in CODES
]


def example(name: str) -> Any:
    """An example as a module: its `main` is not run."""
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_shows_the_files_and_all_of_them():
    assert [name for name, _ in SHOWN] == [
        f"examples/{name}.py" for name in ("own_data", "own_net", "own_loss")
    ]
    assert set(names_in(EXAMPLES)) - {Path(name).name for name, _ in SHOWN} == {"track.py"}
    for name, code in SHOWN:
        assert code == (ROOT / "docs" / name).read_text(), f"{name}: the page has another text"
    assert len(FRAGMENTS) == 4


# Own data set


def test_own_images_come_out_of_the_shards_as_they_went_in(tmp_path, monkeypatch, undrawn):
    monkeypatch.chdir(tmp_path)
    commands: list[list[str]] = []
    data = example("own_data")
    run = SimpleNamespace(run=lambda words, check: commands.append(words))
    monkeypatch.setattr(data, "subprocess", run)
    with without_workers():
        data.main()
    shards = ShardSet.open(Path("own-data/shards"))
    packed = sorted(item for shard in stored(shards) for item in shard)
    images = np.load("own-data/images.npy")
    assert len(images) == len(packed) == 500
    assert len(np.unique(images, axis=0)) > 450
    for image, (name, pixels) in zip(images, packed, strict=True):
        assert pixels == image.tobytes(), name
    ((python, flag, module, *words),) = commands
    assert (python, flag, module) == (sys.executable, "-m", "dcgan.train")
    with pytest.raises(SystemExit) as ended:
        app(words)
    assert ended.value.code == 0
    assert len(read_losses(RunFolder(Path("own-data/run")))) == 20


def test_images_one_by_one_become_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    drawn = [smooth(20 + number, 30, number) for number in range(3)]
    exec(FRAGMENTS[0], {"Path": Path, "Image": Image, "my_images": lambda: iter(drawn)})
    assert names_in(Path("pictures")) == [f"0000000{number}.png" for number in range(3)]
    for number, pixels in enumerate(drawn):
        with Image.open(f"pictures/0000000{number}.png") as image:
            assert np.array_equal(np.asarray(image), pixels)


# Own nets


def test_own_nets_train_and_draw(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    net = example("own_net")
    untrained = net.make_step(torch.device("cpu")).update.generator.state_dict()
    net.main()
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(" loss_d")[0] for line in lines] == ["step 10", "step 20", "step 30"]
    losses = [float(found) for found in re.findall(r"loss_d (\S+)", "\n".join(lines))]
    assert losses[2] < losses[0]  # noise is soon told from what G draws
    state = torch.load("own_net.pt", weights_only=True)
    net.make_generator().load_state_dict(state)
    assert any(not torch.equal(state[name], tensor) for name, tensor in untrained.items())
    images = cells(Path("own_net.png"), 48)
    assert len(images) == 64
    assert len(np.unique(images, axis=0)) == 64


def in_examples_step(bf16: bool = False) -> Any:
    """The own nets under the own loss."""
    step, loss = example("own_net").make_step(torch.device("cpu")), example("own_loss")
    step.update.bf16 = bf16
    step.update.loss_d = loss.discriminator_hinge
    step.update.loss_g = loss.generator_hinge
    return step


def batches(seed: int = 0) -> Any:
    """A function that draws another batch at each call."""
    draw = torch.Generator().manual_seed(seed)
    shape = (16, 48, 48, 3)
    return lambda: torch.randint(0, 256, shape, generator=draw, dtype=torch.uint8)


def rehearse(make: Any) -> None:
    """Run the page's rehearsal."""
    exec(FRAGMENTS[3], {"torch": torch, "step": make(), "same": make(), "pixels": batches()})


@pytest.mark.parametrize("bf16", [False, True], ids=["fp32", "bf16"])
def test_own_nets_and_loss_pass_the_rehearsal_of_the_page(bf16):
    rehearse(lambda: in_examples_step(bf16))


def count(net, args, outputs):
    net.calls = getattr(net, "calls", 0) + 1
    return outputs + 0.1 * net.calls


@pytest.mark.parametrize(
    ("hook", "told"),
    [
        (lambda net, args, outputs: outputs * outputs.mean().item(), "reads a value on the host"),
        (lambda net, args, outputs: torch.dropout(outputs, 0.5, True), "draws from elsewhere"),
        (count, None),
    ],
    ids=["item", "dropout", "a number in Python"],
)
def test_the_rehearsal_of_the_page_shows_what_breaks_a_rule(hook, told):
    def make():
        step = in_examples_step()
        step.update.discriminator.register_forward_hook(hook)
        return step

    with pytest.raises(AssertionError, match=told):
        rehearse(make)


@pytest.mark.slow
def test_dynamo_takes_own_nets_and_loss_and_refuses_a_look_at_values():
    step, loss = in_examples_step(), example("own_loss")
    given = {"torch": torch, "noise": step.noise, "images": torch.zeros(16, 3, 48, 48)}
    fine = {"generator": step.update.generator, "discriminator": step.update.discriminator}
    exec(FRAGMENTS[2], given | fine)
    for name, arguments in (("discriminator_hinge", 2), ("generator_hinge", 1)):
        compiled = torch.compile(getattr(loss, name), fullgraph=True, backend="eager")
        compiled(*(torch.zeros(16) for _ in range(arguments)))

    class Curious(torch.nn.Module):
        def forward(self, images):
            return images if images.mean() > 0 else -images

    with pytest.raises(Exception, match=r"[Dd]ata-dependent"):
        exec(FRAGMENTS[2], given | fine | {"generator": Curious()})


# Own loss


def test_own_loss_is_what_the_run_descends(tmp_path, monkeypatch, undrawn):
    monkeypatch.chdir(tmp_path)
    loss = example("own_loss")
    x, gz = torch.tensor([2.0, 0.5, -1.0]), torch.tensor([-3.0, 0.0, 1.0])
    assert loss.discriminator_hinge(x, gz).item() == pytest.approx((0 + 0.5 + 2 + 0 + 1 + 2) / 3)
    assert loss.generator_hinge(gz).item() == pytest.approx(2 / 3)
    seen, hinge = [], loss.discriminator_hinge

    def noted(*both):
        seen.append(hinge(*both))
        return seen[-1]

    monkeypatch.setattr(loss, "discriminator_hinge", noted)
    assert train(loss.CONFIG, loss.HingeStep) == 0
    losses = read_losses(RunFolder(Path("own-loss")))
    assert losses[:, 1] == pytest.approx([each.item() for each in seen])
    assert losses[:, 2].min() < losses[:, 2].max()
    assert names_in(Path("own-loss/checkpoints")) == ["000000480.json", "000000480.pt"]


def test_a_penalty_is_added_to_what_d_descends():
    """D is linear, so the gradient at each image is its weights."""
    names: dict[str, Any] = {"torch": torch, "AdversarialStep": AdversarialStep}
    exec(FRAGMENTS[1], names)
    linear = torch.nn.Linear(12, 1)
    nets = torch.nn.Linear(1, 1), torch.nn.Sequential(torch.nn.Flatten(), linear)
    images = torch.rand(2, 5, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    steps = names["R1Step"](*nets), AdversarialStep(*nets)
    penalised, plain = (step.objective_d(images[0], images[1], (), ())[0] for step in steps)
    penalised.backward()
    assert (penalised - plain).item() == pytest.approx(5 * linear.weight.square().sum().item())
    assert linear.weight.grad is not None
