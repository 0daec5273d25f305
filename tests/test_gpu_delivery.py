"""How batches reach a GPU: into tensors of their own, into static buffers, and out of the cache."""

import numpy as np
import pytest
import torch

from pipeline.images.pixels import to_signed
from pipeline.loading.batches import Batches
from pipeline.loading.cache import ResidentCache
from pipeline.loading.decoders import ThreadDecoder
from pipeline.loading.loader import Loader
from pipeline.loading.options import LoaderOptions
from pipeline.shards.labels import LabelTable
from tests.needs import require, take, within
from tests.pictures import numbered_pictures, numbers, pack_pictures

pytestmark = pytest.mark.gpu

STEPS = 5
"""An epoch of the set below."""


@pytest.fixture(params=["dali", "threads", "raw"])
def decoder(request):
    if request.param == "dali":
        require("dali")
    return request.param


@pytest.fixture
def open_on(decoder, numbered_set):
    """A loader of 23 pictures in batches of 4, on the GPU; or a cache, in `where`."""
    opened: list[Batches] = []
    shards = numbered_set(23, 9, "raw" if decoder == "raw" else "original")

    def open_(where=None, dtype=torch.uint8, device="cuda", image_size=32):
        options = LoaderOptions(
            4,
            image_size,
            device=torch.device(device),
            seed=3,
            dtype=dtype,
            workers=2,
        )
        made = ThreadDecoder(shards, options) if decoder == "threads" else None
        if where:
            opened.append(ResidentCache(shards, options, torch.device(where), decoder=made))
        else:
            opened.append(Loader(shards, options, made))
        return opened[-1]

    yield open_
    for batches in opened:
        within(20, batches.close)


@pytest.mark.parametrize("device", ["cuda", "cuda:0"])
@pytest.mark.parametrize("image_size", [32, 64])
def test_pixels_are_born_on_the_device(open_on, device, image_size):
    batches = take(open_on(device=device, image_size=image_size), 2 * STEPS)
    for batch in batches:
        assert (batch.shape, batch.dtype) == ((4, image_size, image_size, 3), torch.uint8)
        assert batch.device == torch.device("cuda:0")
        assert batch.is_contiguous()
    assert len({batch.data_ptr() for batch in batches}) == len(batches)


def test_a_batch_once_taken_is_not_overwritten(open_on):
    """Copied at once on the stream, and compared only after DALI has reused all its buffers."""
    loader = open_on()
    batches, copies = [], []
    for _ in range(20):
        (batch,) = take(loader, 1)
        batches.append(batch)
        copies.append(batch.clone())
    torch.cuda.synchronize()
    assert all(torch.equal(one, other) for one, other in zip(batches, copies, strict=True))


def test_floats_are_the_normalised_pixels(open_on):
    pairs = zip(take(open_on(), 12), take(open_on(dtype=torch.float32), 12), strict=True)
    for pixels, floats in pairs:
        assert floats.dtype == torch.float32
        assert floats.shape == (4, 3, 32, 32)
        assert floats.is_contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(floats, to_signed(pixels), rtol=0, atol=1e-6)


@pytest.mark.parametrize("where", [None, "cuda", "cpu"], ids=["streamed", "on-device", "in-host"])
@pytest.mark.parametrize("device", ["cuda", "cuda:0"])
def test_a_static_buffer_is_filled_in_the_streams_order(open_on, where, device):
    """What is enqueued after `fill` sees the new batch, what was before it the old one."""
    expected = take(open_on(), 3 * STEPS)
    loader = open_on(where, device=device)
    buffer = torch.zeros(4, 32, 32, 3, dtype=torch.uint8, device="cuda")
    address, seen = buffer.data_ptr(), []

    def step() -> None:
        torch.cuda._sleep(10_000_000)  # the device lags behind, as in training
        loader.fill(buffer)
        seen.append(buffer.clone())

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())

    def all_steps() -> None:
        with torch.cuda.stream(stream):
            for _ in expected:
                step()

    within(60, all_steps)
    torch.cuda.synchronize()
    assert buffer.data_ptr() == address
    assert len(seen) == 3 * STEPS
    assert all(torch.equal(one, other) for one, other in zip(seen, expected, strict=True))


@pytest.mark.parametrize("where", ["cuda", "cpu"])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32], ids=str)
@pytest.mark.parametrize("device", ["cuda", "cuda:0"])
def test_the_cache_gives_what_the_loader_gives(open_on, where, dtype, device):
    streamed, cached = open_on(device=device), open_on(where, dtype, device)
    for one, other in zip(take(streamed, 4 * STEPS), take(cached, 4 * STEPS), strict=True):
        assert other.device == torch.device("cuda:0")
        assert torch.equal(one if dtype == torch.uint8 else to_signed(one), other)


@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype")
def test_filling_from_the_cache_allocates_nothing_and_waits_for_nothing(open_on):
    loader = open_on("cuda")
    buffer = torch.zeros(4, 32, 32, 3, dtype=torch.uint8, device="cuda")

    def fill(times: int) -> None:
        for _ in range(times):
            loader.fill(buffer)

    within(60, lambda: fill(2 * STEPS + 1))  # into the third epoch, whose order is there now
    torch.cuda.synchronize()
    before = torch.cuda.memory_stats()["allocation.all.allocated"]

    def fill_unsynchronised() -> None:
        torch.cuda.set_sync_debug_mode("error")
        try:
            fill(STEPS - 2)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    within(60, fill_unsynchronised)
    assert torch.cuda.memory_stats()["allocation.all.allocated"] == before


@pytest.mark.parametrize("where", [None, "cuda", "cpu"], ids=["streamed", "on-device", "in-host"])
def test_the_host_does_not_wait_for_the_device(open_on, where):
    """`fill` returns while the work before it on the stream still runs."""
    loader = open_on(where)
    buffer = torch.zeros(4, 32, 32, 3, dtype=torch.uint8, device="cuda")
    within(60, lambda: [loader.fill(buffer) for _ in range(STEPS + 2)])
    torch.cuda.synchronize()

    def overtake() -> bool:
        torch.cuda._sleep(2_000_000_000)  # a second or so
        loader.fill(buffer)
        after = torch.cuda.Event()
        after.record()
        return bool(after.query())

    assert not within(60, overtake)
    torch.cuda.synchronize()


@pytest.mark.parametrize("where", [None, "cuda", "cpu"], ids=["streamed", "on-device", "in-host"])
def test_labels_arrive_with_their_images(where, tmp_path):
    table = LabelTable("classes", ("a", "b", "c"), (np.arange(12) % 3).astype(np.int32))
    shards = pack_pictures(tmp_path, numbered_pictures(12), table)
    options = LoaderOptions(
        4, 32, device=torch.device("cuda"), dtype=torch.uint8, labels=True, workers=1
    )
    decoder = ThreadDecoder(shards, options)
    loader: Batches = (
        ResidentCache(shards, options, torch.device(where), decoder=decoder)
        if where
        else Loader(shards, options, decoder)
    )
    images = torch.zeros(4, 32, 32, 3, dtype=torch.uint8, device="cuda")
    labels, seen = torch.zeros(4, dtype=torch.int64, device="cuda"), []

    def all_steps() -> None:
        for _ in range(7):
            torch.cuda._sleep(10_000_000)  # the device lags behind, as in training
            loader.fill(images, labels)
            seen.append((images.clone(), labels.clone()))
        seen.append(next(loader))

    within(60, all_steps)
    within(20, loader.close)
    for shown, told in seen:
        assert told.tolist() == [number % 3 for number in numbers(shown.cpu())]
