"""The feeder: order, how far it runs ahead, how errors come out, and that nothing hangs on it."""

import threading
import time
from functools import partial
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.loading.prefetcher import Feeder
from tests.needs import within

NAME = "fed"


class Source:
    """Counts up, and keeps what happened to it."""

    def __init__(self, stop=None, error=None):
        self.stop, self.error = stop, error
        self.made = 0
        self.thread: Any = None
        self.closed_in: Any = None

    def items(self):
        self.thread = threading.current_thread()
        try:
            while self.made != self.stop:
                self.made += 1
                yield self.made - 1
            if self.error is not None:
                raise self.error
        finally:
            self.closed_in = threading.current_thread()


@pytest.fixture
def feed():
    """Makes feeders that are closed when the test ends, and whose threads must end with them."""
    made = []

    def make(items, ahead=2):
        made.append(Feeder(items, ahead, NAME))
        return made[-1]

    yield make
    for feeder in made:
        assert within(20, partial(feeder.close, 10))
    assert [thread for thread in threading.enumerate() if thread.name == NAME] == []


def take(feeder, timeout=10.0):
    return within(20, lambda: feeder.take(timeout))


def settled(value, still=0.1, patience=10.0):
    """What a changing number comes to when it has stood still for a moment."""
    last, since, end = value(), time.monotonic(), time.monotonic() + patience
    while time.monotonic() - since < still:
        assert time.monotonic() < end, "never stands still"
        time.sleep(0.01)
        if value() != last:
            last, since = value(), time.monotonic()
    return last


# Order and lead


@given(st.lists(st.integers(), max_size=30), st.integers(1, 5))
@settings(max_examples=50)
def test_items_come_in_order_and_then_the_end(items, ahead):
    feeder = Feeder((item for item in items), ahead, NAME)
    assert [take(feeder) for _ in items] == items
    for _ in range(2):
        with pytest.raises(StopIteration):
            take(feeder)
    assert feeder.close(10)


@pytest.mark.parametrize("ahead", [1, 2, 5])
def test_it_runs_ahead_so_far_and_no_farther(feed, ahead):
    source = Source()
    feeder = feed(source.items(), ahead)
    for taken in range(1, 8):
        assert take(feeder) == taken - 1
        # Those that are ready, and one in hand
        assert settled(lambda: source.made) == taken + ahead + 1


def test_nothing_starts_before_the_first_take(feed):
    source = Source()
    feeder = feed(source.items())
    time.sleep(0.05)
    assert source.made == 0
    assert NAME not in [thread.name for thread in threading.enumerate()]
    take(feeder)
    assert source.thread.name == NAME
    assert source.thread.daemon  # it must never keep a process


def test_none_is_an_item_like_any_other(feed):
    feeder = feed(item for item in [None, False, 0])
    assert [take(feeder) for _ in range(3)] == [None, False, 0]


# Errors


class OddError(BaseException):
    pass


@pytest.mark.parametrize("kind", [ValueError, KeyboardInterrupt, OddError])
@pytest.mark.parametrize("before", [0, 1, 7])
def test_an_error_comes_out_after_the_items_before_it(feed, kind, before):
    error = kind("broken")
    feeder = feed(Source(before, error).items())
    assert [take(feeder) for _ in range(before)] == list(range(before))
    for _ in range(2):  # and stays
        with pytest.raises(kind) as raised:
            take(feeder)
        assert raised.value is error


def test_items_ready_when_the_error_struck_are_not_lost(feed):
    source = Source(2, ValueError("broken"))
    feeder = feed(source.items(), ahead=5)
    assert take(feeder) == 0
    within(10, lambda: source.thread.join())
    assert take(feeder) == 1
    with pytest.raises(ValueError, match="broken"):
        take(feeder)


def test_an_item_that_does_not_come_is_a_timeout_and_may_come_later(feed):
    gate = threading.Event()

    def late():
        gate.wait(20)
        yield "late"

    feeder = feed(late())
    for _ in range(2):
        with pytest.raises(TimeoutError):
            take(feeder, timeout=0.05)
    gate.set()
    assert take(feeder) == "late"


