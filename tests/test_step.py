"""The adversarial step against the tutorial's loop, and what a CUDA graph will need of it."""

import copy
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from dcgan.nets import forms
from dcgan.step import STATISTICS
from dcgan.step.adversarial import AdversarialStep
from tests.reference.tutorial import tutorial_optimizers, tutorial_step
from tests.steps import batch, nets

# The same maths as the tutorial's


def test_first_step_gives_the_tutorials_statistics_in_float32():
    ours, theirs = nets(), nets()
    step = AdversarialStep(*ours)
    given = batch(0)
    statistics = step(*given)
    assert all(map(torch.equal, given, batch(0)))  # only read
    expected = tutorial_step(*theirs, *tutorial_optimizers(*theirs), *batch(0))
    assert (statistics.dtype, statistics.shape) == (torch.float32, (len(STATISTICS),))
    assert not statistics.requires_grad
    assert statistics.tolist() == pytest.approx(list(expected), rel=1e-5, abs=0)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_ten_steps_give_the_tutorials_nets_in_float64(layout):
    # In float64, since Adam takes the sign of gradients near zero: in float32 two correct
    # implementations are 1e-3 apart after ten steps.
    ours, theirs = nets(torch.float64), nets(torch.float64)
    for net in ours:
        net.to(memory_format=layout)
    step = AdversarialStep(*ours, lr_d=1e-3, lr_g=1e-3, beta1=0.4)
    optimizers = tutorial_optimizers(*theirs, lr=1e-3, beta1=0.4)
    first = copy.deepcopy(theirs[0].state_dict())
    for k in range(10):
        real, noise = batch(k, torch.float64)
        statistics = step(real.to(memory_format=layout), noise)
        expected = tutorial_step(*theirs, *optimizers, real, noise)
        assert statistics.tolist() == pytest.approx(list(expected), rel=1e-9, abs=0), k
    for mine, reference in zip(ours, theirs, strict=True):
        wanted = reference.state_dict()
        assert any("running_var" in name for name in wanted)
        for name, tensor in mine.state_dict().items():
            torch.testing.assert_close(tensor, wanted[name], rtol=1e-9, atol=1e-9, msg=name)
    moved = (first["main.0.weight"] - ours[0].state_dict()["main.0.weight"]).abs().max()
    assert moved > 1e-3, "nothing was trained, so nothing was compared"


def test_discriminator_sees_real_then_fake_then_the_same_fake_again():
    generator, discriminator = nets()
    made, seen = [], []
    generator.register_forward_hook(lambda net, args, result: made.append(result))
    discriminator.register_forward_pre_hook(
        lambda net, args: seen.append((args[0], args[0].requires_grad))
    )
    real, noise = batch(0)
    AdversarialStep(generator, discriminator)(real, noise)
    assert len(made) == 1
    (x, x_grad), (gz1, gz1_grad), (gz2, gz2_grad) = seen
    assert x is real
    assert gz1.data_ptr() == made[0].data_ptr()
    assert gz2 is made[0]
    assert (x_grad, gz1_grad, gz2_grad) == (False, False, True)


def test_losses_stay_finite_where_probabilities_round_to_0_and_1():
    generator, discriminator = nets()
    with torch.no_grad():
        discriminator.get_parameter("main.11.weight").mul_(1e4)
    statistics = AdversarialStep(generator, discriminator)(*batch(0))
    assert statistics.isfinite().all()
    assert statistics[:2].max() > 100  # where BCELoss on a float32 probability has clamped


# Only what is needed is computed


class WantedGradients(TorchDispatchMode):
    """Notes of each convolution's backward whether it was asked for input and weight gradients."""

    def __init__(self) -> None:
        super().__init__()
        self.noted: list[tuple[bool, bool]] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is torch.ops.aten.convolution_backward.default:
            of_input, of_weight, _ = args[-1]
            self.noted.append((of_input, of_weight))
        return func(*args, **(kwargs or {}))


