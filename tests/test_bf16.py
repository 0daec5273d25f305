"""What bf16 costs in accuracy, on a short run over drawn faces; and that a fault would show.

Bfloat16 rounds to 8 bits, and a ReLU turns a small error into a whole gradient gained or lost:
hence errors of up to a seventh in the generator's first layers. Nothing here needs
hardware for bf16: emulated, the errors are the same, and the bounds were measured with it too.
"""

import copy
import types
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import nn

from dcgan import patches
from dcgan.models import Discriminator, Generator, init_weights
from dcgan.step import STATISTICS, AdversarialStep
from pipeline.demo_faces import Face, draw
from pipeline.pixels import to_signed
from pipeline.resizing import as_tensor, fit_square

SIZE, NZ, DEPTH, BATCH, FACES = 32, 16, 16, 32, 256
AFTER = (5, 10, 20, 40, 60)
"""Steps of training in fp32 after which a step is looked at."""

MEASURED = {
    "G.main.0.weight": 0.139,
    "G.main.1.weight": 0.131,
    "G.main.1.bias": 0.128,
    "G.main.3.weight": 0.119,
    "G.main.4.weight": 0.105,
    "G.main.4.bias": 0.110,
    "G.main.6.weight": 0.093,
    "G.main.7.weight": 0.077,
    "G.main.7.bias": 0.100,
    "G.main.9.weight": 0.069,
    "D.main.0.weight": 0.062,
    "D.main.2.weight": 0.052,
    "D.main.3.weight": 0.043,
    "D.main.3.bias": 0.045,
    "D.main.5.weight": 0.0385,
    "D.main.6.weight": 0.0060,
    "D.main.6.bias": 0.034,
    "D.main.8.weight": 0.0075,
    "loss_d": 0.0013,
    "loss_g": 0.0012,
    "d_x": 0.00025,
    "d_gz1": 0.0015,
    "d_gz2": 0.0016,
}
"""Errors of a parameter's gradient and of a statistic, as `errors` gives them: the largest of 16
seeds on a Xeon with AMX and of 5 seeds each with oneDNN held to AVX-512 and to AVX2, where bf16 is
emulated, with products and with the library's convolutions. Of seed 0, which runs here, they are
between a twelfth and all of that; the gradients', at least a half."""

LIBRARY = MEASURED | {"D.main.8.weight": 0.0118}
"""With the library's convolutions alone: under AVX2 its last one rounds oftener."""

SLACK = 1.2
"""The bound, in measured errors: another machine's run is another seed's."""

MARGIN = torch.tensor([0.015, 0.1])
"""By how much the mean losses of D and G may lie outside the spread of three fp32 seeds. The same
seed in fp32 never does, and bf16 moves it: over 12 seeds by a standard deviation of 0.004 and 0.032
(a mean of 0.001 and 0.009), of which this is three. From seed to seed it is 0.036 and 0.20."""


class State(NamedTuple):
    """A moment of training and the batch to come."""

    previous: AdversarialStep  # one step earlier
    training: AdversarialStep
    pixels: torch.Tensor  # (B, S, S, 3) uint8
    noise: torch.Tensor  # (B, nz, 1, 1)


Outcome = dict[str, torch.Tensor]
Fault = Callable[[AdversarialStep, State], AbstractContextManager[object]]


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Two would wait for each other beside a busy neighbour, at this size 20 times as long."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def faces():
    pictures = (as_tensor(np.asarray(draw(Face(0, number)))) for number in range(FACES))
    return torch.stack([fit_square(picture, SIZE) for picture in pictures])


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


def sound(step: AdversarialStep, state: State) -> AbstractContextManager[object]:
    return nullcontext()


def outcome(state: State, dtype: torch.dtype, fault: Fault = sound) -> Outcome:
    """The gradients and statistics of a state's next step with nets that compute in `dtype`."""
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
    with fault(step, state):
        statistics = step(to_signed(state.pixels, dtype), state.noise.to(kept))
    named = (*step.generator.named_parameters("G"), *step.discriminator.named_parameters("D"))
    gradients = {name: parameter.grad for name, parameter in named}
    every = gradients | dict(zip(STATISTICS, statistics, strict=True))
    return {name: value.double() for name, value in every.items() if value is not None}


