"""What `dcgan-profile step` does for CUDA's sake, shown on a CPU."""

from types import SimpleNamespace

import torch

from dcgan.profiling import entrants
from dcgan.profiling.entrants import Entrant
from dcgan.profiling.step import LAUNCHED, _launching
from tests.test_profile_step import CPU, TINY


def test_the_hosts_time_is_that_of_some_launches():
    """The clock is read before anybody waits for the device."""
    done, spent = [], iter([1.0, 1.5])
    entrant = Entrant(
        "x", "fp32", lambda: done.append("step"), lambda: done.append("begin"), 0, 0, 0
    )
    clock = SimpleNamespace(read=lambda: next(spent))
    assert _launching(entrant, clock, CPU) == 0.5 / LAUNCHED  # type: ignore[arg-type]
    assert done == ["begin", *["step"] * LAUNCHED]


def test_the_tutorials_step_has_cudnn_as_torch_does_and_ours_as_training(monkeypatch):
    seen: dict[str, bool] = {}

    def enter(name, precision, build, device):
        begin, _ = build()
        torch.backends.cudnn.benchmark = name == "tutorial"
        begin()
        seen[name] = torch.backends.cudnn.benchmark
        return name

    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    monkeypatch.setattr(entrants, "_enter", enter)
    options = SimpleNamespace(**TINY, channels=3, compiled=False)
    entrants.make_entrants(options, CPU)  # type: ignore[arg-type]
    assert seen == {"tutorial": False, "eager fp32": True, "eager auto": True}
