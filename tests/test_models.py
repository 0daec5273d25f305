"""The nets: their shapes, the ancestors' names, and their first weights."""

import itertools

import pytest
import torch
from torch import nn

from dcgan.nets import im2col
from dcgan.nets.models import (
    CHANNELS,
    SIZES,
    Discriminator,
    Generator,
    count_parameters,
    init_weights,
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


@pytest.fixture
def library_convolutions(monkeypatch):
    """Small maps go through the library, as in the tutorial: the sums are the same to the bit."""
    monkeypatch.setattr(im2col, "LARGEST", 0)
    monkeypatch.setattr(im2col, "_is_one_patch", lambda *geometry: False)


@pytest.mark.usefixtures("library_convolutions")
@pytest.mark.parametrize("train", [True, False])
def test_generator_draws_what_the_tutorials_draws(train):
    theirs = TutorialGenerator(nz=10, ngf=4).apply(weights_init).train(train)
    ours = Generator(nz=10, ngf=4).train(train)
    ours.load_state_dict(theirs.state_dict())
    noise = torch.randn(4, 10, 1, 1, generator=seeded())
    torch.testing.assert_close(ours(noise), theirs(noise), rtol=0, atol=0)


@pytest.mark.usefixtures("library_convolutions")
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
