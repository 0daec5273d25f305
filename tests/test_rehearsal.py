"""The capture, rehearsed on the CPU: replays of one recorded step do what eager steps do."""

import itertools
from collections.abc import Callable

import pytest
import torch
import torch.distributed as dist

from dcgan.distributed import GradientReduction, Ranks
from dcgan.step.train_step import WholeStep
from tests.reference.tape import Tape
from tests.steps import ATTRIBUTES, CLASSES, labelled_batch, pixel_batch, states, whole_step

REPLAYS = 3


def record(step: WholeStep) -> Tape:
    """Warm up by one step and record the second."""
    step(*labelled_batch(step, 0))
    put(step, 1)
    tape = Tape(step.random)
    with tape:
        step.body()
    assert len(tape.calls) > 150, "the tape saw nothing"
    return tape


def put(step: WholeStep, seed: int) -> None:
    """Put a batch into the static buffers."""
    for buffer, given in zip(step.inputs, labelled_batch(step, seed), strict=True):
        buffer.copy_(given)


def replayed_and_eager(
    captured: WholeStep,
    eager: WholeStep,
    between: Callable[[WholeStep], object] = lambda step: None,
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """What a recorded step, replayed, and an eager one leave behind of the same batches.

    Args:
        captured: the one to record.
        eager: the one that shows what is right.
        between: done to both before each replay.
    """
    tape = record(captured)
    for k in range(2):
        eager(*labelled_batch(eager, k))
    found, wanted = [], []
    for k in range(2, 2 + REPLAYS):
        between(captured)
        put(captured, k)
        tape.replay()
        between(eager)
        wanted.append(eager(*labelled_batch(eager, k)).clone())
        found.append(captured.statistics.clone())
    return found + states(captured), wanted + states(eager)


def differ(pair: tuple[list[torch.Tensor], list[torch.Tensor]]) -> bool:
    return not all(torch.equal(one, other) for one, other in zip(*pair, strict=True))


@pytest.mark.parametrize(
    "how",
    [{}, {"bf16": True}, {"augmented": True, "labels": CLASSES}, {"labels": ATTRIBUTES}],
    ids=["fp32", "bf16", "augmented, classes", "attributes"],
)
def test_replays_are_eager_steps_to_the_bit(how):
    captured, eager = whole_step(**how), whole_step(**how)
    first = states(captured)
    found, wanted = replayed_and_eager(captured, eager)
    for mine, theirs in zip(found, wanted, strict=True):
        assert torch.equal(mine, theirs)
    rows = captured.rows.take(2 + REPLAYS)()
    assert torch.equal(torch.from_numpy(rows[2:]), torch.stack(found[:REPLAYS]))
    last = states(captured)
    unmoved = [k for k, (old, new) in enumerate(zip(first, last, strict=False)) if old.equal(new)]
    assert not unmoved, "what does not move was not compared"


# Several ranks


class Biased(Ranks):
    """One rank whose partner's gradients are all one: no step is the same without the meeting."""

    def sum_(self, flat: torch.Tensor) -> None:
        super().sum_(flat)
        flat.add_(1)


@pytest.fixture
def partner():
    store = dist.HashStore()  # type: ignore[attr-defined]
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    ranks = Biased(0, 2)
    ranks.connect(torch.device("cpu"))
    yield ranks
    dist.destroy_process_group()


def shared(step: WholeStep, ranks: Ranks) -> WholeStep:
    nets = step.update.generator, step.update.discriminator
    step.update.reduce_gradients = GradientReduction(ranks, *nets)
    return step


def test_the_two_meetings_of_a_step_are_recorded_with_it(partner):
    captured, eager, alone = shared(whole_step(), partner), whole_step(), whole_step()
    tape = record(captured)
    names = [str(func) for func, *_ in tape.calls]
    assert [name for name in names if "c10d" in name] == ["c10d.allreduce_.default"] * 2
    adam = [place for place, name in enumerate(names) if "_fused_adam_" in name]
    met = [place for place, name in enumerate(names) if "c10d" in name]
    assert met[0] < adam[0] < met[1] < adam[1]
    pair = replayed_and_eager(shared(whole_step(), partner), shared(eager, partner))
    assert not differ(pair)
    assert differ((pair[1], replayed_and_eager(whole_step(), alone)[1]))


def test_a_warm_up_leaves_the_other_ranks_in_peace(partner, monkeypatch):
    met: list[object] = []
    step = shared(whole_step(), partner)
    monkeypatch.setattr(partner, "sum_", met.append)
    with step.preserved_state():
        step(pixel_batch(0))
    assert not met
    step(pixel_batch(0))
    assert len(met) == 2


# Faults, each planted once


def planted(hook: Callable[..., object], bf16: bool = False) -> WholeStep:
    """A step whose discriminator ends in a fault."""
    step = whole_step(bf16)
    step.update.discriminator.register_forward_hook(hook)
    return step


@pytest.mark.parametrize(
    ("hook", "told"),
    [
        (
            lambda net, args, logits: logits * (2.0 if logits.mean().item() > 9 else 1.0),
            "reads a value on the host",
        ),
        (lambda net, args, logits: logits + 0.01 * torch.randn(8), "draws from elsewhere"),
    ],
    ids=["host read", "another generator"],
)
def test_what_a_capture_could_not_hold_is_refused(hook, told):
    with pytest.raises(AssertionError, match=told):
        record(planted(hook))


def test_a_baked_in_value_is_caught():
    def slow_down(step: WholeStep) -> None:
        for optimizer in (step.update.optimizer_d, step.update.optimizer_g):
            optimizer.param_groups[0]["lr"] *= 0.5  # a float: only Python sees it change

    assert differ(replayed_and_eager(whole_step(), whole_step(), slow_down))


def test_a_count_that_python_keeps_is_caught():
    def count(net, args, logits):
        net.calls = getattr(net, "calls", 0) + 1
        return logits + 1e-3 * net.calls

    assert differ(replayed_and_eager(planted(count), planted(count)))


def test_a_rate_of_the_average_that_python_computes_is_caught():
    def counting() -> WholeStep:
        step, counter = whole_step(), itertools.count(1.0)
        assert step.ema is not None
        update = step.ema.update
        step.ema.update = lambda updates: update(torch.tensor(next(counter)))  # type: ignore[method-assign]
        return step

    assert differ(replayed_and_eager(counting(), counting()))


def test_a_random_draw_that_does_not_advance_is_caught(monkeypatch):
    captured, eager = whole_step(), whole_step()
    drawn = torch.randn(captured.noise.shape)
    with monkeypatch.context() as patched:
        patched.setattr(torch.Tensor, "normal_", lambda noise, generator: noise.copy_(drawn))
        tape = record(captured)
    for k in range(2):
        eager(pixel_batch(k))
    seen = []
    for _ in range(2):
        tape.replay()
        seen.append(captured.noise.clone())
        eager(pixel_batch(1))
    assert torch.equal(*seen)
    assert not torch.equal(captured.noise, eager.noise)
    assert not torch.equal(captured.statistics, eager.statistics)
