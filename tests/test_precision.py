"""What `--precision auto` takes; what bf16 costs in accuracy is in test_bf16.py."""

from contextlib import suppress
from pathlib import Path

import pytest
import torch

from dcgan.step import precision
from dcgan.step.precision import choose_precision
from pipeline.errors import UserError
from tests.running import assert_four_parts

CPU, CUDA, MPS = (torch.device(name) for name in ("cpu", "cuda", "mps"))


@pytest.fixture
def machine(monkeypatch):
    """Called with CPU flags and a compute capability, makes the machine look like that."""

    def pretend(flags=(), capability=(0, 0)):
        monkeypatch.setattr(precision, "cpu_flags", lambda: {"sse2", *flags})
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)

    return pretend


@pytest.mark.parametrize(
    ("device", "flags", "capability", "taken"),
    [
        (CPU, ["avx512f"], (9, 0), "fp32"),
        (CPU, ["avx512_bf16"], (0, 0), "bf16"),
        (CUDA, ["amx_bf16"], (7, 5), "fp32"),
        (CUDA, [], (8, 0), "bf16"),
        (MPS, ["amx_bf16"], (8, 0), "fp32"),
    ],
)
def test_auto_is_a_table(machine, device, flags, capability, taken):
    machine(flags, capability)
    choice = choose_precision("auto", device)
    assert choice.name == taken
    assert device.type in choice.reason


@pytest.mark.parametrize(("device", "capability"), [(CPU, (9, 0)), (CUDA, (7, 5))])
def test_tf32_needs_its_hardware(machine, device, capability):
    machine(capability=capability)
    with pytest.raises(UserError) as refusal:
        choose_precision("tf32", device)
    assert_four_parts(refusal.value, "--precision tf32", device.type)
    machine(capability=(8, 6))
    assert choose_precision("tf32", CUDA) == ("tf32", "as asked for")


@pytest.fixture
def cudnn():
    """Torch's settings for CUDA, put back afterwards."""
    backends = torch.backends.cuda.matmul, torch.backends.cudnn.conv  # type: ignore[attr-defined]
    before = torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic
    forms = [backend.fp32_precision for backend in backends]
    yield lambda: (
        torch.backends.cudnn.benchmark,
        torch.backends.cudnn.deterministic,
        *(backend.fp32_precision for backend in backends),
    )
    torch.use_deterministic_algorithms(False)
    torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = before
    for backend, form in zip(backends, forms, strict=True):
        backend.fp32_precision = form


@pytest.mark.parametrize("deterministic", [False, True])
def test_torch_is_told_how_to_multiply_and_to_choose_on_cuda(cudnn, deterministic):
    before = cudnn()
    precision.set_matrix_format("tf32", CPU)
    assert cudnn() == before
    for name, form in (("fp32", "ieee"), ("tf32", "tf32"), ("bf16", "ieee")):
        precision.set_matrix_format(name, CUDA)
        assert cudnn()[2:] == (form, form)
    torch.use_deterministic_algorithms(deterministic)
    torch.backends.cudnn.benchmark = deterministic
    precision.choose_kernels()  # they are tried, unless each run must take the same
    assert cudnn()[0] is not deterministic


@pytest.mark.parametrize("failing", [False, True])
def test_images_are_drawn_alike_whatever_training_has_chosen(cudnn, failing):
    precision.set_matrix_format("tf32", CUDA)
    precision.choose_kernels()
    before = cudnn()
    assert before == (True, False, "tf32", "tf32")
    with suppress(ValueError), precision.same_in_every_process(CUDA):
        assert cudnn() == (False, True, "ieee", "ieee")
        if failing:
            raise ValueError
    assert cudnn() == before
    with precision.same_in_every_process(CPU):
        assert cudnn() == before


def test_flags_are_those_of_the_kernels_list(monkeypatch):
    text = "processor : 0\nflags\t\t: fpu amx_bf16 sse2\n\nprocessor : 1\nflags : fpu\n"
    monkeypatch.setattr(Path, "read_text", lambda path: text)
    assert precision.cpu_flags() == {"fpu", "amx_bf16", "sse2"}

    def missing(path):
        raise FileNotFoundError

    monkeypatch.setattr(Path, "read_text", missing)
    assert precision.cpu_flags() == set()
