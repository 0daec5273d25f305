"""The clock, the rounds and the statistics by which loaders are compared."""

import subprocess
import sys
import threading
import time
from itertools import count

import pytest
import torch

from dcgan.profiling import measuring
from dcgan.profiling.measuring import (
    Contender,
    CpuClock,
    Round,
    Spread,
    figures,
    measure,
    take_round,
    warm_up,
)
from pipeline.loading.loader import Prefetcher
from tests.needs import within

CPU = torch.device("cpu")


def burn(seconds):
    """Use this thread's CPU for so long."""
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        pass


def idle(name="idle", ahead=0, batches=None):
    return Contender(name, batches or count(), 4, ahead, lambda: None)


def test_figures_are_compared_within_a_round():
    taken = {
        "a": [Round(8, rate, 1) for rate in (10, 1, 30)],
        "b": [Round(8, rate, 1) for rate in (5, 0.5, 10)],
    }
    rate = figures(taken, "img_per_s")
    # The second round was slow for both: a quotient of medians would not be the median quotient
    assert Spread.of(rate["a"] / rate["b"]) == Spread(2, 2, 3)
    assert Spread.of([5.0, 1.0, 2.0]) == Spread(2.0, 1.0, 5.0)


def test_the_clock_counts_all_threads():
    clock = CpuClock()
    before = clock.read()
    threads = [threading.Thread(target=burn, args=[0.1]) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert clock.read() - before >= 0.29


def test_the_clock_counts_children():
    program = "import sys; sys.stdin.read(1); sum(range(8_000_000)); print(flush=True); input()"
    child = subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with child:
        assert child.stdin
        assert child.stdout
        clock, own = CpuClock(), time.process_time()
        before = clock.read()
        child.stdin.write(b"x")
        child.stdin.flush()
        child.stdout.readline()
        used, own = clock.read() - before, time.process_time() - own
        child.stdin.close()
        child.kill()
    assert used - own >= 0.05


def test_quiet_comes_after_the_last_computation():
    thread = threading.Thread(target=burn, args=[0.4])
    clock = CpuClock()
    thread.start()
    within(30, clock.wait_until_quiet)
    assert not thread.is_alive()


def test_what_never_rests_is_told():
    stop = threading.Event()

    def restless():
        while not stop.is_set():
            burn(0.01)

    thread = threading.Thread(target=restless)
    thread.start()
    try:
        with pytest.raises(TimeoutError, match="still compute"):
            CpuClock().wait_until_quiet(timeout=0.5)
    finally:
        stop.set()
        thread.join()


def test_a_round_counts_the_work_of_all_that_was_taken_and_of_nothing_else():
    """A loader that works ahead is charged what its batches cost, wherever its queue stands."""
    cost, ahead = 0.005, 4

    def made():
        for number in count():
            burn(cost)
            yield number

    prefetcher = Prefetcher(made(), ahead - 1, "test")
    contender = idle(ahead=ahead, batches=iter(lambda: prefetcher.take(10), None))
    clock = CpuClock()
    try:
        next(contender.batches)
        clock.wait_until_quiet()
        before = next(contender.batches)
        clock.wait_until_quiet()
        found = take_round(contender, 32, clock, CPU)
        after = next(contender.batches)
    finally:
        prefetcher.close(5)
    assert after - before - 1 == 32 + ahead  # the read-ahead is taken before the timed ones
    assert found.batches == 32
    # The clock itself, and handing over, come on top: never can it be less
    assert cost / 4 <= found.cpu_us_per_image / 1e6 <= 2 * cost / 4
    assert found.img_per_s <= 1.1 * 4 / cost


def test_a_rounds_length(monkeypatch):
    taken = []

    def batches():
        for number in count():
            taken.append(number)
            yield number

    assert warm_up(idle(ahead=3, batches=batches()), 0, CPU) == 3 * measuring.AHEAD_FACTOR
    assert warm_up(idle(batches=batches()), 0, CPU) == measuring.LEAST_BATCHES

    def slow():
        while True:
            time.sleep(0.002)
            yield 0

    length = warm_up(idle(batches=slow()), 0.2, CPU)
    assert measuring.LEAST_BATCHES < length <= 100  # 0.2 s are at most 100 of 2 ms


def test_contenders_take_turns():
    order = []

    def batches(name):
        while True:
            order.append(name)
            yield name

    contenders = [idle(name, batches=batches(name)) for name in "abc"]
    taken = measure(contenders, 2, 0, CPU)
    assert {name: len(rounds) for name, rounds in taken.items()} == {"a": 2, "b": 2, "c": 2}
    turns = [name for before, name in zip(["", *order], order, strict=False) if name != before]
    assert "".join(turns) == "abc" * 3  # once to warm up, and two rounds
