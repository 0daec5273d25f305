"""Sets in a store: their batches are the local set's, each object comes once, and no fault lies."""

import shutil
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest
import torch

from pipeline.errors import UserError
from pipeline.loading.loader import open_supply
from pipeline.loading.open import open_loader
from pipeline.loading.options import LoaderOptions
from pipeline.remote.access import Access
from pipeline.remote.files import RemoteFiles
from pipeline.remote.open import open_set
from pipeline.shards.manifest import MANIFEST, SAMPLES
from pipeline.shards.order import Schedule
from pipeline.verify import verify
from tests.fault_store import Fault, FaultStore
from tests.needs import within
from tests.running import assert_four_parts

COUNT, PER_SHARD, BATCH = 43, 6, 4


@pytest.fixture
def served(numbered_set, tmp_path):
    """The numbered set in a store that counts what is asked of it."""
    shutil.copytree(numbered_set(COUNT, PER_SHARD, "raw").folder, tmp_path / "root" / "set")
    with FaultStore(tmp_path / "root") as store:
        yield store


@pytest.fixture
def local(numbered_set):
    return numbered_set(COUNT, PER_SHARD, "raw")


@pytest.fixture
def access(tmp_path):
    return Access(cache=tmp_path / "cache")


def take(name, access, count, cache="off", state=None, **options):
    """So many batches, one tensor."""
    asked = LoaderOptions(
        BATCH, 16, cache=cache, dtype=torch.uint8, workers=1, access=access, **options
    )
    with closing(open_loader(str(name), asked)) as loader:
        if state is not None:
            loader.load_state_dict(state | {"identity": loader.identity})
        return within(30, lambda: torch.stack([next(loader).clone() for _ in range(count)]))


def tars(store):
    """The names of the tars that were asked for, in that order."""
    return [each.name for each in store.requests if each.name.endswith(".tar")]


def cached(access):
    """The whole files in a cache, by their digest."""
    return {path.name: path for path in (access.folder / "sha256").glob("*/*")}


