"""A step's state, saved and loaded: what going on rests on."""

import copy

import pytest
import torch

from dcgan.checks.findings import Verdict
from dcgan.checks.verify import step_resumes
from dcgan.step.train_step import WholeStep
from tests.steps import pixel_batch, states, whole_step

CPU = torch.device("cpu")


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_a_loaded_state_is_the_one_saved(device, bf16):
    first, second = (whole_step(bf16, device=device) for _ in range(2))
    for seed in range(3):
        first(pixel_batch(seed).to(device))
    second.load_state_dict(first.state_dict(), same_random=False)
    assert not second.random.get_state().equal(first.random.get_state())
    second.load_state_dict(copy.deepcopy(first.state_dict()), same_random=True)
    pairs = list(zip(states(first), states(second), strict=True))
    assert len(pairs) > 60
    assert all(one.equal(other) for one, other in pairs)
    if device == "cpu":  # elsewhere a backward pass may add in any order
        for step in (first, second):
            step(pixel_batch(9))
        assert all(map(torch.equal, states(first), states(second)))


def test_a_saved_state_holds_no_more_than_it_needs():
    """Three rows, not the buffer of 32 that they lie in."""
    step = whole_step()
    for seed in range(3):
        step(pixel_batch(seed))
    rows = step.state_dict()["rows"]
    assert rows.shape == (3, 5)
    assert rows.untyped_storage().nbytes() == 3 * 5 * 4


@pytest.mark.parametrize("place", [0, -3])
def test_a_number_that_is_none_is_found_wherever_it_is(place):
    step = whole_step()
    step(pixel_batch(0))
    assert step.is_finite()
    tensor = [tensor for tensor in step.state() if tensor.is_floating_point()][place]
    with torch.no_grad():
        tensor[(0,) * tensor.ndim] = float("inf")
    assert not step.is_finite()


def test_the_doctor_sees_that_it_resumes_and_would_see_if_not(monkeypatch):
    finding = step_resumes(CPU)
    assert (finding.verdict, finding.found) == (Verdict.OK, "equal to the bit")
    load = WholeStep.load_state_dict

    def without_optimisers(self, state, same_random):
        load(self, {**state, "optimizer_d": {}, "optimizer_g": {}}, same_random)

    monkeypatch.setattr(WholeStep, "load_state_dict", without_optimisers)
    assert step_resumes(CPU).verdict is Verdict.FAIL
