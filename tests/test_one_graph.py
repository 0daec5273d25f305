"""The update as one graph: what is traced is the eager step, and without it the parts are taken."""

import copy
from functools import partial
from typing import Any

import pytest
import torch

from dcgan.nets import forms
from dcgan.step import one_graph, train_step
from dcgan.step.adversarial import discriminator_loss
from dcgan.step.masks import recompute_masks
from dcgan.step.one_graph import adam_, trace
from dcgan.step.train_step import WholeStep
from dcgan.step.tuning import Tuning
from tests.steps import ATTRIBUTES, labelled_batch, pixel_batch, states, whole_step
from tests.test_extending import batches, in_examples_step
from tests.test_modes import compare_over_20_steps, fail


def traced(step: WholeStep, monkeypatch, norms: int = 3 + 3 * 2) -> WholeStep:
    """Trace a step, and have it run the calls that were noted, without a compiler.

    Args:
        step: the step.
        monkeypatch: pytest's.
        norms: BatchNorms in G and in D's three passes: each has a mask recomputed, and no other.
    """
    said, masks = list[str](), list[int]()
    with monkeypatch.context() as patched:
        patched.setattr(torch, "compile", lambda part, **options: part)
        patched.setattr(
            one_graph, "recompute_masks", lambda module: masks.append(recompute_masks(module))
        )
        assert step.prepare("compiled", said.append, tuning=Tuning(one_graph=True)) == "compiled"
    assert step.is_one_graph, said
    assert masks == [norms]
    return step


@pytest.fixture
def library(monkeypatch):
    """Have eager steps, too, compute in the form that the traced nets see."""
    monkeypatch.setattr(forms, "_forms", lambda *_: None)


def smoothed_without_average(step: WholeStep) -> None:
    step.ema = None
    step.update.loss_d = partial(discriminator_loss, label_smoothing=0.1)


def half_precision(step: WholeStep) -> None:
    step.update.bf16 = True


@pytest.mark.parametrize(
    ("change", "labels"),
    [(lambda step: None, None), (smoothed_without_average, ATTRIBUTES), (half_precision, None)],
)
def test_what_is_traced_are_the_calls_of_an_eager_step(library, monkeypatch, change, labels):
    """To the bit, but for Adam: hence the eager step, too, has the one that is written out."""
    eager, step = whole_step(labels=labels), whole_step(labels=labels)
    for each in (eager, step):
        change(each)
        each(*labelled_batch(each, 9))  # so that nothing is at its beginning
    before = states(step)
    traced(step, monkeypatch)
    assert all(map(torch.equal, states(step), before)), "tracing leaves no trace"
    places = [tensor.data_ptr() for tensor in step.state()]
    monkeypatch.setattr(torch, "_fused_adam_", adam_)
    for k in range(3):
        assert torch.equal(step(*labelled_batch(step, k)), eager(*labelled_batch(eager, k)))
    assert [tensor.data_ptr() for tensor in step.state()] == places
    unmoved = [old for old, new in zip(before, states(step), strict=True) if old.equal(new)]
    assert not unmoved, "what does not move was not compared"
    average = {id(p) for p in (step.ema.net.parameters() if step.ema else ())}
    for mine, theirs in zip(step.state(), eager.state(), strict=True):
        close = 1e-6 if id(mine) in average else 0  # the average's `lerp_` is written out, too
        torch.testing.assert_close(mine, theirs, rtol=close, atol=close)
    assert (step.rows.take(4)() == eager.rows.take(4)()).all()


def test_cudnns_batchnorm_is_traced_with_what_it_changes(library, monkeypatch):
    """On a GPU float32 takes it, and its schema does not name the running statistics."""
    step, eager = whole_step(), whole_step()
    step(pixel_batch(0))
    eager(pixel_batch(0))

    def cudnns(images, mean, variance, weight, bias, training, momentum, eps):
        norm = torch.ops.aten.cudnn_batch_norm
        return norm(images, weight, bias, mean, variance, training, momentum, eps)[0]

    with step.preserved_state(), monkeypatch.context() as patched:
        patched.setattr(torch.nn.functional, "batch_norm", cudnns)
        module = trace(step.compute, step._tensors())
    assert "cudnn" not in module.code
    monkeypatch.setattr(torch, "_fused_adam_", adam_)
    with torch.no_grad():
        step.draw()
        module(*step._tensors())
    assert torch.equal(step.statistics, eager(pixel_batch(0)))
    buffers = step.update.discriminator.buffers()
    assert all(map(torch.equal, buffers, eager.update.discriminator.buffers()))


