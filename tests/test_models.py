"""The nets: their shapes, the ancestors' names, their first weights, and weights from a file."""

import itertools
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from dcgan.models import (
    CHANNELS,
    SIZES,
    Discriminator,
    Generator,
    count_parameters,
    init_weights,
    load_weights,
)
from pipeline.errors import UserError
from tests.reference.tutorial import TutorialDiscriminator, TutorialGenerator, weights_init

EVERY_NET = list(itertools.product(SIZES, CHANNELS))


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def shapes(net: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in net.state_dict().items()}


# Shapes


@pytest.mark.parametrize(("size", "channels"), EVERY_NET)
def test_generator_goes_from_noise_to_images(size, channels):
    net = Generator(size, nz=7, ngf=2, channels=channels)
    init_weights(net, seeded())
    images = net(torch.randn(3, 7, 1, 1, generator=seeded()))
    assert images.shape == (3, channels, size, size)
    assert 0 < images.abs().amax() <= 1
    assert net.main[0].out_channels == 2 * size // 8  # the 4×4 map
    assert net.main[-2].in_channels == 2  # ngf, whatever the size


@pytest.mark.parametrize(("size", "channels"), EVERY_NET)
def test_discriminator_goes_from_images_to_logits(size, channels):
    net = Discriminator(size, ndf=2, channels=channels)
    images = torch.rand(3, channels, size, size, generator=seeded()) * 2 - 1
    assert net(images).shape == (3,)
    assert net.main[0].out_channels == 2  # ndf, whatever the size
    assert net.main[-1].in_channels == 2 * size // 8  # the 4×4 map


def test_a_batch_of_one_keeps_its_axis():
    assert Discriminator(32, ndf=2).eval()(torch.zeros(1, 3, 32, 32)).shape == (1,)


def test_logits_are_not_squashed():
    net = Discriminator(32, ndf=2).eval()
    init_weights(net, seeded())
    with torch.no_grad():
        net.get_parameter("main.8.weight").mul_(1e6)
        logits = net(torch.rand(8, 3, 32, 32, generator=seeded()) * 2 - 1)
    assert logits.abs().max() > 1


@pytest.mark.parametrize(
    ("build", "where", "found", "wanted", "remedy"),
    [
        (lambda: Generator(image_size=48), "--image-size", "48", "one of 32, 64, 128, 256", "32"),
        (lambda: Discriminator(image_size=512), "--image-size", "512", "32, 64, 128, 256", "256"),
        (lambda: Generator(channels=4), "--channels", "4", "one of 1, 3", "--channels 3"),
        (lambda: Discriminator(channels=0), "--channels", "0", "one of 1, 3", "--channels 1"),
        (lambda: Generator(nz=0), "--nz", "0", "at least 1", "leave --nz out"),
        (lambda: Generator(ngf=-1), "--ngf", "-1", "at least 1", "leave --ngf out"),
        (lambda: Discriminator(ndf=0), "--ndf", "0", "at least 1", "leave --ndf out"),
    ],
)
def test_a_net_that_cannot_be_built_names_its_flag(build, where, found, wanted, remedy):
    with pytest.raises(UserError) as error:
        build()
    assert (error.value.where, error.value.found) == (where, found)
    assert wanted in error.value.wanted
    assert remedy in error.value.remedy


# The same as the ancestors' at 64×64

PAIRS = [
    pytest.param(lambda: Generator(), lambda: TutorialGenerator(), id="generator"),
    pytest.param(lambda: Discriminator(), lambda: TutorialDiscriminator(), id="discriminator"),
    pytest.param(
        lambda: Generator(nz=5, ngf=4, channels=1), lambda: TutorialGenerator(5, 4, 1), id="small-g"
    ),
    pytest.param(
        lambda: Discriminator(ndf=4, channels=1), lambda: TutorialDiscriminator(4, 1), id="small-d"
    ),
]


@pytest.mark.parametrize(("ours", "theirs"), PAIRS)
def test_names_and_shapes_are_the_tutorials(ours, theirs):
    wanted = shapes(theirs())
    assert "main.0.weight" in wanted
    assert list(shapes(ours()).items()) == list(wanted.items())


def test_parameter_counts():
    # By hand, 4·4·in·out a layer plus 2 a BatchNorm channel:
    # 16·(100·512 + 512·256 + 256·128 + 128·64 + 64·3) + 2·(512 + 256 + 128 + 64)
    assert count_parameters(Generator()) == 3_576_704
    # 16·(3·64 + 64·128 + 128·256 + 256·512 + 512·1) + 2·(128 + 256 + 512)
    assert count_parameters(Discriminator()) == 2_765_568


@pytest.mark.parametrize("train", [True, False])
def test_generator_draws_what_the_tutorials_draws(train):
    theirs = TutorialGenerator(nz=10, ngf=4).apply(weights_init).train(train)
    ours = Generator(nz=10, ngf=4).train(train)
    ours.load_state_dict(theirs.state_dict())
    noise = torch.randn(4, 10, 1, 1, generator=seeded())
    torch.testing.assert_close(ours(noise), theirs(noise), rtol=0, atol=0)