def test_discriminators_weight_gradients_are_left_out_of_the_generators_half(monkeypatch):
    monkeypatch.setattr(forms, "_forms", lambda *_: None)  # so that the mode sees every layer
    step = AdversarialStep(*nets(size=32))
    with WantedGradients() as mode:
        step(*batch(0, size=32))
    # Four convolutions a net. D's half: D on real and on fake, whose images need no gradient.
    assert sorted(mode.noted[:8]) == [(False, True)] * 2 + [(True, True)] * 6
    # G's half, backwards: through D to its images without its weights, then G down to the noise.
    assert mode.noted[8:12] == [(True, False)] * 4
    assert mode.noted[12:] == [(True, True)] * 3 + [(False, True)]


def test_discriminators_gradients_are_those_of_its_own_half():
    generator, discriminator = nets(torch.float64)
    step = AdversarialStep(generator, discriminator)
    step(*batch(0, torch.float64))
    generator, discriminator = copy.deepcopy((generator, discriminator))
    real, noise = batch(1, torch.float64)
    step(real, noise)
    fake = generator(noise).detach()
    loss = -torch.sigmoid(discriminator(real)).log().mean()
    loss = loss - torch.log(1 - torch.sigmoid(discriminator(fake))).mean()
    expected = torch.autograd.grad(loss, list(discriminator.parameters()))
    found = [parameter.grad for parameter in step.discriminator.parameters()]
    assert all(gradient.any() for gradient in expected)
    torch.testing.assert_close(found, list(expected), rtol=1e-9, atol=1e-12)


def test_discriminator_can_be_trained_again_after_a_step_and_after_an_error():
    generator, discriminator = nets(size=32)
    calls = []

    def fail_in_the_third(net, args):
        calls.append([parameter.requires_grad for parameter in net.parameters()])
        if len(calls) == 3:
            raise KeyboardInterrupt

    discriminator.register_forward_pre_hook(fail_in_the_third)
    with pytest.raises(KeyboardInterrupt):
        AdversarialStep(generator, discriminator)(*batch(0, size=32))
    assert all(calls[0] + calls[1])
    assert not any(calls[2])
    assert all(parameter.requires_grad for parameter in discriminator.parameters())
    held = discriminator.get_parameter("main.0.weight").requires_grad_(False)
    AdversarialStep(generator, discriminator)(*batch(0, size=32))
    assert [p for p in discriminator.parameters() if not p.requires_grad] == [held]


# Layout and optimisers


def test_channels_last_stays_channels_last():
    layout = torch.channels_last
    generator, discriminator = nets(size=32)
    for net in (generator, discriminator):
        net.to(memory_format=layout)
    seen = []
    for layer in (*generator.main, *discriminator.main):
        layer.register_forward_hook(
            lambda layer, args, result: seen.append((layer, args[0], result))
        )
    real, noise = batch(0, size=32)
    AdversarialStep(generator, discriminator)(real.to(memory_format=layout), noise)
    assert len(seen) == len(generator.main) + 3 * len(discriminator.main)
    for layer, given, result in seen:
        assert given.is_contiguous(memory_format=layout), layer
        assert result.is_contiguous(memory_format=layout), layer
    for net in (generator, discriminator):
        for name, weight in net.named_parameters():
            if weight.ndim == 4:
                assert weight.is_contiguous(memory_format=layout), name
                assert weight.grad is not None, name
                assert weight.grad.is_contiguous(memory_format=layout), name


def test_both_optimisers_are_the_papers_adam_in_one_kernel():
    step = AdversarialStep(*nets(), lr_d=3e-4, lr_g=3e-4, beta1=0.3)
    for optimizer, net in (
        (step.optimizer_d, step.discriminator),
        (step.optimizer_g, step.generator),
    ):
        (group,) = optimizer.param_groups
        assert [id(p) for p in group["params"]] == [id(p) for p in net.parameters()]
        assert (group["lr"], group["betas"]) == (3e-4, (0.3, 0.999))
        assert (group["eps"], group["weight_decay"], group["fused"]) == (1e-8, 0, True)
    defaults = AdversarialStep(*nets()).optimizer_g.param_groups[0]
    assert (defaults["lr"], defaults["betas"]) == (2e-4, (0.5, 0.999))
