"""The resident cache: the stream's batches from memory, from any position; and where it goes."""

import shutil
import threading
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import pipeline.loading.open
from pipeline import machine
from pipeline.errors import UserError
from pipeline.loading.batches import Batches
from pipeline.loading.cache import ResidentCache
from pipeline.loading.decoders import ThreadDecoder
from pipeline.loading.loader import Loader
from pipeline.loading.open import place_cache
from pipeline.loading.options import LoaderOptions
from pipeline.loading.reader import Reader
from pipeline.machine import free_memory
from pipeline.shards.manifest import Recipe
from pipeline.shards.shard_set import ShardSet
from tests.needs import take, within
from tests.pictures import numbered_pictures, pack_pictures
from tests.running import assert_four_parts

CPU = torch.device("cpu")
SIZE = 32


@pytest.fixture(scope="module")
def raw_set(tmp_path_factory):
    """So that many loaders cost little: 23 pictures in shards of 9, 9 and 5."""
    recipe = Recipe(store="raw", crop="centre", size=SIZE, filter="bilinear")
    pictures = numbered_pictures(23)
    return pack_pictures(tmp_path_factory.mktemp("raw"), pictures, recipe=recipe, per_shard=9)


@pytest.fixture
def opened():
    """What is put in here is closed when the test ends."""
    batches: list[Batches] = []
    yield batches
    for each in batches:
        within(20, each.close)


def stream_of(shards, batch_size=4, *, decoder=None, dtype=torch.uint8, **options):
    return Loader(shards, LoaderOptions(batch_size, SIZE, dtype=dtype, **options), decoder)


def cache_of(shards, batch_size=4, *, decoder=None, dtype=torch.uint8, progress=None, **options):
    told = {} if progress is None else {"progress": progress}
    asked = LoaderOptions(batch_size, SIZE, dtype=dtype, **options)
    return ResidentCache(shards, asked, CPU, decoder=decoder, **told)


def assert_same(batches, others):
    assert len(batches) == len(others) > 0
    for number, (batch, other) in enumerate(zip(batches, others, strict=True)):
        assert torch.equal(batch, other), number


# The same batches

SETS = st.sampled_from([(24, 7), (23, 9), (10, 10), (7, 1)])


