"""Heartbeats of ranks: who is silent is told, who is busy is not, and who never came is named."""

import socket
import threading
import time
from collections.abc import Iterator, Sequence
from datetime import timedelta
from functools import partial

import pytest
import torch
from torch._C._distributed_c10d import HashStore

from dcgan import distributed, heartbeats
from dcgan.distributed import LostRankError, Ranks
from dcgan.heartbeats import Heartbeats, announce
from pipeline.errors import UserError
from tests.running import assert_four_parts

COUNT = 3


class Ward:
    """Ranks that send heartbeats through one store, all in this process, and what they noticed."""

    def __init__(self) -> None:
        self.store = HashStore()
        self.lost: dict[int, list[int]] = {}
        for rank in range(COUNT):
            announce(self.store, rank)
        self.beats = [
            Heartbeats(self.store, rank, COUNT, partial(self.note, rank)) for rank in range(COUNT)
        ]

    def note(self, rank: int, silent: Sequence[int]) -> None:
        self.lost[rank] = [*silent]

    def wait(self, count: int) -> None:
        end = time.monotonic() + 10
        while len(self.lost) < count and time.monotonic() < end:
            time.sleep(0.01)


@pytest.fixture
def ward(monkeypatch: pytest.MonkeyPatch) -> Iterator[Ward]:
    for name, seconds in {"BEAT": 0.05, "LOOK": 0.05, "LIMIT": 0.6, "MISSED": 0.3}.items():
        monkeypatch.setattr(heartbeats, name, seconds)
    ward = Ward()
    yield ward
    for beats in ward.beats:
        beats.close()


def test_a_rank_that_falls_silent_is_told_by_the_others(ward):
    ward.beats[1]._over.set()  # a stopped process neither beats nor looks
    ward.wait(2)
    assert ward.lost == {0: [1], 2: [1]}


def test_who_loses_a_connection_meanwhile_names_the_silent_one(ward):
    """Another rank noticed a moment earlier, and ended."""
    ward.beats[1]._over.set()
    ward.wait(1)
    ranks = Ranks(0, COUNT)
    ranks._heartbeats, ranks._hosts = ward.beats[0], ["a", "b", "c"]
    with pytest.raises(LostRankError) as caught, ranks._reaching_all():
        raise RuntimeError("Connection closed by peer")
    assert_four_parts(caught.value, "rank 1 of 3, on host b", "no heartbeat", "last checkpoint")
    assert not ranks.complete


def test_a_busy_rank_is_not(ward):
    end = time.monotonic() + 1
    while time.monotonic() < end:
        torch.linalg.eigvals(torch.rand(300, 300))
    assert ward.lost == {}


def test_without_the_store_nobody_else_is_blamed(ward, monkeypatch):
    forever = threading.Event()
    monkeypatch.setattr(HashStore, "multi_get", lambda *_: forever.wait(5))
    ward.wait(COUNT)
    forever.set()
    assert ward.lost == {rank: [rank] for rank in range(COUNT)}


def test_a_rank_that_never_comes_is_named(monkeypatch):
    monkeypatch.setattr(distributed, "JOINING", timedelta(seconds=0.1))
    store = HashStore()
    Ranks(1, COUNT)._tell_where(store)
    with pytest.raises(UserError) as caught:
        Ranks(0, COUNT)._meet(store)
    assert_four_parts(caught.value, "rank 2 of 3", "not there after", "torchrun")


@pytest.mark.parametrize("address", ["127.0.1.1", None])
def test_an_address_that_other_hosts_cannot_reach_is_refused(monkeypatch, address):
    def look_up(name):
        if address is None:
            raise OSError("Name or service not known")
        return address

    monkeypatch.delenv("GLOO_SOCKET_IFNAME", raising=False)
    monkeypatch.setattr(socket, "gethostbyname", look_up)
    ranks = Ranks(0, 2)
    ranks._hosts = ["a", "a"]
    ranks._require_address()  # on one host any will do
    ranks._hosts = ["a", "b"]
    with pytest.raises(UserError) as caught:
        ranks._require_address()
    assert_four_parts(caught.value, "GLOO_SOCKET_IFNAME", address or "no address", "export")
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "eth0")
    ranks._require_address()