@pytest.mark.parametrize("cache", ["off", "host"])
def test_batches_are_the_local_sets_and_each_object_comes_once(served, local, access, cache):
    count = 3 * (COUNT // BATCH)
    expected = take(local.name, access, count, cache)
    assert torch.equal(take(f"{served.url}/set", access, count, cache), expected)
    assert sorted(tars(served)) == sorted(f"set/{tar.name}" for tar in local.tars)


def test_a_second_start_fetches_nothing_and_needs_no_store(served, local, access, monkeypatch):
    monkeypatch.setattr("pipeline.remote.open.SOON", 0.1)
    expected = take(local.name, access, 12)
    url = f"{served.url}/set"
    take(url, access, 12)
    served.requests.clear()
    assert torch.equal(take(url, access, 12), expected)
    assert [(each.name, each.status) for each in served.requests] == [(f"set/{MANIFEST}", 304)]
    served.go_away()
    assert torch.equal(take(url, access, 12), expected)
    # On another machine, with this one's cache
    moved = shutil.copytree(access.folder, access.folder.with_name("moved"))
    state = {"epoch": 0, "batch": 3}
    assert torch.equal(take(url, Access(cache=moved), 9, state=state), expected[3:])


def test_tars_are_fetched_in_the_order_of_their_rows(served, local, access, monkeypatch):
    monkeypatch.setattr("pipeline.shards.order.WINDOW", PER_SHARD)
    monkeypatch.setattr("pipeline.remote.supply.PARALLEL", 1)
    take(f"{served.url}/set", access, 12)
    order = Schedule.of(local, BATCH, 0).order(0) // PER_SHARD
    wanted = list(dict.fromkeys(f"set/shard-{number:06d}.tar" for number in order))
    assert tars(served)[: len(wanted)] == wanted


@pytest.mark.parametrize("cache", ["off", "host"])
def test_a_set_that_does_not_fit_is_fetched_again_and_again(
    served, local, access, monkeypatch, cache
):
    monkeypatch.setattr("pipeline.shards.order.WINDOW", 2 * PER_SHARD)
    largest, count = max(tar.stat().st_size for tar in local.tars), 3 * (COUNT // BATCH)
    small = sum(path.stat().st_size for path in local.indexes)
    tight = Access(cache=access.folder, cache_size=5 * largest + small)
    expected = take(local.name, access, count, cache)
    assert torch.equal(take(f"{served.url}/set", tight, count, cache), expected)
    assert sum(path.stat().st_size for path in cached(access).values()) <= 5 * largest + small
    if cache == "off":
        assert len(tars(served)) > len(local.tars)


def test_a_cache_without_room_for_a_window_is_refused_with_what_it_takes(served, local, access):
    tight = Access(cache=access.folder, cache_size=sum(t.stat().st_size for t in local.tars) // 2)
    with pytest.raises(UserError) as error:
        take(f"{served.url}/set", tight, 1)
    assert_four_parts(error.value, "--shard-cache-size", "MB or more")


def test_a_cached_file_with_a_changed_bit_is_fetched_again(served, local, access):
    url = f"{served.url}/set"
    take(url, access, 10)
    damaged = cached(access)[local.manifest.shards[2].tar_sha256]
    data = bytearray(damaged.read_bytes())
    data[700] ^= 1
    damaged.write_bytes(data)
    served.requests.clear()
    assert torch.equal(take(url, access, 10), take(local.name, access, 10))
    assert tars(served) == ["set/shard-000002.tar"]


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (Fault("set/*3.tar", instead="set/shard-000001.tar"), "another object than was packed"),
        (Fault("set/*3.tar", status=404), "shard-000003.tar"),
        (Fault("set/*3.tar", status=403), "shard-000003.tar"),
        (Fault("set/*3.idx", instead="set/shard-000001.idx"), "another object than was packed"),
    ],
    ids=["another-tar", "no-tar", "forbidden", "another-index"],
)
def test_what_the_store_has_no_right_answer_for_is_an_error(served, access, fault, said):
    served.faults.append(fault)
    with pytest.raises(UserError) as error:
        take(f"{served.url}/set", access, 10)
    assert_four_parts(error.value, said)


@pytest.mark.parametrize(
    "fault",
    [
        Fault("set/*.tar", times=3, cut=1000),
        Fault("set/*", times=2, status=503),
        Fault("set/*.tar", times=2, status=429, headers={"Retry-After": "1"}),
        Fault("set/*.tar", after=2, times=1, gone=0.5),
        Fault("set/*1.tar", times=1, instead="set/shard-000002.tar"),
    ],
    ids=["cut", "503", "429", "gone", "another-for-once"],
)
def test_what_passes_is_waited_for(served, local, access, fault):
    served.faults.append(fault)
    assert torch.equal(take(f"{served.url}/set", access, 10), take(local.name, access, 10))
    assert fault.matched > 1


def test_a_slow_store_is_no_stuck_one(served, local, access, monkeypatch):
    monkeypatch.setattr("pipeline.remote.store.CHUNK_BYTES", 1)
    served.faults.append(Fault("set/*.tar", rate=100_000))  # a tar takes longer than the timeout
    started = take(f"{served.url}/set", access, 1, data_timeout=0.3)
    assert torch.equal(started, take(local.name, access, 1))


def test_an_outage_is_waited_for_once(served, access, monkeypatch):
    monkeypatch.setattr("pipeline.remote.files.LEAST_PATIENCE", 0.1)
    shards = open_set(f"{served.url}/set", access)
    assert isinstance(shards.files, RemoteFiles)
    shards.files._store.patience = 1
    served.go_away()
    began = time.monotonic()
    for name in ("shard-000000.tar", "shard-000001.tar"):
        with pytest.raises(UserError, match="the connection is refused"):
            shards.path(name)
    assert time.monotonic() - began < 1.9


def test_a_set_that_is_replaced_is_another_one(served, numbered_set, access):
    url, before = f"{served.url}/set", served.folder / "set"
    first = open_set(url, access).fingerprint
    shutil.rmtree(before)
    shutil.copytree(numbered_set(12, 5).folder, before)
    assert open_set(url, access).fingerprint != first
    (before / MANIFEST).write_text("{}")
    for _ in range(2):  # and a bad one is not remembered
        with pytest.raises(UserError, match=MANIFEST):
            open_set(url, access)


def test_all_of_a_remote_set_is_verified(served, access):
    url = f"{served.url}/set"
    assert verify(open_set(url, access)).faults == []
    table = served.folder / "set" / SAMPLES
    table.write_bytes(table.read_bytes().replace(b"00000001", b"00000099"))
    shutil.rmtree(access.folder)
    with pytest.raises(UserError, match="another object"):
        verify(open_set(url, access))


def test_two_runs_that_share_a_small_cache_both_come_to_their_end(
    served, local, access, monkeypatch
):
    monkeypatch.setattr("pipeline.shards.order.WINDOW", PER_SHARD)
    size = 6 * max(tar.stat().st_size for tar in local.tars)
    tight = Access(cache=access.folder, cache_size=size)
    with ThreadPoolExecutor() as runs:
        found = [runs.submit(take, f"{served.url}/set", tight, 20, seed=seed) for seed in (1, 2)]
    for seed, batches in zip((1, 2), (run.result() for run in found), strict=True):
        assert torch.equal(batches, take(local.name, access, 20, seed=seed))


def test_what_the_cache_knows_of_a_set_is_checked(served, access):
    url = f"{served.url}/set"
    first = open_set(url, access).fingerprint
    (known,) = (access.folder / "sets").iterdir()
    known.write_text(known.read_text().replace('\\"seed\\": 0', '\\"seed\\": 7'))
    assert open_set(url, access).fingerprint == first
    known.write_text(known.read_text()[:-9])
    assert open_set(url, access).fingerprint == first


def test_a_small_file_is_whole_whatever_was_there_before(served, local, access):
    wrong = "set/shard-000002.idx"
    served.faults.append(Fault("set/*1.idx", times=1, instead=wrong))
    shard = local.manifest.shards[0]
    left = access.folder / "sha256" / shard.index_sha256[:2] / f"{shard.index_sha256}.0.partial"
    left.parent.mkdir(parents=True)
    left.write_bytes(b"of a process that was killed")
    files = open_set(f"{served.url}/set", access).files
    for number in range(2):
        name = f"shard-{number:06d}.idx"
        assert files.path(name).read_bytes() == local.path(name).read_bytes()


def test_fetching_ahead_goes_on_after_an_outage(served, local, access, monkeypatch):
    monkeypatch.setattr("pipeline.remote.supply.PAUSE", 0.05)
    served.faults.append(Fault("set/*.tar", times=16, status=403))
    shards = open_set(f"{served.url}/set", access)
    supply = open_supply(shards, LoaderOptions(BATCH, access=access), _one_epoch)
    assert supply is not None
    for thread in supply._threads:
        within(20, thread.join)
    assert len(cached(access)) == 2 * len(local.tars)
    supply.close()


def _one_epoch(schedule):
    return iter([schedule.rows(0)])


def test_what_is_evicted_is_closed_too(served, local, access, monkeypatch):
    monkeypatch.setattr("pipeline.shards.order.WINDOW", PER_SHARD)
    largest = max(tar.stat().st_size for tar in local.tars)
    tight = Access(cache=access.folder, cache_size=4 * largest)
    asked = LoaderOptions(BATCH, 16, cache="off", workers=1, access=tight)
    with closing(open_loader(f"{served.url}/set", asked)) as loader:
        within(30, lambda: [next(loader) for _ in range(20)])
        links = [link for link in Path("/proc/self/fd").iterdir() if link.is_symlink()]
        opened = [str(link.readlink()) for link in links if link.is_symlink()]
        tars = [each for each in opened if str(access.folder) in each and ".partial" not in each]
        assert sum("(deleted)" in each for each in tars) <= 1


def test_a_url_of_two_stores_is_two_sets(served, numbered_set, tmp_path, access, monkeypatch):
    monkeypatch.setattr("pipeline.remote.open.SOON", 0.1)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a name")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "a secret")
    monkeypatch.setenv("AWS_ENDPOINT_URL", served.url)
    assert len(open_set("s3://set", access)) == COUNT
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    with pytest.raises(UserError, match="the connection is refused"):
        open_set("s3://set", access)
    for name, text in (("AWS_ENDPOINT_URL", "nonsense"), ("AWS_REGION", "x%y")):
        monkeypatch.setenv(name, text)
        with pytest.raises(UserError) as refused:
            open_set("s3://set", access)
        assert_four_parts(refused.value, name)
        monkeypatch.delenv(name)


def test_without_the_extra_it_is_told_what_to_install(served, access, monkeypatch):
    monkeypatch.setitem(sys.modules, "obstore", None)
    monkeypatch.setitem(sys.modules, "obstore.store", None)
    with pytest.raises(UserError, match=r"pip install 'dcgan-shards\[remote\]'"):
        open_set(f"{served.url}/set", access)


@pytest.mark.slow
def test_the_store_may_be_gone_at_each_request_of_an_epoch(served, local, access):
    steps = COUNT // BATCH
    expected = take(local.name, access, steps)
    take(f"{served.url}/set", access, steps)
    asked = len(served.requests)
    assert asked == 1 + 2 * len(local.tars)
    for number in range(asked):
        shutil.rmtree(access.folder)
        served.faults[:] = [Fault("set/*", after=number, times=1, gone=0.1)]
        assert torch.equal(take(f"{served.url}/set", access, steps), expected)
        assert served.faults[0].matched > number
