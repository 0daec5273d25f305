"""From seeds to images: one seed, one image, whatever is drawn with it."""

import copy
from contextlib import contextmanager

import pytest
import torch

from dcgan.nets.models import Generator, init_weights
from dcgan.sampling.generate import BATCH, FIXED_SEEDS, generate, generate_each, latents
from dcgan.step.precision import choose_kernels, set_matrix_format
from pipeline.images.pixels import to_uint8

NZ = 100


def trained(size: int = 64, ngf: int = 16, channels: int = 3) -> Generator:
    """A generator whose BatchNorm statistics are those of neither a batch nor a new net."""
    torch.set_num_threads(1)
    draw = torch.Generator().manual_seed(5)
    net = Generator(size, NZ, ngf, channels)
    init_weights(net, draw)
    with torch.no_grad():
        for weight in net.parameters():
            weight.mul_(3)  # as far as ±0.9, where a level is soon lost or won
        for _ in range(3):
            net(torch.randn(8, NZ, 1, 1, generator=draw))
    return net


def test_a_latent_depends_on_its_seed_alone():
    together = latents([7, 3, 1000, 3], NZ)
    assert together.shape == (4, NZ, 1, 1)
    assert together.dtype == torch.float32
    assert torch.equal(together[1], together[3])
    assert not torch.equal(together[0], together[1])
    for place, seed in enumerate([7, 3, 1000]):
        assert torch.equal(together[place : place + 1], latents([seed], NZ))
        own = torch.Generator().manual_seed(seed)
        assert torch.equal(together[place].flatten(), torch.randn(NZ, generator=own))


def test_latents_are_normal():
    drawn = latents(range(1000), NZ)
    assert abs(drawn.mean()) < 0.03
    assert abs(drawn.std() - 1) < 0.03


@pytest.mark.parametrize("channels", [1, 3])
def test_images_are_pixels_on_the_cpu(channels):
    images = generate(trained(channels=channels), latents(range(5), NZ))
    assert images.shape == (5, 64, 64, channels)
    assert (images.dtype, images.device.type) == (torch.uint8, "cpu")
    assert not images.requires_grad
    assert images.amin() < 64
    assert images.amax() > 192


def test_images_are_those_of_eval_mode():
    net, noise = trained(), latents(range(20), NZ)
    images = generate(net, noise).int()
    with torch.no_grad():
        of_eval = to_uint8(copy.deepcopy(net).eval()(noise)).int()
        of_train = to_uint8(copy.deepcopy(net).train()(noise)).int()
    assert (images - of_eval).abs().max() <= 1  # another batch size, other kernels
    assert (images - of_train).abs().max() > 16


@pytest.fixture(params=[1, 2])
def threads(request):
    """With two, torch divides a batch differently for each size: one net in three shows it."""
    yield request.param
    torch.set_num_threads(1)


@pytest.mark.parametrize(("size", "ngf"), [(64, 16), (32, 64)])
def test_an_image_is_the_same_bit_for_bit_in_any_company(size, ngf, threads):
    net = trained(size, ngf)
    torch.set_num_threads(threads)
    everything = generate(net, latents(range(2 * BATCH), NZ))
    assert len({image.numpy().tobytes() for image in everything}) == 2 * BATCH
    for count in (1, BATCH - 1, BATCH + 1):
        assert torch.equal(generate(net, latents(range(count), NZ)), everything[:count])
    order = torch.randperm(2 * BATCH, generator=torch.Generator().manual_seed(0)).tolist()
    assert torch.equal(generate(net, latents(order, NZ)), everything[order])


def test_an_image_does_not_depend_on_how_the_net_lies_in_memory():
    net = trained()  # as the trainer has it, and as one fresh from a file has it
    nets = [copy.deepcopy(net).to(memory_format=torch.channels_last), net]
    of_trainer, of_file = (generate(each, latents(FIXED_SEEDS, NZ)) for each in nets)
    assert torch.equal(of_trainer, of_file)


@pytest.mark.parametrize("training", [True, False])
def test_the_net_stays_as_it_was(training):
    net = trained().train(training)
    before = copy.deepcopy(net.state_dict())
    generate(net, latents(range(20), NZ))
    assert [part.training for part in net.modules()] == [training] * len(list(net.modules()))
    assert any("running_mean" in name for name in before)
    for name, tensor in net.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_one_after_another_they_are_the_same_and_latents_are_taken_as_needed():
    net = trained()
    noise = latents(range(3 * BATCH - 5), NZ)
    taken = []

    def counted():
        for number, latent in enumerate(noise):
            taken.append(number)
            yield latent

    images = generate_each(net, counted())
    first = next(images)
    assert len(taken) == BATCH  # and not one more
    assert torch.equal(torch.stack([first, *images]), generate(net, noise))
    assert len(taken) == len(noise)


def test_images_are_drawn_in_float32_from_a_net_of_another_type():
    net, noise = trained(), latents(range(4), NZ)
    halved = copy.deepcopy(net).bfloat16()
    rounded = copy.deepcopy(halved).float()
    assert torch.equal(generate(halved, noise), generate(rounded, noise))
    assert next(halved.parameters()).dtype == torch.bfloat16


def test_images_are_drawn_alike_in_every_process(monkeypatch):
    entered: list[str] = []

    @contextmanager
    def noted(device):
        entered.append(device.type)
        yield
        entered.append("left")

    monkeypatch.setattr("dcgan.sampling.generate.same_in_every_process", noted)
    images = generate_each(trained(ngf=4), latents(range(BATCH + 1), NZ))
    next(images)
    assert entered == ["cpu", "left"]  # not for as long as somebody takes the images
    assert len([*images]) == BATCH
    assert entered == ["cpu", "left"] * 2


@pytest.mark.gpu
def test_what_training_has_chosen_changes_no_image():
    device = torch.device("cuda")
    net, noise = trained().to(device), latents(range(20), NZ)
    set_matrix_format("fp32", device)
    expected = generate(net, noise)
    set_matrix_format("tf32", device)
    choose_kernels()
    assert torch.equal(generate(net, noise), expected)
