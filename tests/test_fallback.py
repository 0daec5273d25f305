"""What only the fallback does: Pillow's own pixels, threads, and tars read from end to end."""

import io
import tarfile
import threading

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms

from pipeline.errors import UserError
from pipeline.fallback import FallbackLoader
from pipeline.manifest import ShardSet
from tests.needs import take, within
from tests.pictures import CELEBA, encode, noisy, pack_pictures, smooth


@pytest.fixture
def open_fallback():
    opened = []

    def open_(shards, batch_size, image_size=32, **options):
        loader = FallbackLoader(shards, batch_size, image_size, workers=2, **options)
        opened.append(loader)
        return loader

    yield open_
    for loader in opened:
        loader.close()


@pytest.fixture(scope="module", params=[CELEBA, (90, 301), (400, 121), (40, 48)], ids=str)
def lone_picture(request, tmp_path_factory):
    """A JPEG, and the set that holds nothing else."""
    data = encode(noisy(*request.param))
    return data, pack_pictures(tmp_path_factory.mktemp("lone"), {"a.jpg": data})


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("image_size", [32, 256])
def test_pixels_are_torchvisions_to_the_bit(open_fallback, lone_picture, image_size, channels):
    data, shards = lone_picture
    loader = open_fallback(shards, 1, image_size, dtype=torch.uint8, channels=channels)
    image = Image.open(io.BytesIO(data)).convert("RGB" if channels == 3 else "L")
    image = transforms.CenterCrop(image_size)(transforms.Resize(image_size)(image))
    expected = np.asarray(image).reshape(image_size, image_size, channels)
    assert np.array_equal(take(loader, 1)[0][0].numpy(), expected)


def test_floats_are_torchvisions_chain(open_fallback, tmp_path):
    data = encode(smooth(*CELEBA))
    loader = open_fallback(pack_pictures(tmp_path, {"a.jpg": data}), 1, 64)
    chain = transforms.Compose(
        [
            transforms.Resize(64),
            transforms.CenterCrop(64),
            transforms.ToTensor(),
            transforms.Normalize((0.5,) * 3, (0.5,) * 3),
        ]
    )
    expected = chain(Image.open(io.BytesIO(data)))
    torch.testing.assert_close(take(loader, 1)[0][0], expected, rtol=0, atol=1e-6)


def test_its_threads_are_named_and_end_with_it(open_fallback, numbered_set):
    def decoders() -> list[str]:
        return [thread.name for thread in threading.enumerate() if "decode" in thread.name]

    assert decoders() == []
    loader = open_fallback(numbered_set(12, 5), 4)
    take(loader, 1)
    assert len(decoders()) == 2
    within(10, loader.close)
    assert decoders() == []


def test_a_damaged_image_names_its_sample(open_fallback, spare_set):
    tar = spare_set.tars[0]
    with tarfile.open(tar) as archive:
        member = archive.getmembers()[3]
    with tar.open("r+b") as file:
        file.seek(member.offset_data)
        file.write(bytes(member.size))
    with pytest.raises(UserError) as error:
        take(open_fallback(spare_set, 4), 3)
    assert error.value.where == str(tar)
    assert error.value.found == f"sample {member.name.removesuffix('.jpg')} is not an image"


@pytest.mark.parametrize("place", [0, 2], ids=["first-header", "later-header"])
@pytest.mark.parametrize("filling", [b"\0", b"x"], ids=["zeros", "letters"])
def test_a_damaged_tar_header_is_an_error_not_a_short_batch(
    open_fallback, spare_set, place, filling
):
    tar = spare_set.tars[1]
    with tarfile.open(tar) as archive:
        header = archive.getmembers()[place].offset
    with tar.open("r+b") as file:
        file.seek(header)
        file.write(filling * 512)
    loader = open_fallback(ShardSet.open(spare_set.folder), 4)
    with pytest.raises(UserError) as error:
        take(loader, 3)
    assert error.value.where == str(tar)
    assert "tar" in error.value.found


def test_a_path_is_never_taken_for_a_command(open_fallback, numbered_set, tmp_path, monkeypatch):
    # webdataset runs what follows "pipe:" in a shell
    folder = numbered_set(12, 5).folder
    (tmp_path / "pipe:touch evil").symlink_to(folder)
    monkeypatch.chdir(tmp_path)
    shards = ShardSet.open(type(tmp_path)("pipe:touch evil"))
    assert len(take(open_fallback(shards, 4), 3)) == 3
    assert not (tmp_path / "evil").exists()
