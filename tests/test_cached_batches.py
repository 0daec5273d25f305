"""The resident cache: the batches of the loader under it, to the bit, from one reading."""

import pytest
import torch

from pipeline.loading.cache import ResidentCache
from pipeline.loading.loader import Loader
from pipeline.loading.options import LoaderOptions
from pipeline.loading.reader import Reader
from tests.loaders import CPU, open_kind
from tests.needs import require, take, within


@pytest.mark.parametrize("decoder", ["dali", "threads", "raw"])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32], ids=str)
@pytest.mark.parametrize(("rank", "ranks"), [(0, 1), (1, 3)], ids=["alone", "rank-1-of-3"])
@pytest.mark.parametrize("image_size", [32, 64])
def test_the_cache_gives_what_the_loader_gives(
    numbered_set, decoder, dtype, rank, ranks, image_size
):
    if decoder == "dali":
        require("dali")
    shards = numbered_set(41, 7, "raw" if decoder == "raw" else "original")
    options = {"dtype": dtype, "seed": 5, "rank": rank, "num_ranks": ranks}
    pair = [
        open_kind(kind, shards, 3, image_size, **options) for kind in (decoder, f"{decoder}-cached")
    ]
    streamed, cached = pair
    assert isinstance(cached, ResidentCache)
    assert cached.identity == streamed.identity
    steps = streamed.steps_per_epoch
    assert cached.steps_per_epoch == steps == 41 // ranks // 3
    for _ in range(5 * steps + 1):
        (one,), (other,) = take(streamed, 1), take(cached, 1)
        assert one.dtype == other.dtype == dtype
        assert torch.equal(one, other)
        assert one.stride() == other.stride()
    for loader in pair:
        within(10, loader.close)


def test_the_cache_reads_a_set_once_and_tells_how_far_it_is(numbered_set, monkeypatch):
    read, told, reading = [], [], Reader.read

    def noting(self, rows):
        read.extend(rows.tolist())
        return reading(self, rows)

    monkeypatch.setattr(Reader, "read", noting)
    loader = Loader(numbered_set(23, 9, "raw"), LoaderOptions(4, 32, dtype=torch.uint8))
    cache = ResidentCache(loader, CPU, progress=lambda *done: told.append(done))
    cache.load_state_dict({"epoch": 3, "batch": 2, "identity": loader.identity})
    take(cache, 30)
    within(10, cache.close)
    assert sorted(read) == list(range(23))
    assert told == [(4, 23), (8, 23), (12, 23), (16, 23), (20, 23), (23, 23)]
