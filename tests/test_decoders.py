"""The decoders: the same pixels for the same bytes where that is promised, and named damage."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision import transforms

from pipeline.images.decode import decode
from pipeline.images.pixels import luma
from pipeline.images.resize import fit
from pipeline.loading.decoders import BATCHES_AHEAD, DecodeError, RawDecoder, ThreadDecoder
from pipeline.loading.options import LoaderOptions
from pipeline.shards.manifest import Recipe
from tests.needs import require, within
from tests.pictures import CELEBA, Pixels, encode, noisy, pack_pictures, smooth

SIZES = [CELEBA, (90, 301), (400, 121), (64, 64), (65, 64), (97, 97)]


PAINTERS: tuple[Callable[[int, int, int], Pixels], ...] = (smooth, noisy)


def encoded(*pictures):
    return [np.frombuffer(picture, dtype=np.uint8) for picture in pictures]


def pictures(sizes=SIZES, **options):
    return [
        encode(draw(width, height, seed), **options)
        for seed, (width, height) in enumerate(sizes)
        for draw in PAINTERS
    ]


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    """One small set of each recipe that leaves something to its readers."""
    recipes = {
        "original": Recipe(),
        "cropped": Recipe(crop=60),
        "raw": Recipe(store="raw", crop="centre", size=64, filter="bilinear"),
    }
    folder = tmp_path_factory.mktemp("sets")
    few = {f"{n}.jpg": data for n, data in enumerate(pictures())}
    made = {}
    for name, recipe in recipes.items():
        (folder / name).mkdir()
        made[name] = pack_pictures(folder / name, few, recipe=recipe)
    return made


def open_dali(shards, size=64, channels=3, batch_size=16, workers=2):
    require("dali")
    from pipeline.loading.dali import DaliDecoder

    return DaliDecoder(shards, LoaderOptions(batch_size, size, channels, workers=workers))


def open_threads(shards, size=64, channels=3, workers=2):
    return ThreadDecoder(shards, LoaderOptions(16, size, channels, workers=workers))


def open_raw(shards, size=64, channels=3):
    return RawDecoder(shards, LoaderOptions(16, size, channels))


def run(decoder, batches):
    """Decoded batches."""
    return within(60, lambda: list(decoder.decode(iter(batches))))


# Equal pixels


@pytest.mark.parametrize("name", ["original", "cropped"])
@pytest.mark.parametrize("size", [32, 60])
def test_dali_and_threads_are_equal_to_the_bit(sets, name, size):
    batches = [
        encoded(*pictures([CELEBA] * 4)),  # one size, as a dense tensor
        encoded(*pictures()),  # several
        encoded(*pictures([(60, 60)] * 3)),  # nothing to resize
        encoded(*pictures([(61, 64)], progressive=True), *pictures([(80, 99)], subsampling=0)),
        encoded(*pictures(quality=30))[:5],
    ]
    by_dali = run(open_dali(sets[name], size), batches)
    by_threads = run(open_threads(sets[name], size), batches)
    assert len(by_dali) == len(by_threads) == len(batches)
    for one, other, batch in zip(by_dali, by_threads, batches, strict=True):
        assert one.shape == (len(batch), size, size, 3)
        assert one.dtype == other.dtype == torch.uint8
        assert torch.equal(one, other)


@given(st.integers(60, 200), st.integers(60, 200), st.integers(0, 99), st.integers(60, 95))
@settings(max_examples=8)
def test_of_any_size_they_are_equal(sets, width, height, seed, quality):
    sample = encoded(encode(noisy(width, height, seed), quality=quality))
    (one,), (other,) = (run(open_(sets["original"], 60), [sample]) for open_ in OPENERS)
    assert torch.equal(one, other)


OPENERS = (open_dali, open_threads)


@pytest.mark.parametrize("channels", [1, 3])
def test_grey_files_are_equal_too(sets, channels):
    grey = [encode(Image.fromarray(noisy(*size)).convert("L")) for size in SIZES]
    one, other = (run(o(sets["original"], 60, channels), [encoded(*grey)])[0] for o in OPENERS)
    assert one.shape == (len(SIZES), 60, 60, channels)
    assert torch.equal(one, other)
    assert all(torch.equal(one[..., 0], one[..., channel]) for channel in range(channels))


def test_luma_of_colour_files_is_near_whoever_decodes(sets):
    batch = encoded(*pictures([CELEBA] * 3))
    one, other = (run(open_(sets["original"], 60, 1), [batch])[0] for open_ in OPENERS)
    assert one.shape == other.shape == (6, 60, 60, 1)
    apart = (one.int() - other.int()).abs()
    assert apart.max() <= 3
    assert apart.float().mean() < 0.5


def test_a_stored_square_has_the_pixels_that_a_loader_would_make_of_its_source(sets):
    sources = [decode(data).pixels for data in pictures()]
    expected = {fit(torch.from_numpy(p), 64).numpy().tobytes() for p in sources}
    stored = _stored_samples(sets["raw"])
    (batch,) = run(open_raw(sets["raw"]), [stored])
    assert batch.shape == (len(stored), 64, 64, 3)
    assert {square.numpy().tobytes() for square in batch} == expected
    assert len(expected) == len(stored) == 12


def _stored_samples(shards):
    from pipeline.loading.reader import Reader

    reader = Reader(shards)
    samples = reader.read(np.arange(len(shards)))
    reader.close()
    return samples


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [16, 64])
def test_raw_pixels_are_turned_grey_and_then_fitted(sets, size, channels):
    stored = _stored_samples(sets["raw"])
    batches = run(open_raw(sets["raw"], size, channels), [stored[:5], stored[5:]])
    assert [len(batch) for batch in batches] == [5, 7]
    for square, sample in zip(torch.cat(batches), stored, strict=True):
        image = torch.from_numpy(sample.copy()).view(64, 64, 3)
        assert torch.equal(square, fit(luma(image) if channels == 1 else image, size))


@pytest.mark.parametrize("open_", OPENERS)
def test_pixels_do_not_depend_on_the_number_of_workers(sets, open_):
    batches = [encoded(*pictures())] * 6
    one, three = (run(open_(sets["original"], 60, workers=n), batches) for n in (1, 3))
    assert len(one) == 6
    assert all(torch.equal(a, b) for a, b in zip(one, three, strict=True))


@pytest.mark.parametrize("open_", OPENERS)
def test_batches_kept_are_not_written_to_again(sets, open_):
    batches = [encoded(encode(smooth(64, 64, seed))) for seed in range(30)]
    kept = run(open_(sets["original"]), batches)
    for batch, (sample,) in zip(kept, batches, strict=True):
        assert np.array_equal(batch[0].numpy(), decode(sample.tobytes()).pixels)


# Ends


@pytest.mark.parametrize("open_", OPENERS)
@pytest.mark.parametrize("count", [0, 1, 7])
def test_as_many_batches_come_out_as_went_in(sets, open_, count):
    batches = [encoded(*pictures(SIZES[: 1 + number % 3])) for number in range(count)]
    sizes = [len(batch) for batch in run(open_(sets["original"], 60), batches)]
    assert sizes == [len(batch) for batch in batches]


DAMAGED = {"zeros": bytes(2000), "empty": b"", "cut": pictures()[0][:-900]}


@pytest.mark.parametrize("open_", OPENERS)
@pytest.mark.parametrize(("damage", "place"), [("zeros", 0), ("empty", 0), ("cut", 5)])
def test_a_damaged_image_is_an_error_after_the_batches_before_it(sets, open_, damage, place):
    good = pictures()
    bad = [*good[:place], DAMAGED[damage], *good[place:]]
    batches, taken = [encoded(*each) for each in (good, good, bad, good)], []
    decoder = open_(sets["original"], 60)
    with pytest.raises(DecodeError) as error:
        within(60, lambda: taken.extend(decoder.decode(iter(batches))))
    decoder.close()
    assert str(error.value).strip()
    assert "\n" not in str(error.value)
    assert len(taken) == 2


@pytest.mark.parametrize("open_", OPENERS)
def test_a_decoder_left_in_the_middle_can_be_closed_twice(sets, open_):
    decoder = open_(sets["original"], 60)
    batches = decoder.decode(iter([encoded(*pictures())] * 20))
    within(60, lambda: next(batches))
    within(60, batches.close)
    within(60, decoder.close)
    within(60, decoder.close)


# What only the threads do


@pytest.mark.parametrize("size", [CELEBA, (90, 301), (40, 48)], ids=str)
@pytest.mark.parametrize(("image_size", "channels"), [(32, 3), (256, 1)])
def test_threads_give_torchvisions_pixels_to_a_level(tmp_path, size, image_size, channels):
    data = encode(noisy(*size))
    shards = pack_pictures(tmp_path, {"a.jpg": data})
    (batch,) = run(open_threads(shards, image_size, channels), [encoded(data)])
    image = Image.fromarray(decode(data).pixels).convert("RGB" if channels == 3 else "L")
    image = transforms.CenterCrop(image_size)(transforms.Resize(image_size)(image))
    expected = np.asarray(image).reshape(image_size, image_size, channels).astype(int)
    error = np.abs(batch[0].numpy() - expected)
    assert error.max() <= 1
    assert error.mean() <= 0.25  # 90 to 32 is the worst; CelebA's is a hundredth of it


def test_threads_read_no_further_ahead_than_they_say(sets):
    decoder, given = open_threads(sets["original"], 32), []
    jpeg = np.frombuffer(encode(smooth(32, 32)), dtype=np.uint8)

    def batches():
        for number in range(20):
            given.append(number)
            yield [jpeg, jpeg]

    decoding = decoder.decode(batches())
    for taken in range(1, 21):
        assert within(10, lambda: next(decoding)).shape == (2, 32, 32, 3)
        assert len(given) == min(20, taken + BATCHES_AHEAD - 1)
    with pytest.raises(StopIteration):
        next(decoding)


# Luma


def test_luma_is_pillows_for_a_million_colours():
    colours = np.random.default_rng(0).integers(0, 256, (1000, 1000, 3), dtype=np.uint8)
    colours[:6, 0] = [[0, 0, 0], [255, 255, 255], [255, 0, 0], [0, 255, 0], [0, 0, 255], [1, 1, 1]]
    expected = np.asarray(Image.fromarray(colours).convert("L"))
    assert np.array_equal(luma(torch.from_numpy(colours))[..., 0].numpy(), expected)
    assert luma(torch.zeros(2, 5, 7, 3, dtype=torch.uint8)).shape == (2, 5, 7, 1)
