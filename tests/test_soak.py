"""The soak: its judgement on made-up runs, and a short real one."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tests.soak import LOG_EVERY, STEPS, Sample, Soaked, judged, show, soak

MB = 1_000_000


def flat(**changes: Any) -> Soaked:
    """A run with nothing wrong, seen every hundred steps."""
    random = np.random.default_rng(0)
    noise = random.normal(0, MB, STEPS // 100 + 1)
    samples = [
        Sample(step, int(500 * MB + noise[place]), 20 + place % 2, 9, 0.006 * step)
        for place, step in enumerate(range(0, STEPS + 1, 100))
    ]
    ticks = [
        {"step": step, "loss_d": 0.5, "step_ms": 6 + random.random()}
        for step in range(LOG_EVERY, STEPS + 1, LOG_EVERY)
    ]
    losses = np.column_stack([np.arange(1, STEPS + 1), random.random((STEPS, 5))])
    return replace(Soaked(STEPS, 120.0, samples, ticks, losses, 20 * MB, 2, 0), **changes)


def broken(soaked: Soaked) -> set[str]:
    return {line.what for line in judged(soaked) if not line.holds}


def samples_with(**rates: float) -> list[Sample]:
    """Samples of a run in which something grows by so much a step."""
    return [
        replace(
            sample,
            **{name: getattr(sample, name) + rate * sample.step for name, rate in rates.items()},
        )
        for sample in flat().samples
    ]


def slower(share: float) -> list[dict[str, float]]:
    """Ticks whose steps take longer, by this share at the end."""
    return [
        tick | {"step_ms": tick["step_ms"] * (1 + share * tick["step"] / STEPS)}
        for tick in flat().ticks
    ]


def test_a_flat_run_is_in_order_and_a_busy_minute_is_no_trend(capsys):
    busy = flat().ticks
    for tick in busy[-80:]:  # other work on the machine
        tick["step_ms"] *= 4
    assert broken(flat()) == broken(flat(ticks=busy)) == set()
    assert show("of nothing", flat())
    assert "BROKEN" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"samples": samples_with(resident=1000)}, "memory's slope"),
        ({"samples": samples_with(files=1 / 500)}, "open files"),
        ({"samples": samples_with(threads=1 / 2000)}, "open threads"),
        ({"ticks": slower(1)}, "a step's time"),
        (
            {
                "samples": [
                    replace(each, cpu=0.006 * each.step * (1 + each.step / STEPS / 4))
                    for each in flat().samples
                ]
            },
            "CPU time a step, all told",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_grows_with_the_steps_is_noticed(changes, what, capsys):
    assert broken(flat(**changes)) == {what}
    assert not show("that leaks", flat(**changes))
    assert "BROKEN" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("way", ["from the cache", "from a store", "by two ranks"])
def test_two_thousand_real_steps(tmp_path, way):
    """Pace aside: a machine that runs tests may have other things to do."""
    soaked = soak(tmp_path, 2000, way)
    assert broken(soaked) <= {"a step's time", "CPU time a step, all told"}
