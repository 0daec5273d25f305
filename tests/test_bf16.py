"""What bf16 costs in accuracy, on a short run over drawn faces; and that a fault would show.

Nothing here needs hardware for bf16, and no bound is a figure that one machine gave: a step in
bf16 is compared with the same step in float64 whose tensors are rounded to bf16 by hand where
autocast does so. Bfloat16 keeps 8 bits, and a ReLU turns a small error into a whole gradient gained
or lost: the generator's first gradients are wrong by an eighth, in either.
"""

import copy
import types
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrize

from dcgan.nets import forms
from dcgan.nets.models import Discriminator, Generator, init_weights
from dcgan.step import STATISTICS
from dcgan.step.adversarial import AdversarialStep
from pipeline.images.demo_faces import Face, draw
from pipeline.images.pixels import to_signed
from pipeline.images.resize import as_tensor, fit

SIZE, NZ, DEPTH, BATCH, FACES = 32, 16, 16, 32, 256
AFTER = (5, 10, 20, 40, 60)
"""Steps of training in fp32 after which a step is looked at."""

LESS, MORE = 0.5, 1.8
"""Bounds of an error in bf16, as shares of that by hand: the roundings are as many, but fall
otherwise. A kernel that sums up in pieces rounds oftener than once at its end."""

ROUNDING = 2.0**-8
"""The largest relative error of rounding to bf16, which has seven bits after the first."""


class State(NamedTuple):
    """A moment of training and the batch to come."""

    previous: AdversarialStep  # one step earlier
    training: AdversarialStep
    pixels: torch.Tensor  # (B, S, S, 3) uint8
    noise: torch.Tensor  # (B, nz, 1, 1)


Outcome = dict[str, torch.Tensor]
Change = Callable[[AdversarialStep, State], AbstractContextManager[object]]


@pytest.fixture(scope="module")
def faces():
    pictures = (as_tensor(np.asarray(draw(Face(0, number)))) for number in range(FACES))
    return torch.stack([fit(picture, SIZE) for picture in pictures])


@pytest.fixture(scope="module")
def states(faces):
    """Five states of a run in fp32, each with what its next step is in float64."""
    training, found = begin(0), []
    batches = draw_batches(faces, 0)
    for k in range(max(AFTER) + 1):
        pixels, noise = next(batches)
        if k + 1 in AFTER:
            previous = copy.deepcopy(training)
        if k in AFTER:
            state = State(previous, copy.deepcopy(training), pixels, noise)
            found.append((state, outcome(state, torch.float64)))
        training(to_signed(pixels), noise)
    return found


@pytest.fixture(scope="module")
def by_hand(states):
    """The errors of a float64 step that is rounded to bf16 by hand."""
    return errors(states, torch.float64, rounded)


def begin(seed: int, bf16: bool = False) -> AdversarialStep:
    weights = torch.Generator().manual_seed(seed)
    pair = Generator(SIZE, nz=NZ, ngf=DEPTH), Discriminator(SIZE, ndf=DEPTH)
    for net in pair:
        init_weights(net, weights)
        net.to(memory_format=torch.channels_last)
    return AdversarialStep(*pair, bf16=bf16)


