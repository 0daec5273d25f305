"""DiffAugment: the paper's changes, their gradient, and where a step applies which."""

import pytest
import torch

from dcgan.step.augment import DRAWS, augment
from tests.reference.augment import augmented
from tests.steps import BATCH, NZ, batch, pixel_batch, whole_step

HEIGHT, WIDTH = 24, 40


def drawn(count: int) -> torch.Tensor:
    """Draw what decides on changes, with the least and the largest numbers among them."""
    found = torch.rand(DRAWS, count, generator=torch.Generator().manual_seed(3))
    found[:, 0], found[:, 1] = 0.0, 1 - 2**-24
    return found


def pictures(channels: int, dtype: torch.dtype) -> torch.Tensor:
    random = torch.Generator().manual_seed(4)
    return torch.rand(6, channels, HEIGHT, WIDTH, generator=random, dtype=dtype) * 2 - 1


@pytest.mark.parametrize("channels", [1, 3])
def test_each_image_is_changed_as_the_paper_has_it_and_so_are_gradients(channels):
    images, draws = pictures(channels, torch.float64).requires_grad_(), drawn(6)
    found = augment(images, draws)
    each = zip(images, draws.T.tolist(), strict=True)
    wanted = torch.stack([augmented(image, numbers) for image, numbers in each])
    assert torch.allclose(found, wanted, rtol=0, atol=1e-6)  # draws are float32
    weights = torch.rand(wanted.shape, generator=torch.Generator().manual_seed(5))
    gradient, right = (
        torch.autograd.grad((outcome * weights).sum(), images)[0] for outcome in (found, wanted)
    )
    assert torch.allclose(gradient, right, rtol=0, atol=1e-6)


def test_the_result_has_the_type_of_the_images_and_the_layout_that_d_takes():
    images = pictures(3, torch.float32)
    found = augment(images.bfloat16(), drawn(6))
    assert found.dtype == torch.bfloat16
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert torch.allclose(found.float(), augment(images, drawn(6)), rtol=0, atol=0.05)


def test_d_sees_nothing_but_changed_images_each_time_by_draws_of_their_own():
    """Real ones, generated ones in D's update, and the same generated ones in G's."""
    step = whole_step(augmented=True).update
    seen, fakes = list[torch.Tensor](), list[torch.Tensor]()
    step.discriminator.register_forward_pre_hook(lambda net, images: seen.append(*images))
    step.generator.register_forward_hook(lambda net, noise, images: fakes.append(images))
    real, noise = batch(1, size=32)
    draws = torch.rand(3, DRAWS, BATCH, generator=torch.Generator().manual_seed(6))
    step(real, noise, draws)
    images = [real, *fakes, *fakes]
    wanted = [augment(each, numbers) for each, numbers in zip(images, draws, strict=True)]
    assert all(map(torch.equal, seen, wanted))


def test_draws_are_new_in_every_step_and_after_all_others():
    step, plain = whole_step(augmented=True), whole_step()
    found = []
    for k in range(3):
        step(pixel_batch(k))
        found.append(step.draws.clone())
        assert ((step.draws >= 0) & (step.draws < 1)).all()
    assert len({numbers.numpy().tobytes() for pair in found for numbers in pair}) == 9
    first = whole_step(augmented=True)
    first.draw()
    plain.draw()
    assert torch.equal(first.noise, plain.noise)
    assert torch.equal(first.flips, plain.flips)
    assert first.noise.shape == (BATCH, NZ, 1, 1)
