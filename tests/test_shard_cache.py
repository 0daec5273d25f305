"""The shard cache: each file once, whole and checked; what somebody needs is never deleted."""

import errno
import fcntl
import os
import threading
import time

import pytest

from pipeline.errors import UserError
from pipeline.files import PARTIAL, digest
from pipeline.remote.cache import Blob, FullError, ShardCache
from tests.needs import within

DATA = [bytes([number]) * 1000 for number in range(6)]
BLOBS = [Blob(digest(data), len(data)) for data in DATA]


class Fetching:
    """Fetches one of the blobs, and counts how often."""

    def __init__(self, number, trouble=None):
        self.number, self.trouble, self.times = number, trouble, 0

    def __call__(self, file):
        self.times += 1
        file.truncate(0)
        file.write(DATA[self.number][:500])
        if self.trouble is not None and self.times == 1:
            self.trouble()
        file.write(DATA[self.number][500:])


def full():
    raise OSError(errno.ENOSPC, "No space left on device")


def broken():
    raise UserError("an object", "gone", "there", "look")


@pytest.fixture
def cache(tmp_path):
    return ShardCache(tmp_path / "cache")


def get(cache, number, trouble=None):
    """Whether a blob had to be fetched."""
    fetch = Fetching(number, trouble)
    assert cache.get(BLOBS[number], fetch).read_bytes() == DATA[number]
    return bool(fetch.times)


def held(cache):
    """The numbers of the blobs that lie in a cache, whole."""
    names = {path.name for path in (cache.folder / "sha256").rglob("*")}
    return [number for number, blob in enumerate(BLOBS) if blob.sha256 in names]


def test_a_file_is_fetched_once_for_all_processes(cache):
    assert get(cache, 0)
    assert not get(cache, 0)
    assert not get(ShardCache(cache.folder), 0)


def test_a_file_with_a_changed_bit_is_fetched_again_before_it_is_used(cache):
    get(cache, 0)
    path = cache.folder / "sha256" / BLOBS[0].sha256[:2] / BLOBS[0].sha256
    path.write_bytes(DATA[0][:-1] + b"\1")
    assert get(cache, 0)
    path.write_bytes(DATA[0][:-1] + b"\1")
    assert get(ShardCache(cache.folder), 0)


