"""Pictures that move: their frames, times and sizes."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageSequence

from dcgan.sampling.animation import save_progress, save_walk
from pipeline.errors import UserError
from tests.pictures import names_in, smooth
from tests.running import assert_four_parts


def frames_of(path):
    """Every frame as RGB, (N, H, W, 3), and how long each is shown, in milliseconds."""
    with Image.open(path) as animation:
        assert animation.info["loop"] == 0  # for ever
        frames = [
            (np.asarray(frame.convert("RGB")).astype(int), frame.info["duration"])
            for frame in ImageSequence.Iterator(animation)
        ]
    return np.stack([frame for frame, _ in frames]), [shown for _, shown in frames]


def grids(folder, count, width=270, height=270):
    """Plain grids, each of another grey, and their nimg."""
    found = []
    for number in range(count):
        path = folder / f"{number:04d}.png"
        Image.new("RGB", (width, height), (2 * number % 256,) * 3).save(path)
        found.append((100 * number, path))
    return found


def greys(frames):
    """The grey at the bottom of each, far from the heading."""
    return frames[:, -3, 3, 0].tolist()


def test_every_grid_is_a_frame_and_the_last_is_held(tmp_path):
    save_progress(grids(tmp_path, 5), tmp_path / "progress.gif")
    frames, shown = frames_of(tmp_path / "progress.gif")
    assert greys(frames) == [0, 2, 4, 6, 8]
    assert shown == [500, 500, 500, 500, 2000]
    assert not (tmp_path / "progress.gif.partial").exists()


def test_of_many_grids_forty_are_taken_evenly(tmp_path):
    save_progress(grids(tmp_path, 121, 40, 40), tmp_path / "progress.gif")
    frames, shown = frames_of(tmp_path / "progress.gif")
    found = greys(frames)
    assert len(found) == 40
    assert (found[0], found[-1]) == (0, 240)
    assert set(np.diff(found)) == {6, 8}
    assert shown == [150] * 39 + [2000]


def test_each_frame_says_how_many_images_were_seen(tmp_path):
    _, path = grids(tmp_path, 1)[0]
    save_progress([(1, path), (1, path), (123_456, path)], tmp_path / "progress.gif")
    (same, other), _ = frames_of(tmp_path / "progress.gif")  # equal neighbours are one frame
    above = len(same) - 270
    assert np.array_equal(same[above:], other[above:])
    dark = [(frame[:above] < 128).any(axis=2).any(axis=0).nonzero()[0] for frame in (same, other)]
    assert 0 < dark[0].max() < dark[1].max() < 270  # the longer number reaches further


def test_a_wide_grid_is_made_smaller_without_jags(tmp_path):
    stripes = np.zeros((1200, 1200, 3), np.uint8)
    stripes[:, ::2] = 255
    Image.fromarray(stripes).save(tmp_path / "a.png")
    save_progress([(5, tmp_path / "a.png")], tmp_path / "progress.gif")
    (found,), _ = frames_of(tmp_path / "progress.gif")
    assert found.shape[1] == 400
    assert abs(found[-350:, 10:-10] - 127).max() < 30  # grey; every second column would be plain


def test_narrow_grids_leave_room_for_the_words(tmp_path):
    _, path = grids(tmp_path, 1, 34, 34)[0]
    save_progress([(1, path), (10**9, path)], tmp_path / "progress.gif")
    frames, _ = frames_of(tmp_path / "progress.gif")
    words = (frames[1][:-34] < 128).any(axis=(0, 2)).nonzero()[0]
    assert 100 < words.max() < frames.shape[2] - 2


@pytest.mark.parametrize("damage", ["missing", "cut"])
def test_a_grid_that_cannot_be_read_is_named_and_the_old_file_stays(tmp_path, damage):
    out, found = tmp_path / "progress.gif", grids(tmp_path, 3)
    out.write_bytes(b"old")
    bad = found[1][1]
    if damage == "missing":
        bad.unlink()
    else:
        Image.fromarray(smooth(90, 90)).save(bad)
        bad.write_bytes(bad.read_bytes()[:2000])
    before = names_in(tmp_path)
    with pytest.raises(UserError) as error:
        save_progress(found, out)
    assert_four_parts(error.value, str(bad))
    assert out.read_bytes() == b"old"
    assert names_in(tmp_path) == before


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", ["walk.gif", "WALK.WEBP"])
def test_a_walk_is_its_images_in_order(tmp_path, name, channels):
    images = [torch.from_numpy(smooth(32, 32, seed)[..., :channels]) for seed in range(6)]
    save_walk(iter(images), tmp_path / name)
    frames, shown = frames_of(tmp_path / name)
    assert shown == [50] * 6
    wanted = np.kron(torch.stack(images).expand(-1, -1, -1, 3), np.ones((1, 8, 8, 1), int))
    far = abs(frames - wanted)
    if name.lower().endswith(".webp"):
        assert far.max() == 0
    else:
        assert far.mean() < 8  # 256 colours a frame; another image is 50 off
    assert names_in(tmp_path) == [name]


def test_what_breaks_off_leaves_what_was_there(tmp_path):
    out = tmp_path / "walk.gif"
    out.write_bytes(b"old")

    def images():
        yield torch.zeros(32, 32, 3, dtype=torch.uint8)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        save_walk(images(), out)
    assert out.read_bytes() == b"old"
    assert names_in(tmp_path) == ["walk.gif"]


@pytest.mark.parametrize("save", [save_walk, save_progress])
def test_a_disk_that_fills_up_leaves_what_was_there(tmp_path, monkeypatch, save):
    out, found = tmp_path / "moving.gif", grids(tmp_path, 2)
    out.write_bytes(b"old")
    before = names_in(tmp_path)

    def half(_, path, *words, **options):
        path.write_bytes(b"GIF89a")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", half)
    images = [torch.zeros(32, 32, 3, dtype=torch.uint8)]
    with pytest.raises(OSError, match="No space"):
        save(images if save is save_walk else found, out)
    assert out.read_bytes() == b"old"
    assert names_in(tmp_path) == before
