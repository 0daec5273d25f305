"""A tick's statistics, and the arithmetic of its clock under a time that the test sets."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from dcgan import stats
from dcgan.stats import Clock, StepRows

CPU = torch.device("cpu")


class Time:
    """A clock that stands still until told otherwise."""

    def __init__(self) -> None:
        self.now = 1000.0

    def pass_by(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def time(monkeypatch):
    source = Time()
    monkeypatch.setattr(stats, "time", SimpleNamespace(perf_counter=lambda: source.now))
    return source


def do_step(clock: Clock, time: Time, wait: float, work: float) -> None:
    with clock.waiting():
        time.pass_by(wait)
    time.pass_by(work)
    clock.step_ended()


def test_pace_of_plain_steps(time):
    clock = Clock(CPU)
    for _ in range(4):
        do_step(clock, time, wait=0.5, work=1.5)
    pace = clock.read(steps=4, batch_size=16)
    assert pace.step_ms == pytest.approx(2000)
    assert pace.img_per_s == pytest.approx(8)
    assert pace.data_wait_pct == pytest.approx(25)


def test_pauses_do_not_count(time):
    clock = Clock(CPU)
    do_step(clock, time, wait=1, work=3)
    with clock.paused():
        time.pass_by(100)
    do_step(clock, time, wait=1, work=3)
    with clock.paused():
        time.pass_by(50)
    pace = clock.read(steps=2, batch_size=16)
    assert (pace.step_ms, pace.img_per_s, pace.data_wait_pct) == pytest.approx((4000, 4, 25))


def test_waits_count_even_if_they_are_everything(time):
    clock = Clock(CPU)
    do_step(clock, time, wait=5, work=0)
    assert clock.read(steps=1, batch_size=10).data_wait_pct == pytest.approx(100)
    assert clock.read(steps=1, batch_size=10).img_per_s == pytest.approx(2)


def test_a_tick_knows_nothing_of_what_was_before(time):
    clock = Clock(CPU)
    time.pass_by(7)
    do_step(clock, time, wait=9, work=9)
    with clock.paused():
        time.pass_by(5)
    clock.restart()
    do_step(clock, time, wait=0, work=2)
    pace = clock.read(steps=1, batch_size=4)
    assert (pace.step_ms, pace.img_per_s, pace.data_wait_pct) == pytest.approx((2000, 2, 0))


def test_on_cuda_the_wait_is_the_streams_idle_time(time, monkeypatch):
    class Event:
        def __init__(self) -> None:
            self.at = time.now

        def elapsed_time(self, later: "Event") -> float:
            return float(later.at - self.at) * 1e3

    monkeypatch.setattr(stats, "_recorded_event", Event)
    clock = Clock(torch.device("cuda"))
    for _ in range(2):
        clock.restart()
        do_step(clock, time, wait=1, work=3)  # the first of a tick counts too
        with clock.paused():
            time.pass_by(100)
        do_step(clock, time, wait=1, work=3)
        pace = clock.read(steps=2, batch_size=16)
        assert (pace.step_ms, pace.img_per_s, pace.data_wait_pct) == pytest.approx((4000, 4, 25))


def test_rows_come_back_in_order_and_only_once():
    rows = StepRows(3, CPU)
    assert rows.take().shape == (0, 5)
    for tick in ([0, 1, 2], [3], [4, 5]):
        for number in tick:
            rows.append(torch.arange(5.0) + number)
        assert rows.count == len(tick)
        taken = rows.take()
        assert taken.dtype == np.float32
        assert np.array_equal(taken, [np.arange(5) + number for number in tick])
        assert rows.count == 0


def test_rows_taken_are_not_written_to_again():
    rows = StepRows(2, CPU)
    rows.append(torch.full((5,), 1.0))
    taken = rows.take()
    rows.append(torch.full((5,), 2.0))
    assert (taken == 1).all()


def test_a_row_is_kept_by_value():
    rows, reused = StepRows(2, CPU), torch.zeros(5)
    for number in range(2):
        rows.append(reused.fill_(number))
    assert rows.take()[:, 0].tolist() == [0, 1]
