"""What `--precision auto` takes, and what bf16 costs in accuracy."""

import copy
from pathlib import Path

import pytest
import torch

from dcgan import precision
from dcgan.precision import choose_precision
from dcgan.step import AdversarialStep
from pipeline.errors import UserError
from pipeline.pixels import to_signed
from tests.running import assert_four_parts
from tests.steps import NZ, nets, pixel_batch

CPU, CUDA, MPS = (torch.device(name) for name in ("cpu", "cuda", "mps"))


@pytest.fixture
def machine(monkeypatch):
    """Called with CPU flags and a compute capability, makes the machine look like that."""

    def pretend(flags=(), capability=(0, 0)):
        monkeypatch.setattr(precision, "_cpu_flags", lambda: {"sse2", *flags})
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)

    return pretend


@pytest.mark.parametrize(
    ("device", "flags", "capability", "taken"),
    [
        (CPU, [], (9, 0), "fp32"),
        (CPU, ["avx512f"], (9, 0), "fp32"),
        (CPU, ["avx512_bf16"], (0, 0), "bf16"),
        (CPU, ["amx_bf16"], (0, 0), "bf16"),
        (CUDA, ["amx_bf16"], (7, 5), "fp32"),
        (CUDA, [], (8, 0), "bf16"),
        (CUDA, [], (12, 0), "bf16"),
        (MPS, ["amx_bf16"], (8, 0), "fp32"),
    ],
)
def test_auto_is_a_table(machine, device, flags, capability, taken):
    machine(flags, capability)
    choice = choose_precision("auto", device)
    assert choice.name == taken
    assert device.type in choice.reason


@pytest.mark.parametrize("name", ["fp32", "bf16"])
def test_what_is_asked_for_is_taken(machine, name):
    machine()
    assert choose_precision(name, CPU) == (name, "as asked for")


@pytest.mark.parametrize(("device", "capability"), [(CPU, (9, 0)), (CUDA, (7, 5)), (MPS, (9, 0))])
def test_tf32_needs_its_hardware(machine, device, capability):
    machine(capability=capability)
    with pytest.raises(UserError) as refusal:
        choose_precision("tf32", device)
    assert_four_parts(refusal.value, "--precision tf32", device.type)
    machine(capability=(8, 6))
    assert choose_precision("tf32", CUDA).name == "tf32"


@pytest.mark.parametrize(("name", "form"), [("fp32", "ieee"), ("bf16", "ieee"), ("tf32", "tf32")])
def test_torch_is_told_how_to_multiply_on_cuda(name, form):
    backends = torch.backends.cuda.matmul, torch.backends.cudnn.conv  # type: ignore[attr-defined]
    before = [backend.fp32_precision for backend in backends]
    try:
        precision.set_matrix_format(name, CPU)
        assert [backend.fp32_precision for backend in backends] == before
        precision.set_matrix_format(name, CUDA)
        assert [backend.fp32_precision for backend in backends] == [form, form]
    finally:
        for backend, value in zip(backends, before, strict=True):
            backend.fp32_precision = value


def test_flags_are_those_of_the_kernels_list(monkeypatch):
    text = "processor : 0\nflags\t\t: fpu amx_bf16 sse2\n\nprocessor : 1\nflags : fpu\n"
    monkeypatch.setattr(Path, "read_text", lambda path: text)
    assert precision._cpu_flags() == {"fpu", "amx_bf16", "sse2"}

    def missing(path):
        raise FileNotFoundError

    monkeypatch.setattr(Path, "read_text", missing)
    assert precision._cpu_flags() == set()


# The accuracy of bf16


def gradients(pair, bf16, real, noise) -> dict[str, torch.Tensor]:
    """Both nets' gradients at the same weights: D's by its loss, G's by its own."""
    generator, discriminator = copy.deepcopy(pair)
    step = AdversarialStep(generator, discriminator, bf16=bf16)
    for optimizer in (step.optimizer_d, step.optimizer_g):
        optimizer.param_groups[0]["lr"] = 0.0
    step(real, noise)
    named = (*step.generator.named_parameters("G"), *step.discriminator.named_parameters("D"))
    return {name: parameter.grad for name, parameter in named if parameter.grad is not None}


BOUND = {"G": 0.3, "D": 0.15}
"""Relative error of a gradient, norm by norm. Measured at the five states below: G at most 0.25, D
at most 0.11; with the library's convolutions alone 0.21 and 0.11."""


def test_gradients_in_bf16_are_those_of_float32_within_a_bound():
    pair, draw = nets(size=32), torch.Generator().manual_seed(3)
    training = AdversarialStep(*pair)
    errors: dict[str, float] = {}
    for k in range(41):
        real = to_signed(pixel_batch(k))
        noise = torch.randn(len(real), NZ, 1, 1, generator=draw)
        if k % 10 == 0:
            rough, exact = (gradients(pair, bf16, real, noise) for bf16 in (True, False))
            assert rough.keys() == exact.keys()
            assert len(exact) == 18
            for name, gradient in exact.items():
                error = ((rough[name] - gradient).norm() / gradient.norm()).item()
                errors[name] = max(error, errors.get(name, 0))
        training(real, noise)
    assert all(error < BOUND[name[0]] for name, error in errors.items())
    assert all(error > 1e-3 for error in errors.values()), "float32 was compared with itself"