def test_of_two_who_want_a_file_one_fetches_it(cache):
    fetch = Fetching(0, lambda: time.sleep(0.2))
    seen: list[bool] = []
    caches = [cache, ShardCache(cache.folder)]
    threads = [
        threading.Thread(target=lambda one=one: one.get(BLOBS[0], fetch, seen.append))
        for one in caches
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        within(10, thread.join)
    assert fetch.times == 1
    assert seen  # the one that waits hears of the other


def test_who_is_to_wait_begins_when_nobody_else_does(cache):
    fetch, began = Fetching(0), time.monotonic()
    cache.get(BLOBS[0], fetch, patience=0.2)
    assert fetch.times == 1
    assert time.monotonic() - began >= 0.2


def test_what_a_failed_or_killed_fetch_leaves_is_not_used(cache):
    with pytest.raises(UserError, match="gone"):
        get(cache, 0, broken)
    assert held(cache) == []
    folder = cache.folder / "sha256" / BLOBS[0].sha256[:2]
    (folder / f"{BLOBS[0].sha256}.1000{PARTIAL}").write_bytes(b"half")  # of a process that is gone
    assert get(cache, 0)


def test_what_was_used_longest_ago_goes_first_and_what_is_leased_stays(cache):
    cache.limit = 3000
    for number in range(3):
        get(cache, number)
        os.utime(next((cache.folder / "sha256").rglob(BLOBS[number].sha256)), (number, number))
    lease = ShardCache(cache.folder).lease()  # another process's
    lease.add([BLOBS[0].sha256])
    get(cache, 3)
    assert held(cache) == [0, 2, 3]
    get(cache, 4)
    assert held(cache) == [0, 3, 4]
    lease.drop([BLOBS[0].sha256])
    os.utime(next((cache.folder / "sha256").rglob(BLOBS[0].sha256)), (0, 0))
    get(cache, 5)
    assert held(cache) == [3, 4, 5]


def test_the_lease_of_a_process_that_is_gone_holds_nothing(cache):
    cache.limit = 1000
    get(cache, 0)
    (cache.folder / "leases" / "1-deadbeef").write_text(BLOBS[0].sha256)
    get(cache, 1)
    assert held(cache) == [1]
    assert not any((cache.folder / "leases").iterdir())


def test_no_room_beside_what_is_leased_is_an_error_and_deletes_none_of_it(cache):
    cache.limit = 1500
    lease = cache.lease()
    lease.add([BLOBS[0].sha256, BLOBS[1].sha256])
    get(cache, 0)
    with pytest.raises(UserError, match="--shard-cache-size"):
        get(cache, 1)
    assert held(cache) == [0]
    assert cache.room() == 500


def test_only_what_was_fetched_is_deleted(cache):
    get(cache, 0)
    folder = cache.folder / "sha256" / BLOBS[0].sha256[:2]
    others = [cache.folder / "shard-000000.tar", folder / "mine.tar", folder / f"{'0' * 64}.txt"]
    others += [cache.folder / "leases" / "contract.pdf"]
    for other in others:
        other.write_bytes(bytes(5000))
    cache.limit = 1000
    get(cache, 1)
    assert held(cache) == [1]
    assert all(other.stat().st_size == 5000 for other in others)


def test_a_full_disk_makes_room_or_is_an_error(cache):
    get(cache, 0)
    assert get(cache, 1, full)
    assert held(cache) == [1]
    lease = cache.lease()
    lease.add([BLOBS[1].sha256])
    with pytest.raises(UserError, match=r"--shard-cache .*\n  found .*No space left"):
        get(cache, 2, full)
    assert held(cache) == [1]


def test_a_folder_that_cannot_be_used_is_an_error(tmp_path):
    (tmp_path / "file").write_text("somebody's")
    with pytest.raises(UserError, match="--shard-cache"):
        ShardCache(tmp_path / "file")
    assert (tmp_path / "file").read_text() == "somebody's"


def test_the_default_takes_half_of_what_is_free_beside_what_it_has(tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("", (), {"free": 8000})())
    cache = ShardCache(tmp_path)
    assert cache.limit == 4000
    get(cache, 0)
    get(cache, 1)
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("", (), {"free": 6000})())
    assert ShardCache(tmp_path).limit == 4000


def test_a_process_that_is_stopped_is_not_waited_for(cache, monkeypatch):
    monkeypatch.setattr("pipeline.remote.cache.STILL", 0.2)
    folder = cache.folder / "sha256" / BLOBS[0].sha256[:2]
    folder.mkdir()
    with (folder / f"{BLOBS[0].sha256}.1000{PARTIAL}").open("wb") as held_by_another:
        fcntl.flock(held_by_another, fcntl.LOCK_EX)
        assert get(cache, 0)
    assert held(cache) == [0]
    with (cache.folder / "lock").open("ab") as held_by_another:
        fcntl.flock(held_by_another, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="locked by another process"):
            cache.lease()


def test_room_that_others_fetch_into_is_waited_for_by_whoever_needs_it_now(cache):
    cache.limit = 2500
    fetches = threading.Event()
    ahead = threading.Thread(
        target=lambda: cache.get(BLOBS[0], Fetching(0, fetches.wait), urgent=False)
    )
    also = threading.Thread(
        target=lambda: cache.get(BLOBS[1], Fetching(1, fetches.wait), urgent=False)
    )
    for thread in (ahead, also):
        thread.start()
        time.sleep(0.1)
    with pytest.raises(FullError):
        cache.get(BLOBS[2], Fetching(2), urgent=False)
    threading.Timer(0.2, fetches.set).start()
    assert within(10, lambda: get(cache, 2))


def test_no_link_is_written_through(cache, tmp_path):
    (tmp_path / "theirs").write_text("theirs")
    folder = cache.folder / "sha256" / BLOBS[0].sha256[:2]
    folder.mkdir()
    (folder / f"{BLOBS[0].sha256}.1000{PARTIAL}").symlink_to(tmp_path / "theirs")
    with pytest.raises(UserError, match="--shard-cache"):
        get(cache, 0)
    assert (tmp_path / "theirs").read_text() == "theirs"
