"""Weights from a file: whole, foreign, and those that do not fit."""

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from dcgan.nets.models import Discriminator, Generator
from dcgan.nets.weights import load_generator, load_weights
from pipeline.errors import UserError
from pipeline.images.size import size_text
from tests.reference.tutorial import TutorialDiscriminator, TutorialGenerator, weights_init
from tests.running import assert_four_parts
from tests.test_models import seeded, shapes


def saved(path: Path, net: nn.Module) -> Path:
    torch.save(net.state_dict(), path)
    return path


def refusal(net: Generator | Discriminator, path: Path, flag: str = "--netG") -> UserError:
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    with pytest.raises(UserError) as error:
        load_weights(net, path, flag)
    assert error.value.where == f"{flag} {path}"
    for name, tensor in net.state_dict().items():
        assert torch.equal(tensor, before[name]), f"{name} was changed by a refused file"
    return error.value


@pytest.mark.parametrize("size", [28, (96, 64), (8, 12)], ids=str)
def test_the_size_of_the_images_is_read_from_the_shapes(tmp_path, size):
    net = Generator(size, nz=6, ngf=2, channels=1)
    found = load_generator(saved(tmp_path / "netG.pth", net))
    assert (found.image_size, found.options) == (net.image_size, net.options) == (size, net.options)
    other = refusal(Generator(64, nz=6, ngf=2, channels=1), tmp_path / "netG.pth")
    assert other.remedy == f"run with --image-size {size_text(size)}"
    error = refusal(net, saved(tmp_path / "netD.pth", Discriminator(size, ndf=2)))
    assert "holds a Discriminator" in error.remedy


@pytest.mark.parametrize(("prefix", "old"), [("", True), ("module._orig_mod.", False)])
def test_weights_of_pytorch_examples_load(tmp_path, prefix, old):
    theirs = TutorialGenerator(nz=6, ngf=4, nc=1).apply(weights_init)
    theirs(torch.randn(2, 6, 1, 1, generator=seeded()))  # so that the running statistics move
    expected = dict(theirs.state_dict())
    counts = [name for name in expected if name.endswith("num_batches_tracked")]
    assert len(counts) == 4
    path = tmp_path / "netG.pth"
    file = {prefix + name: t for name, t in expected.items() if not old or name not in counts}
    torch.save(file, path, _use_new_zipfile_serialization=not old)  # before torch 0.4.1: no zip
    if old:
        expected |= dict.fromkeys(counts, torch.tensor(0))
    ours, found = Generator(nz=6, ngf=4, channels=1), load_generator(path)
    load_weights(ours, path, "--netG")
    assert found.options == ours.options
    for net in (ours, found):
        for name, tensor in net.state_dict().items():
            assert torch.equal(tensor, expected[name]), name


def test_weights_load_as_real_wrappers_wrote_them(tmp_path):
    theirs = TutorialDiscriminator(ndf=4).apply(weights_init)
    expected = dict(theirs.state_dict())
    theirs.main = torch.compile(theirs.main)  # type: ignore[assignment]
    wrapped = nn.DataParallel(theirs).state_dict()
    assert not wrapped.keys() & expected.keys()
    torch.save(wrapped, tmp_path / "netD.pth")
    ours = Discriminator(ndf=4)
    load_weights(ours, str(tmp_path / "netD.pth"), "--netD")
    for name, tensor in expected.items():
        assert torch.equal(ours.state_dict()[name], tensor), name


def test_what_is_no_file_of_weights(tmp_path):
    net, path = Generator(32, nz=6, ngf=2), tmp_path / "netG.pth"
    assert refusal(net, path).found == "no such file"
    assert refusal(net, tmp_path).found == "a folder"
    for content in (b"", b"not weights\n", b"PK\x03\x04 zip?"):
        path.write_bytes(content)
        error = refusal(net, path)
        assert "weights_only=True" in error.found
        assert "state_dict()" in error.remedy
    for state, found in (
        (torch.zeros(2), "a Tensor"),
        ({7: torch.zeros(2)}, "a dict in which 7 is a Tensor"),
        ({"model": {"main.0.weight": torch.zeros(2)}}, "a dict in which 'model' is a dict"),
    ):
        torch.save(state, path)
        error = refusal(net, path)
        assert error.found == found
        assert "state dict" in error.wanted
        assert "state_dict()" in error.remedy
    for empty in ({}, {"main.0.weight": torch.zeros(0, 0, 4, 4)}, {"a": torch.zeros(3)}):
        torch.save(empty, path)
        assert "trained with" in refusal(net, path).remedy


