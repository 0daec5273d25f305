"""Batches of noise behind the loaders' interface."""

import itertools

import pytest
import torch

from pipeline.loading.options import LoaderOptions
from pipeline.loading.synthetic import BATCHES, SAMPLES, SyntheticLoader


def loader(batch_size=4, size=16, channels=3, seed=0, dtype=torch.float32) -> SyntheticLoader:
    return SyntheticLoader(LoaderOptions(batch_size, size, channels, seed=seed, dtype=dtype))


def take(batches: SyntheticLoader, count: int = BATCHES) -> list[torch.Tensor]:
    return list(itertools.islice(batches, count))


@pytest.mark.parametrize("channels", [1, 3])
def test_floats_are_channels_last_and_span_the_range(channels):
    for batch in take(loader(channels=channels)):
        assert batch.shape == (4, channels, 16, 16)
        assert batch.dtype == torch.float32
        assert batch.is_contiguous(memory_format=torch.channels_last)
        assert -1 <= batch.amin() < -0.95
        assert 0.95 < batch.amax() <= 1


def test_noise_is_a_function_of_the_seed():
    first, again, other = take(loader()), take(loader()), take(loader(seed=1))
    for a, b, c in zip(first, again, other, strict=True):
        assert torch.equal(a, b)
        assert not torch.equal(a, c)


def test_batches_differ_and_come_round_without_end():
    batches = take(loader(), 3 * BATCHES + 1)
    assert len(batches) == 3 * BATCHES + 1
    assert len({batch.sum().item() for batch in batches}) == BATCHES
    assert torch.equal(batches[0], batches[BATCHES])


@pytest.mark.parametrize(("batch_size", "steps"), [(128, SAMPLES // 128), (100, 163), (20_000, 1)])
def test_an_epoch_has_its_steps(batch_size, steps):
    assert loader(batch_size=batch_size, size=1, channels=1).steps_per_epoch == steps


# In the interface of every loader


def test_a_buffer_is_filled_with_the_next_batch():
    expected = take(loader(dtype=torch.uint8), 2 * BATCHES)
    batches = loader(dtype=torch.uint8)
    buffer = torch.zeros(4, 16, 16, 3, dtype=torch.uint8)
    for batch in expected:
        batches.fill(buffer)
        assert torch.equal(buffer, batch)


@pytest.mark.parametrize("done", [0, 10])
def test_it_goes_on_from_a_state(done):
    first, second = (loader(batch_size=SAMPLES // 3, size=1, channels=1) for _ in range(2))
    take(first, done)
    assert (first.epoch, first.batch) == divmod(done, 3)
    second.load_state_dict(first.state_dict())
    for old, new in zip(take(first), take(second), strict=True):
        assert torch.equal(old, new)
