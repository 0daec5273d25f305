"""The prefetcher: order, how far it runs ahead, how errors come out, that nothing hangs on it."""

import threading
import time
from functools import partial
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.loading.loader import Prefetcher
from tests.needs import within

NAME = "prefetched"


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
def prefetch():
    """Makes prefetchers that are closed when the test ends; their threads must end with them."""
    made = []

    def make(items, ahead=2):
        made.append(Prefetcher(items, ahead, NAME))
        return made[-1]

    yield make
    for prefetcher in made:
        assert within(20, partial(prefetcher.close, 10))
    assert [thread for thread in threading.enumerate() if thread.name == NAME] == []


def take(prefetcher, timeout=10.0):
    return within(20, lambda: prefetcher.take(timeout))


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
@settings(max_examples=20)
def test_items_come_in_order_and_then_the_end(items, ahead):
    prefetcher = Prefetcher((item for item in items), ahead, NAME)
    assert [take(prefetcher) for _ in items] == items
    for _ in range(2):
        with pytest.raises(StopIteration):
            take(prefetcher)
    assert prefetcher.close(10)


@pytest.mark.parametrize("ahead", [1, 5])
def test_it_runs_ahead_so_far_and_no_farther(prefetch, ahead):
    source = Source()
    prefetcher = prefetch(source.items(), ahead)
    for taken in range(1, 8):
        assert take(prefetcher) == taken - 1
        # Those that are ready, and one in hand
        assert settled(lambda: source.made) == taken + ahead + 1


def test_nothing_starts_before_the_first_take(prefetch):
    source = Source()
    prefetcher = prefetch(source.items())
    time.sleep(0.05)
    assert source.made == 0
    assert NAME not in [thread.name for thread in threading.enumerate()]
    take(prefetcher)
    assert source.thread.name == NAME
    assert source.thread.daemon  # it must never keep a process


# Errors


class OddError(BaseException):
    pass


@pytest.mark.parametrize(("kind", "before"), [(ValueError, 0), (OddError, 7)])
def test_an_error_comes_out_after_the_items_before_it(prefetch, kind, before):
    error = kind("broken")
    prefetcher = prefetch(Source(before, error).items())
    assert [take(prefetcher) for _ in range(before)] == list(range(before))
    for _ in range(2):  # and stays
        with pytest.raises(kind) as raised:
            take(prefetcher)
        assert raised.value is error


def test_an_item_that_does_not_come_is_a_timeout_and_may_come_later(prefetch):
    gate = threading.Event()

    def late():
        gate.wait(20)
        yield "late"

    prefetcher = prefetch(late())
    for _ in range(2):
        with pytest.raises(TimeoutError):
            take(prefetcher, timeout=0.05)
    gate.set()
    assert take(prefetcher) == "late"


# Closing


def test_closing_is_quick_while_the_producer_waits_for_room(prefetch):
    source = Source()
    prefetcher = prefetch(source.items(), ahead=1)
    take(prefetcher)
    settled(lambda: source.made)
    start = time.monotonic()
    assert within(20, lambda: prefetcher.close(10))
    assert time.monotonic() - start < 5
    assert not source.thread.is_alive()
    assert source.closed_in is source.thread
    with pytest.raises(StopIteration):
        take(prefetcher)


def test_a_generator_that_ended_or_broke_is_closed_in_its_thread(prefetch):
    for error in (None, ValueError()):
        source = Source(1, error)
        prefetcher = prefetch(source.items())
        take(prefetcher)
        with pytest.raises((StopIteration, ValueError)):
            take(prefetcher)
        within(10, source.thread.join)
        assert source.closed_in is source.thread


def test_close_gives_up_on_a_thread_that_is_stuck_and_says_so(prefetch):
    gate = threading.Event()

    def stuck():
        yield 0
        gate.wait(20)

    prefetcher = prefetch(stuck())
    assert take(prefetcher) == 0
    start = time.monotonic()
    assert not within(20, lambda: prefetcher.close(0.2))
    assert 0.15 < time.monotonic() - start < 5
    with pytest.raises(StopIteration):
        take(prefetcher)
    gate.set()
    assert within(20, lambda: prefetcher.close(10))


def test_who_waits_for_an_item_is_woken_when_another_closes(prefetch):
    gate = threading.Event()

    def stuck():
        yield 0
        gate.wait(20)

    prefetcher = prefetch(stuck())
    assert take(prefetcher) == 0
    outcome = []

    def consumer():
        try:
            outcome.append(prefetcher.take(15))
        except BaseException as error:
            outcome.append(type(error))

    thread = threading.Thread(target=consumer, daemon=True)
    thread.start()
    start = time.monotonic()
    assert not prefetcher.close(0.05)
    thread.join(10)
    assert time.monotonic() - start < 5
    assert outcome == [StopIteration]
    gate.set()


def test_taking_and_closing_at_once_never_hangs(prefetch):
    for _ in range(20):
        prefetcher = prefetch(Source().items(), ahead=1)
        taken: list[int] = []

        def consume(prefetcher=prefetcher, taken=taken):
            try:
                while True:
                    taken.append(prefetcher.take(10))
            except StopIteration:
                return

        thread = threading.Thread(target=consume, daemon=True)
        thread.start()
        time.sleep(0.001)
        assert within(20, partial(prefetcher.close, 10))
        thread.join(10)
        assert not thread.is_alive()
        assert taken == list(range(len(taken)))
