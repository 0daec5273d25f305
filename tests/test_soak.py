"""The soak: its judgement on made-up runs, and a short real one."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tests.soak import STEPS, show, soak
from tests.soak_limits import LOG_EVERY, Sample, Soaked, judged

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


def test_a_flat_run_is_in_order(capsys):
    assert broken(flat()) == set()
    assert show("of nothing", flat())
    assert "BROKEN" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("rates", "what"),
    [
        ({"resident": 1000}, "memory's slope"),
        ({"files": 1 / 500}, "open files"),
        ({"threads": 1 / 2000}, "open threads"),
        ({"cpu": 0}, None),
    ],
    ids=str,
)
def test_what_grows_with_the_steps_is_noticed(rates, what, capsys):
    grown = flat(samples=samples_with(**rates))
    assert broken(grown) == ({what} if what else set())
    assert show("that leak", grown) is (what is None)
    assert ("BROKEN" in capsys.readouterr().out) is (what is not None)


FLAT = flat().samples


def test_steps_that_become_slower_are_noticed():
    ticks = [tick | {"step_ms": 6 + 6 * tick["step"] / STEPS} for tick in flat().ticks]
    assert broken(flat(ticks=ticks)) == {"a step's time"}


def test_work_that_grows_with_what_was_done_is_noticed():
    costly = [replace(each, cpu=0.006 * each.step * (1 + each.step / STEPS / 4)) for each in FLAT]
    assert broken(flat(samples=costly)) == {"CPU time a step, all told"}


def test_a_busy_minute_is_no_trend():
    """Other work on the machine makes steps slower at times, wherever in the run that is."""
    ticks = flat().ticks
    for tick in ticks[-80:]:
        tick["step_ms"] *= 4
    assert broken(flat(ticks=ticks)) == set()


@pytest.mark.slow
@pytest.mark.parametrize("cache", ["host", "off"])
def test_two_thousand_real_steps(tmp_path, cache):
    """Pace aside: a machine that runs tests may have other things to do."""
    soaked = soak(tmp_path, 2000, cache)
    assert broken(soaked) <= {"a step's time", "CPU time a step, all told"}