def errors(
    states: list[tuple[State, Outcome]], dtype: torch.dtype, fault: Fault = sound
) -> dict[str, float]:
    """Relative error norm by norm against float64, root mean square over the states."""
    assert len(states) == 5
    squares = dict.fromkeys(MEASURED, 0.0)
    for state, exact in states:
        found = outcome(state, dtype, fault)
        assert found.keys() == exact.keys() == MEASURED.keys()
        for name, value in exact.items():
            squares[name] += ((found[name] - value).norm() / value.norm()).item() ** 2
    return {name: (total / len(states)) ** 0.5 for name, total in squares.items()}


def excesses(found: dict[str, float], measured: dict[str, float]) -> dict[str, float]:
    """Errors beyond their bounds, in bounds."""
    ratios = {name: error / (SLACK * measured[name]) for name, error in found.items()}
    return {name: round(ratio, 2) for name, ratio in ratios.items() if not ratio <= 1}


@pytest.mark.parametrize(("largest", "measured"), [(patches.LARGEST, MEASURED), (0, LIBRARY)])
def test_gradients_and_statistics_are_within_their_bounds(states, monkeypatch, largest, measured):
    monkeypatch.setattr(patches, "LARGEST", largest)
    found = errors(states, torch.bfloat16)
    assert excesses(found, measured) == {}
    gradients = {name: error for name, error in found.items() if name not in STATISTICS}
    assert all(error > measured[name] / 3 for name, error in gradients.items()), "not in bf16"


def test_float32_is_ten_times_as_near(states):
    found = errors(states, torch.float32)
    assert {name: error for name, error in found.items() if error > MEASURED[name] / 10} == {}


# Faults, each of which a bound has to show


def keeping(step: AdversarialStep) -> None:
    """Let autocast keep the weights that it casts."""

    def run(net: Callable[[torch.Tensor], torch.Tensor], batch: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16, cache_enabled=True):
            return net(batch)

    step._run = run  # type: ignore[method-assign]


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


@contextmanager
def rounded_losses(step, state):
    step._logits = lambda images: step._run(step.judge, images)
    yield


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


@pytest.mark.parametrize(
    ("fault", "shown"),
    [
        (stale_weights, {*MEASURED}),
        (rounded_losses, {"loss_d", "loss_g", "d_x", "d_gz1"}),
        (rounded_statistics, {"D.main.6.weight", "D.main.8.weight"}),
    ],
)
def test_a_fault_exceeds_bounds(states, fault, shown):
    assert shown <= excesses(errors(states, torch.bfloat16, fault), MEASURED).keys()


def test_the_faults_arithmetic_is_batchnorms_but_for_rounding(states):
    assert max(errors(states, torch.float64, rounded_statistics).values()) < 1e-9


# Over 200 steps


def mean_losses(
    faces: torch.Tensor, seed: int, bf16: bool = False, region: bool = False
) -> torch.Tensor:
    """D's and G's over the second hundred of 200 steps, perhaps all in one region of autocast."""
    step, rows = begin(seed, bf16), []
    if region:
        keeping(step)
    with torch.autocast("cpu", torch.bfloat16) if region else nullcontext():
        for _, (pixels, noise) in zip(range(200), draw_batches(faces, seed), strict=False):
            rows.append(step(to_signed(pixels, torch.bfloat16 if bf16 else torch.float32), noise))
    return torch.stack(rows[100:]).mean(0)[:2]


@pytest.mark.slow
def test_mean_losses_are_inside_the_spread_of_three_seeds_of_float32(faces):
    spread = torch.stack([mean_losses(faces, seed) for seed in range(3)])
    lowest, highest = spread.amin(0) - MARGIN, spread.amax(0) + MARGIN

    def inside(losses: torch.Tensor) -> list[bool]:
        return ((lowest <= losses) & (losses <= highest)).tolist()

    assert inside(mean_losses(faces, 0, bf16=True)) == [True, True]
    assert inside(mean_losses(faces, 0, bf16=True, region=True)) == [False, False]
