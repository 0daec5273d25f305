"""Nothing in a step reads the device: what a CUDA graph, and a busy GPU, need of it."""

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from dcgan.step import STATISTICS
from dcgan.step.adversarial import AdversarialStep
from tests.needs import take, within
from tests.steps import batch, nets


class NoHostReads(TorchDispatchMode):
    """Refuses every operator that hands a tensor's value, or a shape made of values, to Python."""

    # torch's own tags: of _local_scalar_dense (item, float, if) and equal; of nonzero and masks
    REFUSED = (torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape)

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if any(tag in func.tags for tag in self.REFUSED):
            raise AssertionError(f"{func}: the step reads a value on the host")
        self.calls += 1
        return func(*args, **(kwargs or {}))


def test_no_value_is_read_on_the_host():
    step = AdversarialStep(*nets(size=32))
    for k in range(2):  # Adam makes its state in the first
        with NoHostReads() as mode:
            step(*batch(k, size=32))
        assert mode.calls > 100, "the mode saw nothing"


@pytest.mark.parametrize(
    "read",
    [
        lambda logits: logits.mean().item(),
        lambda logits: logits if logits[0] > 0 else -logits,
        lambda logits: logits[logits > 0],
    ],
    ids=["item", "branch", "mask"],
)
def test_a_planted_host_read_is_caught(read):
    generator, discriminator = nets(size=32)
    discriminator.register_forward_hook(lambda net, args, logits: [read(logits), None][1])
    step = AdversarialStep(generator, discriminator)
    with NoHostReads(), pytest.raises(AssertionError, match="reads a value on the host"):
        step(*batch(0, size=32))


def on_meta(
    monkeypatch: pytest.MonkeyPatch,
) -> tuple[AdversarialStep, tuple[torch.Tensor, torch.Tensor]]:
    """Build a step, and its batch, of tensors that have shapes and no values."""
    generator, discriminator = nets(size=32)
    step = AdversarialStep(generator, discriminator)
    for net, optimizer in ((generator, "optimizer_g"), (discriminator, "optimizer_d")):
        net.to("meta")  # where Adam has no fused kernel: any other optimiser will do
        monkeypatch.setattr(step, optimizer, torch.optim.SGD(net.parameters(), lr=1.0))
    real, noise = batch(0, size=32)
    return step, (real.to("meta"), noise.to("meta"))


def test_the_step_runs_where_there_is_no_value_to_read(monkeypatch):
    # Catches what a CPU tensor gives away without an operator: .tolist(), .numpy(), .cpu().
    step, (real, noise) = on_meta(monkeypatch)
    assert step(real, noise).shape == (len(STATISTICS),)


@pytest.mark.parametrize("read", [torch.Tensor.tolist, torch.Tensor.cpu])
def test_a_planted_silent_read_is_caught(monkeypatch, read):
    step, (real, noise) = on_meta(monkeypatch)
    step.discriminator.register_forward_hook(
        lambda net, args, logits: [read(logits.detach()), None][1]
    )
    with pytest.raises((NotImplementedError, RuntimeError, TypeError)):
        step(real, noise)


# The data that comes to it


@pytest.mark.parametrize("taken", [0, 8], ids=["first-epoch", "later"])
def test_a_batch_comes_without_a_host_read(open_batches, make_set, taken):
    loader = open_batches(make_set(12, 5), 3, dtype=torch.uint8)
    take(loader, taken)
    buffer = torch.zeros(3, 32, 32, 3, dtype=torch.uint8)

    def fill() -> int:
        with NoHostReads() as mode:  # sees this thread alone
            for _ in range(3 if taken else 4):
                loader.fill(buffer)
        return int(mode.calls)

    assert within(30, fill) > 0, "the mode saw nothing"