@pytest.mark.parametrize("train", [True, False])
def test_discriminator_judges_as_the_tutorials_judges(train):
    theirs = TutorialDiscriminator(ndf=4).apply(weights_init).train(train)
    ours = Discriminator(ndf=4).train(train)
    ours.load_state_dict(theirs.state_dict())
    images = torch.rand(4, 3, 64, 64, generator=seeded()) * 2 - 1
    torch.testing.assert_close(torch.sigmoid(ours(images)), theirs(images).view(-1), rtol=0, atol=0)


# First weights


@pytest.mark.parametrize("build", [Generator, Discriminator])
def test_first_weights_have_the_papers_mean_and_spread(build):
    net = build(32)
    init_weights(net, seeded())
    kinds = []
    for layer in net.modules():
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d | nn.BatchNorm2d):
            kinds.append(type(layer).__name__)
            mean = 1.0 if isinstance(layer, nn.BatchNorm2d) else 0.0
            weight, n = layer.weight.detach(), layer.weight.numel()
            # five standard errors of a normal sample's mean and spread
            assert weight.mean().item() == pytest.approx(mean, abs=5 * 0.02 / n**0.5)
            assert weight.std().item() == pytest.approx(0.02, abs=5 * 0.02 / (2 * n) ** 0.5)
            assert layer.bias is None or not layer.bias.any()
    convolution = "ConvTranspose2d" if build is Generator else "Conv2d"
    assert kinds.count(convolution) == 4
    assert kinds.count("BatchNorm2d") == (3 if build is Generator else 2)


def test_biases_become_zero_whatever_they_were():
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ConvTranspose2d(2, 2, 3), nn.BatchNorm2d(2))
    biases = [net.get_parameter(f"{k}.bias") for k in range(3)]
    for bias in biases:
        nn.init.ones_(bias)
    init_weights(net, seeded())
    assert [bias.tolist() for bias in biases] == [[0.0, 0.0]] * 3


@pytest.mark.parametrize("build", [Generator, Discriminator])
def test_first_weights_follow_the_seed_alone(build):
    plain, again, other = (build(32) for _ in range(3))
    turned = build(32).to(memory_format=torch.channels_last)
    double = build(32).to(torch.float64)
    for net, seed in ((plain, 1), (again, 1), (other, 2), (turned, 1), (double, 1)):
        init_weights(net, seeded(seed))
    for name, weight in plain.named_parameters():
        assert torch.equal(weight, again.get_parameter(name)), name
        assert torch.equal(weight, turned.get_parameter(name)), name
        assert torch.equal(weight.double(), double.get_parameter(name)), name
        if not name.endswith("bias"):
            assert not torch.equal(weight, other.get_parameter(name)), name


@pytest.mark.parametrize(
    ("build", "reference"),
    [(Generator, TutorialGenerator), (Discriminator, TutorialDiscriminator)],
)
def test_under_the_global_seed_first_weights_are_the_tutorials(build, reference):
    torch.manual_seed(999)
    theirs = reference().apply(weights_init)
    torch.manual_seed(999)
    ours = build()
    init_weights(ours)
    for name, weight in theirs.named_parameters():
        assert torch.equal(ours.get_parameter(name), weight), name


# Weights from a file


def saved(path: Path, net: nn.Module, *, prefix: str = "") -> Path:
    torch.save({prefix + name: tensor for name, tensor in net.state_dict().items()}, path)
    return path


def refusal(net: Generator | Discriminator, path: Path, flag: str = "--netG") -> UserError:
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    with pytest.raises(UserError) as error:
        load_weights(net, path, flag)
    assert error.value.where == f"{flag} {path}"
    for name, tensor in net.state_dict().items():
        assert torch.equal(tensor, before[name]), f"{name} was changed by a refused file"
    return error.value


@pytest.mark.parametrize("prefix", ["", "module."])
def test_weights_load_with_and_without_dataparallels_prefix(tmp_path, prefix):
    theirs = TutorialGenerator(nz=6, ngf=4).apply(weights_init)
    theirs(torch.randn(2, 6, 1, 1, generator=seeded()))  # so that the running statistics move
    ours = Generator(nz=6, ngf=4)
    load_weights(ours, saved(tmp_path / "netG.pth", theirs, prefix=prefix), "--netG")
    for name, tensor in theirs.state_dict().items():
        assert torch.equal(ours.state_dict()[name], tensor), name


def test_weights_load_as_a_real_dataparallel_wrote_them(tmp_path):
    theirs = TutorialDiscriminator(ndf=4).apply(weights_init)
    torch.save(nn.DataParallel(theirs).state_dict(), tmp_path / "netD.pth")
    ours = Discriminator(ndf=4)
    load_weights(ours, str(tmp_path / "netD.pth"), "--netD")
    for name, tensor in theirs.state_dict().items():
        assert torch.equal(ours.state_dict()[name], tensor), name


def test_a_missing_file(tmp_path):
    error = refusal(Generator(32, ngf=2), tmp_path / "netG.pth")
    assert error.found == "no such file"
    assert "state dict" in error.wanted
    assert "path" in error.remedy