def draw_batches(faces: torch.Tensor, seed: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    random = torch.Generator().manual_seed(100 + seed)
    while True:
        chosen = torch.randperm(FACES, generator=random)[:BATCH]
        yield faces[chosen], torch.randn(BATCH, NZ, 1, 1, generator=random)


class Rounding(torch.autograd.Function):
    """Rounds a tensor on its way forward, and its gradient on the way back, to bf16."""

    @staticmethod
    def forward(context: Any, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.bfloat16().to(tensor.dtype)

    @staticmethod
    def backward(context: Any, gradient: torch.Tensor) -> torch.Tensor:
        return gradient.bfloat16().to(gradient.dtype)


class Rounded(nn.Module):
    def forward(self, tensor: torch.Tensor) -> torch.Tensor:
        rounded: torch.Tensor = Rounding.apply(tensor)
        return rounded


def sound(step: AdversarialStep, state: State) -> AbstractContextManager[object]:
    return nullcontext()


@contextmanager
def rounded(step, state):
    """Every layer's weights and results in bf16, its arithmetic as it was: what autocast means."""
    for layer in (*step.generator.main, *step.discriminator.main):
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
            parametrize.register_parametrization(layer, "weight", Rounded())
        layer.register_forward_hook(lambda layer, arguments, result: Rounding.apply(result))
    yield


def outcome(state: State, dtype: torch.dtype, change: Change = sound) -> Outcome:
    """Gradients of a state's next step, and D's logits, with nets that compute in `dtype`."""
    step = copy.deepcopy(state.training)
    step.bf16 = dtype == torch.bfloat16
    kept = torch.promote_types(dtype, torch.float32)
    for net, optimizer in (
        (step.generator, step.optimizer_g),
        (step.discriminator, step.optimizer_d),
    ):
        net.to(kept)
        for moments in optimizer.state.values():
            moments.update({k: v.to(kept) for k, v in moments.items() if k != "step"})
    logits: list[torch.Tensor] = []
    step.discriminator.register_forward_hook(lambda net, args, result: logits.append(result))
    with change(step, state):
        step(to_signed(state.pixels, dtype), state.noise.to(kept))
    named = (*step.generator.named_parameters("G"), *step.discriminator.named_parameters("D"))
    found = {
        name.replace("parametrizations.weight.original", "weight"): p.grad for name, p in named
    }
    found |= dict(zip(("logits_x", "logits_gz1", "logits_gz2"), logits[-3:], strict=True))
    return {name: value.double() for name, value in found.items() if value is not None}


def errors(
    states: list[tuple[State, Outcome]], dtype: torch.dtype, change: Change = sound
) -> dict[str, float]:
    """Relative error norm by norm against float64, root mean square over the states."""
    assert len(states) == len(AFTER)
    squares = dict.fromkeys(states[0][1], 0.0)
    assert len(squares) == 18 + 3, "gradients and logits"
    for state, exact in states:
        found = outcome(state, dtype, change)
        assert found.keys() == exact.keys()
        for name, value in exact.items():
            squares[name] += ((found[name] - value).norm() / value.norm()).item() ** 2
    return {name: (total / len(states)) ** 0.5 for name, total in squares.items()}


def ratios(found: dict[str, float], by_hand: dict[str, float]) -> dict[str, float]:
    return {name: round(error / by_hand[name], 2) for name, error in found.items()}


@pytest.mark.parametrize("largest", [forms.IM2COL_SIDE, 0], ids=["products", "convolutions"])
def test_errors_are_those_of_rounding_by_hand(states, by_hand, monkeypatch, largest):
    monkeypatch.setattr(forms, "IM2COL_SIDE", largest)
    found = ratios(errors(states, torch.bfloat16), by_hand)
    assert {name: ratio for name, ratio in found.items() if not LESS < ratio < MORE} == {}


def test_float32_is_ten_times_as_near(states, by_hand):
    found = errors(states, torch.float32)
    assert {name: error for name, error in found.items() if error > by_hand[name] / 10} == {}


@contextmanager
def stale_weights(step, state):
    """One region around two steps: the second computes with weights cast in the first."""
    keeping(step)
    with torch.autocast("cpu", torch.bfloat16):
        for net, earlier, batch in (
            (step.generator, state.previous.generator, state.noise),
            (step.discriminator, state.previous.discriminator, to_signed(state.pixels)),
        ):
            weights = copy.deepcopy(net.state_dict())
            net.load_state_dict(earlier.state_dict())
            net(batch)
            net.load_state_dict(weights)
        yield


def keeping(step: AdversarialStep) -> None:
    """Let autocast keep the weights that it casts."""

    def run(
        net: Callable[..., torch.Tensor], *inputs: torch.Tensor, **options: int
    ) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16, cache_enabled=True):
            return net(*inputs, **options)

    step._run = run  # type: ignore[method-assign]


def test_stale_weights_are_far_beyond_the_bounds(states, by_hand):
    found = ratios(errors(states, torch.bfloat16, stale_weights), by_hand)
    assert min(found.values()) > MORE
    assert max(found.values()) > 5 * MORE


# What stays in float32, against float64 on the same tensors


def losses_error(state: State, change: Change = sound) -> float:
    """Relative error of a bf16 step's statistics, given its logits."""
    step = copy.deepcopy(state.training)
    logits: list[torch.Tensor] = []
    step.bf16 = True
    step.discriminator.register_forward_hook(lambda net, args, result: logits.append(result))
    with change(step, state):
        found = step(to_signed(state.pixels, torch.bfloat16), state.noise)
    x, gz1, gz2 = [each.detach().double() for each in logits]
    wanted = {
        "loss_d": F.softplus(-x).mean() + F.softplus(gz1).mean(),
        "loss_g": F.softplus(-gz2).mean(),
        **{name: v.sigmoid().mean() for name, v in (("d_x", x), ("d_gz1", gz1), ("d_gz2", gz2))},
    }
    exact = torch.stack([wanted[name] for name in STATISTICS])
    return (found.double() / exact - 1).abs().max().item()


@contextmanager
def rounded_losses(step, state):
    step._logits = lambda images: step._run(step.discriminate, images)
    yield


def test_losses_and_statistics_are_computed_in_float32(states):
    assert max(losses_error(state) for state, _ in states) < 1e-5
    assert max(losses_error(state, rounded_losses) for state, _ in states) > 1e-3


def batchnorm_error(state: State, change: Change = sound) -> float:
    """The largest error of a BatchNorm's results in a bf16 step, given what went in, in its bound.

    The bound is a rounding to bf16 at the end, and 1e-4 for the float32 arithmetic before it.
    """
    step = copy.deepcopy(state.training)
    found: list[float] = []
    step.bf16 = True

    def compare(
        layer: nn.BatchNorm2d, arguments: tuple[torch.Tensor], result: torch.Tensor
    ) -> None:
        maps = arguments[0].detach().double()
        weight, bias = layer.weight.detach().double(), layer.bias.detach().double()
        exact = F.batch_norm(maps, None, None, weight, bias, training=True, eps=layer.eps)
        ratio = (result.double() - exact).abs() / (ROUNDING * exact.abs() + 1e-4)
        found.append(ratio.max().item())

    with change(step, state):
        for layer in (*step.generator.modules(), *step.discriminator.modules()):
            if isinstance(layer, nn.BatchNorm2d):
                layer.register_forward_hook(compare)
        step(to_signed(state.pixels, torch.bfloat16), state.noise)
    assert len(found) == 3 + 3 * 2
    return max(found)


@contextmanager
def rounded_statistics(step, state):
    """BatchNorm's means and variances as bf16 arithmetic gives them."""

    def forward(layer, maps):
        centred = maps - maps.mean((0, 2, 3), keepdim=True)
        variance = centred.square().mean((0, 2, 3), keepdim=True)
        scale, shift = (p.to(maps.dtype)[:, None, None] for p in (layer.weight, layer.bias))
        return centred * (variance + layer.eps).rsqrt() * scale + shift

    for layer in (*step.generator.main, *step.discriminator.main):
        if isinstance(layer, nn.BatchNorm2d):
            layer.forward = types.MethodType(forward, layer)  # type: ignore[method-assign]
    yield


def test_batchnorm_computes_in_float32(states):
    assert max(batchnorm_error(state) for state, _ in states) < 1
    assert min(batchnorm_error(state, rounded_statistics) for state, _ in states) > 2
