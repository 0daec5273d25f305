"""A tick's statistics, and the arithmetic of its clock under a time that the test sets."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from dcgan.step.statistics import StepRows
from dcgan.training import clock as clock_module
from dcgan.training.clock import Clock

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
    monkeypatch.setattr(clock_module, "time", SimpleNamespace(perf_counter=lambda: source.now))
    return source


def do_step(clock: Clock, time: Time, wait: float, work: float) -> None:
    with clock.waiting():
        time.pass_by(wait)
    time.pass_by(work)


def test_pauses_do_not_count(time):
    clock = Clock(CPU)
    do_step(clock, time, wait=1, work=3)
    with clock.paused():
        time.pass_by(100)
    do_step(clock, time, wait=1, work=3)
    with clock.paused():
        time.pass_by(50)
    spent = clock.lap()()
    assert (spent.step_ms(2), spent.data_wait_pct) == pytest.approx((4000, 25))


def test_a_tick_knows_nothing_of_what_was_before(time):
    clock = Clock(CPU)
    time.pass_by(7)
    do_step(clock, time, wait=9, work=9)
    with clock.paused():
        time.pass_by(5)
    clock.lap()
    for wait, work, share in ((0, 2, 0), (2, 0, 100)):
        do_step(clock, time, wait, work)
        spent = clock.lap()()
        assert (spent.step_ms(1), spent.data_wait_pct) == pytest.approx((2000, share))


def test_on_cuda_the_wait_is_the_streams_idle_time(time, monkeypatch):
    class Event:
        def __init__(self) -> None:
            self.at = time.now

        def elapsed_time(self, later: "Event") -> float:
            return float(later.at - self.at) * 1e3

    monkeypatch.setattr(clock_module, "_recorded_event", Event)
    clock = Clock(torch.device("cuda"))
    clock.restart()
    for _ in range(2):
        do_step(clock, time, wait=1, work=3)  # the first of a tick counts too
        with clock.paused():
            time.pass_by(100)
        do_step(clock, time, wait=1, work=3)
        spent = clock.lap()()
        assert (spent.step_ms(2), spent.data_wait_pct) == pytest.approx((4000, 25))


def test_rows_come_back_in_order_and_only_once():
    rows, reused = StepRows(3, CPU), torch.empty(5)
    assert rows.take(0)().shape == (0, 5)
    for tick in ([0, 1, 2], [3], [4, 5]):
        for number in tick:
            rows.write(reused.copy_(torch.arange(5.0) + number))  # kept by value
        taken = rows.take(len(tick))()
        assert taken.dtype == np.float32
        assert np.array_equal(taken, [np.arange(5) + number for number in tick])


def test_rows_that_were_asked_for_are_not_written_to_again():
    rows = StepRows(2, CPU)
    rows.write(torch.full((5,), 1.0))
    asked = rows.take(1)
    rows.write(torch.full((5,), 2.0))
    assert (asked() == 1).all()


def test_more_steps_than_a_tick_has_are_refused():
    rows = StepRows(1, CPU)
    rows.write(torch.zeros(5))
    with pytest.raises(IndexError):
        rows.write(torch.zeros(5))


@pytest.mark.gpu
def test_rows_of_two_ticks_may_be_on_their_way():
    rows = StepRows(2, torch.device("cuda"))
    on_their_way = []
    for tick in range(2):
        for number in range(2):
            rows.write(torch.full((5,), 2.0 * tick + number, device="cuda"))
        on_their_way.append(rows.take(2))
    assert [asked()[:, 0].tolist() for asked in on_their_way] == [[0, 1], [2, 3]]
