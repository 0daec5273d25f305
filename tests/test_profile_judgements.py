"""What `dcgan-profile` concludes: from made-up loaders and rounds, whose truth is known."""

import time

import pytest

from dcgan.profiling.measuring import Contender, Round, Spread
from dcgan.profiling.stages import _costs
from dcgan.profiling.sweep import Factor, Setting, Swept, _best
from dcgan.profiling.train import Training


def test_a_slow_loader_is_seen_in_the_data_wait():
    import torch

    def batches():
        while True:
            time.sleep(0.02)
            yield torch.zeros(1)

    fed = Contender("slow", batches(), 4, 0, lambda: None)
    pace = Training(fed, lambda real: time.sleep(0.005)).round(10, torch.device("cpu"))
    assert 50 < pace.data_wait_pct < 100
    assert pace.step_ms >= 25
    fed = Contender("free", iter(lambda: torch.zeros(1), None), 4, 0, lambda: None)
    pace = Training(fed, lambda real: time.sleep(0.005)).round(10, torch.device("cpu"))
    assert pace.data_wait_pct < 50


def test_what_a_loader_had_ready_does_not_count_as_its_pace():
    taken = []

    def batches():
        while True:
            taken.append(1)
            yield 0

    import torch

    stepped: list[object] = []
    Training(Contender("x", batches(), 4, 6, lambda: None), stepped.append).round(
        3, torch.device("cpu")
    )
    assert (len(taken), len(stepped)) == (6 + 1 + 3, 1 + 3)


def test_costs_are_differences_within_a_round():
    def rounds(*cpu):
        return [Round(8, 1e6 / (value / 2), value) for value in cpu]

    taken = {"read": rounds(10, 20), "decode": rounds(110, 120), "resize": rounds(108, 119)}
    costs = _costs(list(taken), taken, by_wall=False)
    assert costs["decode"].cpu == Spread(100, 100, 100)
    assert costs["decode"].wall.median == pytest.approx(50)
    assert costs["decode"].share == pytest.approx(100 / 115)
    assert costs["resize"].share == 0  # noise made it cheaper than nothing


@pytest.mark.parametrize(("noise", "kept"), [(0.3, True), (0.2, True), (0.1, False)])
def test_a_gain_must_exceed_the_noise(noise, kept):
    gains = {"the default": 1.0, "the default again": 1.0, "1": 0.5, "4": 1.2}
    spreads = {name: Spread(gain, gain, gain) for name, gain in gains.items()}
    factor = Factor("workers", (1, 2, 4), str)
    default = Setting(2, 128, 3, 0.65)
    value, told = _best(factor, default, Swept("workers", spreads, spreads, noise, {}))
    assert value == (2 if kept else 4)
    assert ("keep 2" in told) == kept
    only_told = Factor("batch_size", (64, 128), None)
    value, told = _best(only_told, default, Swept("b", spreads, spreads, noise, {}))
    assert value == 128
    assert "training's" in told