def test_a_folder(tmp_path):
    assert refusal(Generator(32, ngf=2), tmp_path).found == "a folder"


@pytest.mark.parametrize(
    "content",
    [b"", b"not weights\n", b"\x89PNG\r\n\x1a\n" + bytes(99), b"PK\x03\x04 zip?", bytes(999)],
    ids=["empty", "text", "png", "half-a-zip", "zeros"],
)
def test_a_file_of_something_else(tmp_path, content):
    path = tmp_path / "netG.pth"
    path.write_bytes(content)
    error = refusal(Generator(32, ngf=2), path)
    assert "weights_only=True" in error.found
    assert "state dict" in error.wanted
    assert "state_dict()" in error.remedy


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


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ([1, 2], "a list"),
        (torch.zeros(2), "a Tensor"),
        ({"step": 3}, "a dict in which 'step' is a int"),
        ({7: torch.zeros(2)}, "a dict in which 7 is a Tensor"),
        ({"model": {"main.0.weight": torch.zeros(2)}}, "a dict in which 'model' is a dict"),
    ],
)
def test_a_torch_file_that_is_no_state_dict(tmp_path, content, found):
    torch.save(content, tmp_path / "netG.pth")
    error = refusal(Generator(32, ngf=2), tmp_path / "netG.pth")
    assert error.found == found
    assert "state dict" in error.wanted
    assert "state_dict()" in error.remedy


@pytest.mark.parametrize(
    ("file", "found", "remedy"),
    [
        ({"ngf": 8}, "main.0.weight of shape (6, 64, 4, 4)", "run with --ngf 8"),
        ({"nz": 9}, "main.0.weight of shape (9, 32, 4, 4)", "run with --nz 9"),
        ({"image_size": 32}, "main.0.weight of shape (6, 16, 4, 4)", "run with --image-size 32"),
        ({"channels": 1}, "main.12.weight of shape (4, 1, 4, 4)", "run with --channels 1"),
        # the same 4×4 map, reached from other options
        (
            {"image_size": 128, "ngf": 2},
            "main.12.weight of shape (4, 2, 4, 4)",
            "run with --image-size 128 --ngf 2",
        ),
    ],
)
def test_a_generators_file_that_does_not_fit(tmp_path, file, found, remedy):
    options = {"image_size": 64, "nz": 6, "ngf": 4, "channels": 3}
    net = Generator(**options)
    error = refusal(net, saved(tmp_path / "netG.pth", Generator(**(options | file))))
    assert error.found == found
    name = error.found.split()[0]
    assert error.wanted == f"{name} of shape {shapes(net)[name]}"
    assert error.remedy == remedy
    load_weights(Generator(**(options | file)), tmp_path / "netG.pth", "--netG")  # as advised


@pytest.mark.parametrize(
    ("file", "found", "remedy"),
    [
        ({"ndf": 8}, "main.0.weight of shape (8, 3, 4, 4)", "run with --ndf 8"),
        ({"channels": 1}, "main.0.weight of shape (4, 1, 4, 4)", "run with --channels 1"),
        ({"image_size": 32}, "main.8.weight of shape (1, 16, 4, 4)", "run with --image-size 32"),
        ({"image_size": 128}, "main.11.weight of shape (64, 32, 4, 4)", "--image-size 128"),
    ],
)
def test_a_discriminators_file_that_does_not_fit(tmp_path, file, found, remedy):
    options = {"image_size": 64, "ndf": 4, "channels": 3}
    error = refusal(
        Discriminator(**options),
        saved(tmp_path / "netD.pth", Discriminator(**(options | file))),
        "--netD",
    )
    assert error.found == found
    assert error.wanted.startswith(found.split()[0])
    assert remedy in error.remedy


def test_the_other_nets_file(tmp_path):
    path = saved(tmp_path / "netD.pth", Discriminator(ndf=4))
    error = refusal(Generator(ngf=4), path)
    assert "this file holds a Discriminator" in error.remedy
    assert "--netG the weights of a Generator" in error.remedy


def test_a_tensor_missing_and_a_tensor_too_many(tmp_path):
    net = Generator(32, nz=6, ngf=2)
    state = net.state_dict()
    torch.save({k: v for k, v in state.items() if k != "main.1.bias"}, tmp_path / "less.pth")
    torch.save({**state, "main.99.weight": torch.zeros(3)}, tmp_path / "more.pth")
    less, more = (refusal(net, tmp_path / name) for name in ("less.pth", "more.pth"))
    assert (less.found, less.wanted) == ("no main.1.bias", "main.1.bias of shape (8,)")
    assert (more.found, more.wanted) == (
        "main.99.weight of shape (3,)",
        "nothing after main.9.weight",
    )
    for error in (less, more):
        assert "--image-size, --channels, --nz, --ngf" in error.remedy


def test_a_state_dict_of_no_net(tmp_path):
    path = tmp_path / "netG.pth"
    for content in ({}, {"main.0.weight": torch.zeros(0, 0, 4, 4)}, {"a": torch.zeros(3)}):
        torch.save(content, path)
        assert "trained with" in refusal(Generator(32, nz=6, ngf=2), path).remedy