class Planted:
    """Unpickled, it leaves a file behind."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[Path]]:
        return Path.touch, (self.path,)


def test_a_pickle_that_would_run_code_does_not(tmp_path):
    mark = tmp_path / "ran"
    bare, packed = tmp_path / "bare.pth", tmp_path / "packed.pth"
    bare.write_bytes(pickle.dumps(Planted(mark)))
    torch.save({"main.0.weight": Planted(mark)}, packed)
    for path in (bare, packed):
        error = refusal(Generator(32, ngf=2), path)
        assert "refuses (UnpicklingError)" in error.found
        assert "state dict" in error.wanted
        assert "that you trust" in error.remedy
        assert not mark.exists()
    torch.load(packed, weights_only=False)
    assert mark.exists(), "the planted code was harmless: this test proved nothing"


def test_a_file_that_may_not_be_read_is_not_called_broken(tmp_path, monkeypatch):
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied", "netG.pt")

    path = tmp_path / "netG.pt"
    torch.save(Generator(32, ngf=2).state_dict(), path)
    monkeypatch.setattr(torch, "load", refuse)  # root may read everything
    error = refusal(Generator(32, ngf=2), path)
    assert error.found == "Permission denied"
    assert "ls -ld" in error.remedy


SMALL: dict[str, Any] = {"image_size": 64, "nz": 6, "ngf": 4, "channels": 3}


@pytest.mark.parametrize(
    ("net", "file", "found", "remedy"),
    [
        (
            Generator(**SMALL),
            Generator(**SMALL | {"ngf": 8}),
            "main.0.weight of shape (6, 64, 4, 4)",
            "run with --ngf 8",
        ),
        (  # the same 4×4 map, reached from other options
            Generator(**SMALL),
            Generator(**SMALL | {"image_size": 128, "ngf": 2}),
            "main.12.weight of shape (4, 2, 4, 4)",
            "run with --image-size 128 --ngf 2",
        ),
        (
            Discriminator(64, ndf=4),
            Discriminator(32, ndf=4),
            "main.8.weight of shape (1, 16, 4, 4)",
            "run with --image-size 32",
        ),
    ],
    ids=["ngf", "image-size-and-ngf", "discriminator"],
)
def test_a_file_that_does_not_fit_says_what_would(tmp_path, net, file, found, remedy):
    error = refusal(net, saved(tmp_path / "net.pth", file))
    assert error.found == found
    name = error.found.split()[0]
    assert error.wanted == f"{name} of shape {shapes(net)[name]}"
    assert remedy in error.remedy
    load_weights(type(file)(**options_of(file)), tmp_path / "net.pth", "--net")  # as advised


def options_of(net: Generator | Discriminator) -> dict[str, int]:
    return {name.strip("-").replace("-", "_"): value for name, value in net.options.items()}


def test_a_tensor_missing_a_tensor_too_many_and_another_net(tmp_path):
    net = Generator(32, nz=6, ngf=2)
    state = net.state_dict()
    torch.save({k: v for k, v in state.items() if k != "main.1.bias"}, tmp_path / "less.pth")
    torch.save({**state, "main.99.weight": torch.zeros(3)}, tmp_path / "more.pth")
    less, more = (refusal(net, tmp_path / name) for name in ("less.pth", "more.pth"))
    assert (less.found, less.wanted) == ("no main.1.bias", "main.1.bias of shape (8,)")
    assert more.found == "main.99.weight of shape (3,)"
    assert more.wanted == "nothing after main.9.weight"
    for error in (less, more):
        assert "--image-size, --channels, --nz, --ngf" in error.remedy
    error = refusal(net, saved(tmp_path / "netD.pth", Discriminator(ndf=4)))
    assert "this file holds a Discriminator" in error.remedy


# A generator whose options its file tells


@pytest.mark.parametrize(
    ("size", "channels", "dtype"),
    [(32, 3, torch.float16), (128, 1, torch.float32), (32, 3, torch.float8_e4m3fn)],
)
def test_a_generator_is_built_as_its_file_was(tmp_path, size, channels, dtype):
    net = Generator(size, nz=7, ngf=2, channels=channels)
    state = {name: tensor.to(dtype) for name, tensor in net.state_dict().items()}
    torch.save(state, tmp_path / "netG.pt")
    random = torch.get_rng_state()
    found = load_generator(tmp_path / "netG.pt")
    assert torch.equal(torch.get_rng_state(), random)
    assert found.options == net.options
    assert not found.training
    for name, parameter in found.named_parameters():
        assert torch.equal(parameter, state[name].float()), name


def not_a_generator(path: Path) -> UserError:
    with pytest.raises(UserError) as error:
        load_generator(path)
    assert_four_parts(error.value, str(path))
    return error.value


def test_what_is_no_generator(tmp_path):
    path = tmp_path / "net.pt"
    assert not_a_generator(path).found == "no such file"
    assert not_a_generator(tmp_path).found == "a folder"
    assert "Discriminator" in not_a_generator(saved(path, Discriminator(32, ndf=4))).found
    assert "another net" in not_a_generator(saved(path, nn.Linear(2, 2))).found
    torch.save({"main.0.weight": Planted(tmp_path / "ran")}, path)
    assert "refuses (UnpicklingError)" in not_a_generator(path).found
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("name", "value"), [("main.3.weight", torch.nan), ("main.1.running_var", 1e39)]
)
def test_a_net_that_diverged_is_named_as_such(tmp_path, name, value):
    net = Generator(32, nz=6, ngf=2).double()  # in which 1e39 is finite
    net.state_dict()[name].view(-1)[1] = value
    path = saved(tmp_path / "netG.pt", net)
    for error in (not_a_generator(path), refusal(Generator(32, nz=6, ngf=2), path)):
        assert name in error.found
        assert "diverged" in error.found
