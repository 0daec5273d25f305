"""The nets: their shapes, the ancestors' names, and their first weights."""

import itertools

import pytest
import torch
from torch import nn

from dcgan.nets import forms
from dcgan.nets.models import (
    CHANNELS,
    Discriminator,
    Generator,
    count_parameters,
    init_weights,
)
from pipeline.errors import UserError
from pipeline.images.size import sides
from tests.reference.tutorial import TutorialDiscriminator, TutorialGenerator, weights_init


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def shapes(net: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in net.state_dict().items()}


SIZES = {  # → width and height of the smallest map, and the widths' factor there
    32: (4, 4, 4),
    64: (4, 4, 8),
    256: (4, 4, 32),
    28: (7, 7, 2),
    (96, 64): (6, 4, 8),
    (64, 128): (2, 4, 16),
    (8, 12): (2, 3, 2),
}


@pytest.mark.parametrize(("size", "channels"), [*itertools.product(SIZES, CHANNELS)])
def test_from_noise_to_images_to_logits(size, channels):
    generator = Generator(size, nz=7, ngf=2, channels=channels)
    discriminator = Discriminator(size, ndf=2, channels=channels)
    init_weights(generator, seeded())
    images = generator(torch.randn(3, 7, 1, 1, generator=seeded()))
    (width, height), (*base, factor) = sides(size), SIZES[size]
    assert images.shape == (3, channels, height, width)
    assert 0 < images.abs().amax() <= 1
    assert discriminator(images).shape == (3,)
    assert discriminator.eval()(images[:1]).shape == (1,)
    assert generator.main[-2].in_channels == 2  # ngf, whatever the size
    assert discriminator.main[0].out_channels == 2  # ndf
    first, last = generator.main[0], discriminator.main[-1]
    assert first.out_channels == last.in_channels == 2 * factor
    assert first.kernel_size == last.kernel_size == (base[1], base[0])


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
        (lambda: Generator(image_size=50), "--image-size", "50", "b·2ᵏ", "48 or 56"),
        (lambda: Generator(channels=4), "--channels", "4", "one of 1, 3", "--channels 3"),
        (lambda: Generator(nz=0), "--nz", "0", "at least 1", "leave --nz out"),
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


@pytest.mark.parametrize(
    ("ours", "theirs", "count"),
    [
        # By hand, 4·4·in·out a layer plus 2 a BatchNorm channel:
        # 16·(100·512 + 512·256 + 256·128 + 128·64 + 64·3) + 2·(512 + 256 + 128 + 64)
        (Generator, TutorialGenerator, 3_576_704),
        # 16·(3·64 + 64·128 + 128·256 + 256·512 + 512·1) + 2·(128 + 256 + 512)
        (Discriminator, TutorialDiscriminator, 2_765_568),
    ],
)
def test_names_shapes_and_first_weights_are_the_tutorials(ours, theirs, count):
    torch.manual_seed(999)
    reference = theirs().apply(weights_init)
    torch.manual_seed(999)
    net = ours()
    init_weights(net)
    assert count_parameters(net) == count
    assert list(shapes(net).items()) == list(shapes(reference).items())
    for name, weight in reference.named_parameters():
        assert torch.equal(net.get_parameter(name), weight), name


@pytest.mark.parametrize("train", [True, False])
def test_they_draw_and_judge_as_the_tutorials_do(monkeypatch, train):
    """To the bit, where small maps go through the library, as there."""
    monkeypatch.setattr(forms, "_forms", lambda *_: None)
    their_g = TutorialGenerator(nz=10, ngf=4, nc=1).apply(weights_init).train(train)
    their_d = TutorialDiscriminator(ndf=4, nc=1).apply(weights_init).train(train)
    our_g = Generator(nz=10, ngf=4, channels=1).train(train)
    our_d = Discriminator(ndf=4, channels=1).train(train)
    our_g.load_state_dict(their_g.state_dict())
    our_d.load_state_dict(their_d.state_dict())
    noise = torch.randn(4, 10, 1, 1, generator=seeded())
    assert torch.equal(our_g(noise), their_g(noise))
    images = torch.rand(4, 1, 64, 64, generator=seeded()) * 2 - 1
    assert torch.equal(torch.sigmoid(our_d(images)), their_d(images).view(-1))


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