def test_own_nets_and_loss_are_traced_as_they_are(monkeypatch):
    """Spectral normalisation changes buffers while it computes; the loss is a hinge."""
    step, eager, pixels = in_examples_step(), in_examples_step(), batches()
    traced(step, monkeypatch, norms=4)
    monkeypatch.setattr(torch, "_fused_adam_", adam_)
    for _ in range(3):
        given = pixels()
        assert torch.equal(step(given), eager(given))
    assert all(map(torch.equal, step.state(), eager.state()))


def test_with_the_fused_adam_it_is_the_eager_step_within_the_bounds_of_the_modes(monkeypatch):
    step, eager = traced(whole_step(), monkeypatch), whole_step()
    compare_over_20_steps(step, eager, rows=1)


def test_nets_are_traced_in_the_form_that_suits_a_compiler(monkeypatch):
    step, seen = whole_step(), list[bool]()
    nets = step.update.generate, step.update.discriminate
    step.update.discriminator.register_forward_hook(
        lambda *_: seen.append(torch.compiler.is_compiling())
    )
    traced(step, monkeypatch)
    assert seen == [False] * 3 + [True] * 3, "a step that makes Adam's state, and the traced one"
    assert not torch.compiler.is_compiling()
    assert (step.update.generate, step.update.discriminate) == nets


def test_a_rate_in_a_tensor_is_read_at_each_step(library, monkeypatch):
    """As on CUDA, where it is one; a number is repeated as it was."""
    step, eager = whole_step(), whole_step()
    rates = [torch.tensor(2e-4) for _ in range(4)]
    optimizers = [
        o for each in (step, eager) for o in (each.update.optimizer_d, each.update.optimizer_g)
    ]
    for optimizer, rate in zip(optimizers, rates, strict=True):
        optimizer.param_groups[0]["lr"] = rate
    traced(step, monkeypatch)
    monkeypatch.setattr(torch, "_fused_adam_", adam_)
    for k, factor in enumerate((1, 0.5, 3)):
        for rate in rates:
            rate.mul_(factor)
        assert torch.equal(step(pixel_batch(k)), eager(pixel_batch(k)))
    assert all(
        map(torch.equal, step.update.generator.parameters(), eager.update.generator.parameters())
    )


def test_a_resumed_step_is_traced_with_its_own_state(library, monkeypatch):
    """Loading gives the optimisers other tensors: those are the graph's."""
    first, resumed = whole_step(), whole_step()
    first(pixel_batch(0))
    resumed.load_state_dict(copy.deepcopy(first.state_dict()), same_random=True)
    traced(resumed, monkeypatch)
    monkeypatch.setattr(torch, "_fused_adam_", adam_)
    assert torch.equal(resumed(pixel_batch(1)), first(pixel_batch(1)))
    again = whole_step()
    again.load_state_dict(copy.deepcopy(resumed.state_dict()), same_random=True)
    assert torch.equal(again(pixel_batch(2)), first(pixel_batch(2)))


