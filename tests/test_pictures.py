"""Images and grids of them, as PNG files."""

import numpy as np
import pytest
import torch
from PIL import Image

from dcgan.sampling.pictures import (
    save_grid,
    save_image,
    save_reals_vs_fakes,
)
from pipeline.errors import UserError
from tests.pictures import names_in
from tests.running import assert_four_parts, cells


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("count", "shown"), [(2, 2), (9, 16), (64, 64)])
def test_image_i_stands_in_row_and_column_of_i(tmp_path, count, shown, channels):
    random = np.random.default_rng(count)
    images = random.integers(1, 256, (count, 16, 16, channels), dtype=np.uint8)
    path = tmp_path / "grid.png"
    save_grid(torch.from_numpy(images), path)
    with Image.open(path) as grid:
        assert (grid.format, grid.mode) == ("PNG", "RGB")
        assert grid.width == min(count, 8) * 18 + 2
    found = cells(path, 16)
    assert len(found) == shown
    assert np.array_equal(found[:count], np.broadcast_to(images, (count, 16, 16, 3)))
    assert not found[count:].any()


def test_one_image_stands_alone(tmp_path):
    image = torch.randint(1, 256, (1, 16, 16, 3), dtype=torch.uint8)
    save_grid(image, tmp_path / "one.png")
    found = np.asarray(Image.open(tmp_path / "one.png"))
    assert np.array_equal(found, image[0].numpy())


def test_a_picture_says_what_it_was_told(tmp_path):
    texts = {"Seed": "12", "Run": "Läufe/日本"}
    image = torch.randint(0, 256, (16, 16, 3), dtype=torch.uint8)
    save_image(image, tmp_path / "one.png", texts)
    save_grid(image[None], tmp_path / "grid.png", texts=texts)
    for name in ("one.png", "grid.png"):
        with Image.open(tmp_path / name) as picture:
            picture.load()
            assert picture.info == texts
    assert np.array_equal(np.asarray(Image.open(tmp_path / "one.png")), image.numpy())


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (3, "RGB")])
def test_one_image_keeps_its_pixels(tmp_path, channels, mode):
    image = torch.randint(0, 256, (16, 16, channels), dtype=torch.uint8)
    save_image(image, tmp_path / "one.png")
    with Image.open(tmp_path / "one.png") as picture:
        assert (picture.format, picture.mode, picture.info) == ("PNG", mode, {})
        assert np.array_equal(np.asarray(picture).reshape(image.shape), image.numpy())


def test_a_grid_of_other_columns(tmp_path):
    images = torch.randint(1, 256, (6, 16, 16, 3), dtype=torch.uint8)
    save_grid(images, tmp_path / "grid.png", columns=3)
    with Image.open(tmp_path / "grid.png") as grid:
        assert grid.size == (3 * 18 + 2, 2 * 18 + 2)
    assert np.array_equal(cells(tmp_path / "grid.png", 16), images.numpy())


# Real beside fake

RED, BLUE = (200, 0, 0), (0, 0, 200)


@pytest.mark.parametrize(
    ("real", "fake"), [((530, 530), (530, 530)), ((530, 266), (530, 530)), ((34, 34), (34, 34))]
)
def test_real_stands_beside_fake_under_headings(tmp_path, real, fake):
    for name, size, colour in (("a.png", real, RED), ("b.png", fake, BLUE)):
        Image.new("RGB", size, colour).save(tmp_path / name)
    save_reals_vs_fakes(tmp_path / "a.png", tmp_path / "b.png", tmp_path / "both.png")
    sheet = np.asarray(Image.open(tmp_path / "both.png").convert("RGB"))
    boxes = []
    for size, colour in ((real, RED), (fake, BLUE)):
        rows, columns = (sheet == colour).all(axis=2).nonzero()
        assert len(rows) == size[0] * size[1]  # every pixel of it, and in one piece
        assert (np.ptp(columns) + 1, np.ptp(rows) + 1) == size
        boxes.append((columns.min(), columns.max(), rows.min()))
    (left, right, top), (left_fake, _, top_fake) = boxes
    assert left == 0
    assert right < left_fake
    assert top == top_fake
    words = np.any((sheet[:top] < 100).all(axis=2), axis=0)
    assert words[:left_fake].any()
    assert words[left_fake:].any()
    assert not words[-2:].any()  # nothing is cut off
    assert not words[left_fake - 10 : left_fake].any()


def test_a_grid_that_cannot_be_read_is_named_and_the_old_file_stays(tmp_path):
    for name in ("a.png", "b.png"):
        Image.new("RGB", (64, 64), RED).save(tmp_path / name)
    (tmp_path / "b.png").write_bytes((tmp_path / "b.png").read_bytes()[:40])
    (tmp_path / "both.png").write_bytes(b"old")
    with pytest.raises(UserError) as error:
        save_reals_vs_fakes(tmp_path / "a.png", tmp_path / "b.png", tmp_path / "both.png")
    assert_four_parts(error.value, "b.png")
    assert (tmp_path / "both.png").read_bytes() == b"old"
    assert names_in(tmp_path) == ["a.png", "b.png", "both.png"]