@given(SETS, st.integers(1, 10), st.integers(1, 3), st.integers(0, 99))
@settings(max_examples=10, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_four_epochs_are_those_of_the_stream(numbered_set, images, batch_size, ranks, seed):
    shards = numbered_set(*images)
    batch_size = min(batch_size, images[0] // ranks)
    for rank in range(ranks):
        decoder = ThreadDecoder(shards, LoaderOptions(batch_size, SIZE, workers=1))  # keeps nothing
        options = {"seed": seed, "rank": rank, "num_ranks": ranks, "decoder": decoder}
        stream = stream_of(shards, batch_size, **options)
        cache = cache_of(shards, batch_size, **options)
        count = 4 * stream.steps_per_epoch
        assert_same(take(cache, count), take(stream, count))
        assert (cache.epoch, cache.batch) == (stream.epoch, stream.batch) == (4, 0)
        stream.close()
        cache.close()


@pytest.mark.parametrize(("dtype", "channels"), [(torch.uint8, 1), (torch.float32, 3)])
def test_every_form_of_a_batch_is_the_streams(opened, raw_set, dtype, channels):
    opened += [stream_of(raw_set, dtype=dtype, channels=channels)]
    opened += [cache_of(raw_set, dtype=dtype, channels=channels)]
    stream, cache = (take(each, 12) for each in opened)
    assert_same(cache, stream)
    assert [batch.dtype for batch in cache] == [dtype] * 12
    assert [batch.stride() for batch in cache] == [batch.stride() for batch in stream]


def test_static_buffers_are_filled_with_the_same_batches(opened, raw_set):
    filled, given_out = opened[:] = cache_of(raw_set), cache_of(raw_set)
    buffer = torch.zeros(4, SIZE, SIZE, 3, dtype=torch.uint8)
    for batch in take(given_out, 17):
        within(20, lambda: filled.fill(buffer))
        assert torch.equal(buffer, batch)


def test_batches_once_taken_are_not_overwritten(opened, raw_set):
    opened += [cache_of(raw_set), stream_of(raw_set)]
    batches = take(opened[0], 15)
    copies = [batch.clone() for batch in batches]
    for batch in take(opened[0], 15):
        batch.zero_()  # nor does the cache notice what its consumer does to them
    assert_same(batches, copies)
    assert_same(take(opened[0], 5), take(opened[1], 35)[30:])


# Without the disk


def loader_threads():
    names = [thread.name for thread in threading.enumerate()]
    return [name for name in names if name.startswith(("loader", "decode"))]


def test_after_the_first_epoch_the_set_is_not_touched(opened, raw_set, tmp_path):
    expected = take(stream := stream_of(raw_set), 40)
    stream.close()
    copy = ShardSet.open(Path(shutil.copytree(raw_set.folder, tmp_path / "set")))
    opened.append(cache_of(copy))
    first = take(opened[0], 1)
    assert loader_threads()  # there is more to read than it may run ahead
    first += take(opened[0], 4)
    (second,) = take(opened[0], 1)  # reads the three that the first epoch left out
    assert loader_threads() == []
    held = {Path(file.path) for file in psutil.Process().open_files()}
    assert not held & set(copy.tars)
    shutil.rmtree(copy.folder)
    assert_same([*first, second, *take(opened[0], 34)], expected)


def test_closing_lets_go_of_threads_and_memory(raw_set):
    for batches in (0, 2, 7):
        before = set(threading.enumerate())
        cache = cache_of(raw_set)
        take(cache, batches)
        within(20, cache.close)
        within(20, cache.close)
        assert set(threading.enumerate()) <= before
        assert cache._images.numel() == 0


# Resumed


@pytest.mark.parametrize("position", [0, 3, 5, 9, 10], ids=lambda p: f"epoch{p // 5}-batch{p % 5}")
def test_from_every_position_it_goes_on_alike(opened, raw_set, position):
    reports = []
    opened += [cache_of(raw_set, seed=4)]
    before = take(opened[0], position)
    state = opened[0].state_dict()
    assert (state["epoch"], state["batch"]) == divmod(position, 5)
    opened += [cache_of(raw_set, seed=4, progress=lambda *parts: reports.append(parts))]
    opened[1].load_state_dict(state)
    after = take(opened[1], 12)
    opened += [stream_of(raw_set, seed=4)]
    assert_same(before + after, take(opened[2], position + 12))
    assert reports[-1] == (23, 23)  # whatever the position, it gets to hold all
    assert reports == sorted(set(reports))
    if position >= 5:
        assert len(reports) == 6  # all of the set, batch by batch


def test_the_cache_reads_a_set_once_and_tells_how_far_it_is(raw_set, monkeypatch):
    read, told, reading = [], [], Reader.read

    def noting(self, rows):
        read.extend(rows.tolist())
        return reading(self, rows)

    monkeypatch.setattr(Reader, "read", noting)
    cache = cache_of(raw_set, progress=lambda *done: told.append(done))
    cache.load_state_dict({"epoch": 3, "batch": 2, "identity": cache.identity})
    take(cache, 30)
    within(10, cache.close)
    assert sorted(read) == list(range(23))
    assert told == [(4, 23), (8, 23), (12, 23), (16, 23), (20, 23), (23, 23)]


def test_a_rank_reads_only_its_share_again(opened, raw_set):
    reports = []
    options = {"rank": 1, "num_ranks": 3}
    opened += [cache_of(raw_set, 2, **options), stream_of(raw_set, 2, **options)]
    opened[0]._progress = lambda done, total: reports.append((done, total))
    for each in opened:
        each.load_state_dict(each.state_dict() | {"epoch": 2, "batch": 1})
    assert_same(take(opened[0], 7), take(opened[1], 7))
    assert reports == [(2, 8), (4, 8), (6, 8), (8, 8)]


# Where it goes

GB = 10**9
CUDA = torch.device("cuda", 0)  # only named


@pytest.fixture
def free(monkeypatch):
    """Sets the free memory of the host and of a device."""
    return lambda host, device=0: monkeypatch.setattr(
        pipeline.loading.open, "free_memory", {CPU: host, CUDA: device}.__getitem__
    )


def a_byte(cache, device):
    """Options of images that are a byte each, decoded."""
    return LoaderOptions(1, image_size=1, channels=1, device=device, cache=cache)


KEPT, NONE = "cached from the second epoch on: 1,000.0 MB decoded", "no cache: 1,000.0 MB decoded"

PLACES = [
    # choice, device of the batches, GB free on the host and on the device; where, and why
    ("auto", CUDA, 9, 2, CUDA, f"{KEPT}, 2,000 MB free on cuda:0"),
    ("auto", CUDA, 9, 1, CPU, f"{KEPT}, 9,000 MB free in host memory"),
    ("auto", CUDA, 1, 1, None, f"{NONE}, 1,000 MB free on cuda:0, 1,000 MB free in host memory;"),
    ("auto", CPU, 2, 0, CPU, f"{KEPT}, 2,000 MB free in host memory"),
    ("host", CUDA, 1, 9, CPU, f"{KEPT}, 1,000 MB free in host memory"),
    ("device", CUDA, 0, 1, CUDA, f"{KEPT}, 1,000 MB free on cuda:0"),
    ("device", CPU, 1, 0, CPU, f"{KEPT}, 1,000 MB free in host memory"),
]


@pytest.mark.parametrize(("cache", "device", "host_gb", "device_gb", "where", "why"), PLACES)
def test_a_cache_goes_where_it_fits(free, cache, device, host_gb, device_gb, where, why):
    free(host_gb * GB, device_gb * GB)
    limit = " at most 50% is taken" if where is None else ""
    assert place_cache(GB, a_byte(cache, device)) == (where, why + limit)


REFUSED = [
    ("host", CPU, "1,000 MB free in host memory"),
    ("device", CUDA, "1,500 MB free on cuda:0"),
]


@pytest.mark.parametrize(("cache", "device", "found"), REFUSED)
def test_a_cache_that_was_asked_for_and_does_not_fit_is_refused(free, cache, device, found):
    free(GB, 3 * GB // 2)
    with pytest.raises(UserError) as error:
        place_cache(2 * GB, a_byte(cache, device))
    assert_four_parts(error.value, "use --cache auto or off")
    assert error.value.where == f"--cache {cache}"
    assert error.value.found == f"2,000.0 MB decoded, {found}"


# How much is free


@pytest.fixture
def container(tmp_path, monkeypatch):
    """Writes the files of a container; the machine has 1,000,000 bytes available."""
    monkeypatch.setattr(machine, "CGROUPS", tmp_path)
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=1_000_000))

    def write(limit="800000", used="300000", stat="anon 7\ninactive_file 1000\nactive_file 5\n"):
        for name, text in (("max", limit), ("current", used), ("stat", stat)):
            if text is not None:
                (tmp_path / f"memory.{name}").write_text(text)
        return free_memory(CPU)

    return write


CONTAINERS = [
    # files that are not the usual ones, free memory
    ({}, 501_000),
    ({"limit": "max\n"}, 1_000_000),
    ({"limit": "99000000"}, 1_000_000),
    ({"limit": None}, 1_000_000),
    ({"stat": "anon 7\n"}, 1_000_000),
    ({"stat": "inactive_file \n"}, 1_000_000),
    ({"used": "900000"}, 0),
]


@pytest.mark.parametrize(("files", "expected"), CONTAINERS, ids=str)
def test_a_containers_limit_counts_where_it_can_be_read(container, files, expected):
    assert container(**files) == expected