def test_the_timeout_is_for_each_item_not_for_all(feed):
    def slow():
        for number in range(6):
            time.sleep(0.3)
            yield number

    feeder = feed(slow(), ahead=1)
    assert [take(feeder, timeout=1.5) for _ in range(6)] == list(range(6))


def test_a_ready_item_is_given_without_any_timeout(feed):
    source = Source()
    feeder = feed(source.items())
    take(feeder)
    settled(lambda: source.made)
    assert take(feeder, timeout=0) == 1


# Closing


def test_closing_is_quick_while_the_producer_waits_for_room(feed):
    source = Source()
    feeder = feed(source.items(), ahead=1)
    take(feeder)
    settled(lambda: source.made)
    start = time.monotonic()
    assert within(20, lambda: feeder.close(10))
    assert time.monotonic() - start < 5
    assert not source.thread.is_alive()
    assert source.closed_in is source.thread
    with pytest.raises(StopIteration):
        take(feeder)


def test_a_generator_that_ended_or_broke_is_closed_in_its_thread(feed):
    for error in (None, ValueError()):
        source = Source(1, error)
        feeder = feed(source.items())
        take(feeder)
        with pytest.raises((StopIteration, ValueError)):
            take(feeder)
        within(10, source.thread.join)
        assert source.closed_in is source.thread


def test_closed_before_anything_was_taken_it_starts_nothing(feed):
    source = Source()
    feeder = feed(source.items())
    assert feeder.close(10)
    with pytest.raises(StopIteration):
        take(feeder)
    assert source.thread is None


def test_closing_twice_is_closing_once(feed):
    feeder = feed(Source().items())
    take(feeder)
    assert [within(20, lambda: feeder.close(10)) for _ in range(2)] == [True, True]


def test_close_gives_up_on_a_thread_that_is_stuck_and_says_so(feed):
    gate = threading.Event()

    def stuck():
        yield 0
        gate.wait(20)

    feeder = feed(stuck())
    assert take(feeder) == 0
    start = time.monotonic()
    assert not within(20, lambda: feeder.close(0.2))
    assert 0.15 < time.monotonic() - start < 5
    with pytest.raises(StopIteration):
        take(feeder)
    gate.set()
    assert within(20, lambda: feeder.close(10))


def test_an_item_made_after_closing_is_not_given(feed):
    gate = threading.Event()

    def late():
        gate.wait(20)
        yield "late"

    feeder = feed(late())
    with pytest.raises(TimeoutError):
        take(feeder, timeout=0.05)
    feeder.close(0)
    gate.set()
    assert within(20, lambda: feeder.close(10))
    with pytest.raises(StopIteration):
        take(feeder)


def test_who_waits_for_an_item_is_woken_when_another_closes(feed):
    gate = threading.Event()

    def stuck():
        gate.wait(20)
        yield 0

    feeder = feed(stuck())
    outcome = []

    def consumer():
        try:
            outcome.append(feeder.take(15))
        except BaseException as error:
            outcome.append(type(error))

    thread = threading.Thread(target=consumer, daemon=True)
    thread.start()
    while not any(other.name == NAME for other in threading.enumerate()):
        time.sleep(0.01)
    start = time.monotonic()
    assert not feeder.close(0.05)
    thread.join(10)
    assert time.monotonic() - start < 5
    assert outcome == [StopIteration]
    gate.set()


def test_taking_and_closing_at_once_never_hangs(feed):
    for _ in range(50):
        feeder = feed(Source().items(), ahead=1)
        taken: list[int] = []

        def consume(feeder=feeder, taken=taken):
            try:
                while True:
                    taken.append(feeder.take(10))
            except StopIteration:
                return

        thread = threading.Thread(target=consume, daemon=True)
        thread.start()
        time.sleep(0.001)
        assert within(20, partial(feeder.close, 10))
        thread.join(10)
        assert not thread.is_alive()
        assert taken == list(range(len(taken)))