@pytest.mark.parametrize("rate", [3e-3, torch.tensor(3e-3)], ids=["a number", "a tensor"])
def test_adam_written_out_is_the_fused_one(rate):
    draw = torch.Generator().manual_seed(1)
    shapes = (5, 3), (7,), (2, 3, 4, 4)
    options: dict[str, Any] = {"beta1": 0.4, "beta2": 0.999, "weight_decay": 0.0, "eps": 1e-8}
    options |= {"lr": rate, "amsgrad": False, "maximize": False}
    drawn = [torch.randn(shape, generator=draw, dtype=torch.float64) for shape in shapes]
    fused, ours = (
        [
            [tensor.clone() for tensor in drawn],
            *([torch.zeros_like(t) for t in drawn] for _ in "mv"),
        ]
        for _ in "fo"
    )
    for step in range(1, 5):
        gradients = [
            10.0**-k * torch.randn(t.shape, generator=draw, dtype=t.dtype)
            for k, t in enumerate(drawn)
        ]
        steps = [torch.tensor(float(step)) for _ in drawn]
        for kernel, (weights, means, squares) in ((torch._fused_adam_, fused), (adam_, ours)):
            kernel(weights, gradients, means, squares, [], steps, **options)
    for mine, theirs in zip(ours, fused, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-6, atol=1e-14)
    assert not torch.equal(fused[0][0], drawn[0])


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore")  # Inductor's own
@pytest.mark.parametrize("mode", ["compiled", "graph"])
def test_one_graph_is_eager_on_a_gpu(mode):
    step, eager = whole_step(device="cuda"), whole_step(device="cuda")
    said: list[str] = []
    assert step.prepare(mode, said.append, tuning=Tuning(one_graph=True)) == mode, said
    assert step.is_one_graph, said
    compare_over_20_steps(step, eager, rows=1)


def test_masks_of_other_batchnorms_are_left_alone():
    net = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4), torch.nn.ReLU())
    rows = torch.randn(5, 3, requires_grad=True)
    module = trace(lambda: net(rows).sum().backward(), [rows, *net.parameters(), *net.buffers()])
    assert recompute_masks(module) == 0


# Where it cannot be had


def refusal(step: WholeStep, monkeypatch) -> list[str]:
    """Ask a step for one graph, which it has not, and return what it says; the parts compile."""
    said: list[str] = []
    with monkeypatch.context() as patched:
        patched.setattr(torch, "compile", lambda part, **options: lambda *batch: part(*batch))
        assert step.prepare("compiled", said.append, tuning=Tuning(one_graph=True)) == "compiled"
    assert not step.is_one_graph
    assert torch.equal(step(pixel_batch(0)), whole_step()(pixel_batch(0)))
    return said


def test_what_cannot_be_traced_is_told_and_its_parts_are_taken(monkeypatch):
    monkeypatch.setattr(train_step, "compile_whole", fail)
    whole, failed, parts, compiled = refusal(whole_step(), monkeypatch)
    assert whole.startswith("compiling the step as one graph: up to a minute")
    reason = "RuntimeError: no such thing here in detail"
    assert failed == f"torch.compile failed, continuing with its parts: {reason}"
    assert parts.startswith("compiling the step: ")
    assert compiled.startswith("compiled in ")


def test_what_fails_on_another_rank_is_not_one_graph_here_either(monkeypatch):
    step, answers = whole_step(), iter([False, True])
    said: list[str] = []
    monkeypatch.setattr(torch, "compile", lambda part, **options: part)
    mode = step.prepare(
        "compiled", said.append, lambda flag: next(answers), tuning=Tuning(one_graph=True)
    )
    assert (mode, step.is_one_graph) == ("compiled", False)
    assert "continuing with its parts: on another rank" in said[1]
    assert step._compute == step.compute


def test_ranks_that_reduce_gradients_have_no_one_graph(monkeypatch):
    step = whole_step()
    step.update.reduce_gradients = lambda net: None
    said = refusal(step, monkeypatch)
    assert said[0] == (
        "the update cannot be one compiled graph: several ranks reduce gradients within it"
    )


def test_an_adam_that_is_not_written_out_is_refused(monkeypatch):
    step, other = whole_step(), whole_step()
    for each in (step, other):
        for group in each.update.optimizer_d.param_groups:
            group["weight_decay"] = 0.01
    monkeypatch.setattr("tests.test_one_graph.whole_step", lambda: other)
    said = refusal(step, monkeypatch)
    assert "NotImplementedError: Adam is written out without weight_decay" in said[1]


def test_without_being_asked_for_it_is_not_tried(monkeypatch):
    monkeypatch.setattr(train_step, "compile_whole", fail)
    monkeypatch.setattr(torch, "compile", lambda part, **options: part)
    step = whole_step()
    said: list[str] = []
    assert step.prepare("compiled", said.append) == "compiled"
    assert not step.is_one_graph
    assert not [line for line in said if "one graph" in line]
