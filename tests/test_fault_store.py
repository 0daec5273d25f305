"""The store that misbehaves does so where it should, and nowhere else."""

import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fault_store import Fault, FaultStore

DATA = bytes(range(256)) * 10


@pytest.fixture
def store(tmp_path: Path) -> Iterator[FaultStore]:
    (tmp_path / "set").mkdir()
    for name in ("a.tar", "b.tar"):
        (tmp_path / "set" / name).write_bytes(DATA)
    with FaultStore(tmp_path) as store:
        yield store


def read(store: FaultStore, name: str, **headers: str) -> bytes:
    request = urllib.request.Request(f"{store.url}/set/{name}", headers=headers)
    with urllib.request.urlopen(request, timeout=10) as answer:
        data: bytes = answer.read()
    return data


def test_a_fault_hits_the_requests_that_it_names(store: FaultStore):
    store.faults.append(Fault("*/a.tar", after=1, times=2, status=503))
    store.faults.append(Fault("*/b.tar", after=1, instead="set/missing"))

    for name in ("a.tar", "b.tar", "a.tar", "a.tar", "b.tar", "a.tar"):
        try:
            assert read(store, name, Range="bytes=2000-2009") == DATA[2000:2010]
        except urllib.error.HTTPError as error:
            error.close()

    answers = [(request.name[4:5], request.status) for request in store.requests]
    assert answers == [("a", 206), ("b", 206), ("a", 503), ("a", 503), ("b", 404), ("a", 206)]


def test_a_store_that_is_gone_refuses_and_comes_back_on_its_port(store: FaultStore):
    store.faults.append(Fault(gone=float("inf"), times=1))

    with pytest.raises(ConnectionError):  # closed without an answer
        read(store, "a.tar")
    with pytest.raises(urllib.error.URLError, match="refused"):
        read(store, "a.tar")
    store.come_back()
    assert read(store, "a.tar") == DATA

    assert [request.status for request in store.requests] == [0, 200]
