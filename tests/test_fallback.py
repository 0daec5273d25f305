"""What only the decoder in threads does: its pixels, its threads, and what it says of itself."""

import threading

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms

from pipeline.errors import UserError
from pipeline.loading.decoders import BATCHES_AHEAD, ThreadDecoder
from pipeline.loading.loader import Loader
from pipeline.loading.options import LoaderOptions
from tests.needs import take, within
from tests.pictures import CELEBA, decode, encode, noisy, pack_pictures, smooth
from tests.test_loader_damage import DAMAGES, overwrite_sample


@pytest.fixture
def open_threads():
    opened = []

    def open_(shards, batch_size, image_size=32, channels=3, workers=2, **options):
        asked = LoaderOptions(batch_size, image_size, channels, workers=workers, **options)
        opened.append(Loader(shards, asked, ThreadDecoder(shards, asked)))
        return opened[-1]

    yield open_
    for loader in opened:
        within(10, loader.close)


@pytest.fixture(scope="module", params=[CELEBA, (90, 301), (400, 121), (40, 48)], ids=str)
def lone_picture(request, tmp_path_factory):
    """A JPEG, and the set that holds nothing else."""
    data = encode(noisy(*request.param))
    return data, pack_pictures(tmp_path_factory.mktemp("lone"), {"a.jpg": data})


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("image_size", [32, 256])
def test_pixels_are_torchvisions_to_a_level(open_threads, lone_picture, image_size, channels):
    data, shards = lone_picture
    loader = open_threads(shards, 1, image_size, channels, dtype=torch.uint8)
    image = Image.fromarray(decode(data)).convert("RGB" if channels == 3 else "L")
    image = transforms.CenterCrop(image_size)(transforms.Resize(image_size)(image))
    expected = np.asarray(image).reshape(image_size, image_size, channels).astype(int)
    error = np.abs(take(loader, 1)[0][0].numpy() - expected)
    assert error.max() <= 1
    assert error.mean() <= 0.25  # 90 to 32 is the worst; CelebA's is a hundredth of it


def test_floats_are_torchvisions_chain(open_threads, tmp_path):
    data = encode(smooth(*CELEBA))
    loader = open_threads(pack_pictures(tmp_path, {"a.jpg": data}), 1, 64)
    chain = transforms.Compose(
        [
            transforms.Resize(64),
            transforms.CenterCrop(64),
            transforms.ToTensor(),
            transforms.Normalize((0.5,) * 3, (0.5,) * 3),
        ]
    )
    expected = chain(Image.fromarray(decode(data)))
    level = 1 / 127.5
    torch.testing.assert_close(take(loader, 1)[0][0], expected, rtol=0, atol=level + 1e-6)


@pytest.mark.parametrize("channels", [1, 3])
def test_grey_pictures_are_grey_in_three_channels_too(open_threads, tmp_path, channels):
    grey = smooth(*CELEBA)[:, :, 0]
    shards = pack_pictures(tmp_path, {"a.jpg": encode(grey)})
    (batch,) = take(open_threads(shards, 1, 64, channels, dtype=torch.uint8), 1)
    assert batch.shape == (1, 64, 64, channels)
    assert (batch == batch[..., :1]).all()
    assert batch.float().std() > 10


def test_its_threads_are_named_and_end_with_it(open_threads, numbered_set):
    def decoders() -> list[str]:
        return [thread.name for thread in threading.enumerate() if "decode" in thread.name]

    assert decoders() == []
    loader = open_threads(numbered_set(12, 5), 4, workers=3)
    take(loader, 1)
    assert len(decoders()) == 3
    within(10, loader.close)
    assert decoders() == []


def test_a_damaged_image_names_its_sample_and_what_is_wrong(open_threads, spare_set):
    tar, key = overwrite_sample(spare_set, DAMAGES["text"], shard=0, place=3)
    with pytest.raises(UserError) as error:
        take(open_threads(spare_set, 4), 3)
    assert error.value.where == tar
    assert error.value.found == f"sample {key} does not decode: not a JPEG with one frame"


def test_it_reads_no_further_ahead_than_it_says(numbered_set):
    decoder, given = ThreadDecoder(numbered_set(12, 5), LoaderOptions(2, 32, workers=2)), []
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


def test_it_says_why_it_is_in_use(numbered_set):
    decoder = ThreadDecoder(numbered_set(12, 5), LoaderOptions(2, workers=5), "the reason")
    assert decoder.description == "libjpeg-turbo and torch, 5 threads, because the reason"
