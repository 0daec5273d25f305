"""Latents in files, and their sums: the same pictures as of seeds, and refusals of other files."""

import tracemalloc
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image

from dcgan.nets.models import Generator, init_weights
from dcgan.nets.weights import save_weights
from dcgan.sample import sample
from dcgan.sampling.generate import arithmetic, generate, latents
from dcgan.sampling.latents import CHECKED, MAX_LATENTS, read_latents, save_latents
from pipeline.errors import UserError
from pipeline.files import file_digest
from pipeline.images.labels import LabelSpace
from tests.pictures import names_in
from tests.running import assert_four_parts, cells
from tests.sample_runs import SIDE, make_run, pixels
from tests.test_animation import frames_of
from tests.test_generate import NZ

SUM, TERMS = "3,17-18 - 5 + 12,60", [(1, [3, 17, 18]), (-1, [5]), (1, [12, 60])]


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A run in the current folder, and the net that is drawn from."""
    monkeypatch.chdir(tmp_path)
    run, _, average = make_run(Path("0007"))
    return run.path, average


def draw(net, **options):
    sample(net=net, device="cpu", **options)


# Arithmetic


def test_a_sum_adds_and_subtracts_means():
    mean_of_three, five, mean_of_two, result = arithmetic(TERMS, NZ).double()
    drawn = latents(range(61), NZ).double()
    assert torch.allclose(mean_of_three, (drawn[3] + drawn[17] + drawn[18]) / 3)
    assert torch.equal(five, drawn[5])
    assert torch.allclose(result, mean_of_three - drawn[5] + mean_of_two, atol=1e-6)
    assert arithmetic(TERMS, NZ).dtype == torch.float32


def test_the_picture_of_a_sum_shows_what_was_added(run, capsys):
    draw(run[0], arithmetic=SUM, out=Path("g.png"), save_latents=Path("r.npy"))
    assert capsys.readouterr().out.startswith(f"{SUM} in g.png: ")
    picture, found = pixels(Path("g.png")).copy(), []
    # A margin of 8, columns 56 apart; three seeds at most, 34 apart, 8 above their means
    seeds = [(0, 0), (0, 1), (0, 2), (1, 2), (2, 1), (2, 2)]
    for column, row in (*seeds, (0, 3), (1, 3), (2, 3), (3, 3)):
        left, top = 8 + 56 * column, 8 + 34 * row + 6 * (row == 3)
        found.append(picture[top : top + SIDE, left : left + SIDE].copy())
        picture[top : top + SIDE, left : left + SIDE] = 255
    noise = torch.cat([latents([3, 17, 18, 5, 12, 60], NZ), arithmetic(TERMS, NZ)])
    assert np.array_equal(found, generate(run[1], noise).numpy())
    assert picture.shape == (8 + 3 * 34 + 6 + SIDE + 8, 8 + 3 * 56 + SIDE + 8, 3)
    drawn: npt.NDArray[np.bool_] = picture.min(axis=2) < 255
    assert not drawn[:116].any()
    between = [drawn[116:148, 40 + 56 * k : 64 + 56 * k].sum() for k in range(3)]
    assert sum(between) == drawn.sum(), "operators stand between the means"
    minus, plus, equals = between
    assert 0 < minus < plus
    assert equals > 1.5 * minus
    with Image.open("g.png") as opened:
        assert opened.info["Arithmetic"] == SUM
    draw(run[0], latents=Path("r.npy"), each=Path("each"))
    assert np.array_equal(pixels(Path("each/latent000000.png")), found[-1])


def test_many_seeds_stand_in_columns_of_eight(run):
    draw(run[0], arithmetic="0-8 + 9")
    size = (8 + 5 * 34 + 6 + SIDE + 8, 8 + 2 * 34 - 2 + 2 * 56 + 8, 3)
    assert pixels(Path("samples.png")).shape == size


def test_a_sum_of_a_conditional_net_has_one_label(run):
    net = Generator(SIDE, 8, 4, labels=LabelSpace("classes", ("0", "1")))
    init_weights(net, torch.Generator().manual_seed(5))
    with torch.no_grad():
        for weight in net.parameters():
            weight.mul_(3)
    save_weights(net, Path("net.pt"))
    with pytest.raises(UserError) as error:
        draw(Path("net.pt"), arithmetic="1 - 2", out=Path("g.png"))
    assert_four_parts(error.value, "--label '0'")
    draw(Path("net.pt"), arithmetic="1 - 2", label="1", out=Path("g.png"))
    noise, picture = arithmetic([(1, [1]), (-1, [2])], 8), pixels(Path("g.png"))
    expected = generate(net, noise, torch.tensor([1] * 3))
    assert not torch.equal(expected, generate(net, noise, torch.tensor([0] * 3)))
    assert np.array_equal(picture[-40:-8, -40:-8], expected[-1].numpy())


# Files


def test_latents_of_seeds_draw_the_same_pictures(run, capsys):
    seeds = {"seeds": "5,3,90-92", "save_latents": Path("z.npy")}
    draw(run[0], **seeds, out=Path("a.png"), each=Path("seeds"))
    assert capsys.readouterr().out.endswith("5 latents in z.npy\n")
    stored = np.load("z.npy")
    assert (stored.dtype, stored.shape) == (np.float32, (5, NZ))
    np.save("wide\udcff.npy", np.asfortranarray(stored.astype(">f8").reshape(5, NZ, 1, 1)))
    for name in ("z.npy", "wide\udcff.npy"):
        draw(run[0], latents=Path(name), out=Path("b.png"), each=Path("rows"))
        assert np.array_equal(cells(Path("a.png"), SIDE), cells(Path("b.png"), SIDE))
        assert names_in(Path("rows")) == [f"latent{row:06d}.png" for row in range(5)]
    said = {"Latents file": r"wide\udcff.npy", "Latents file SHA-256": file_digest(Path(name))}
    for name, own in (("b.png", {"Latents": "0-4"}), ("rows/latent000002.png", {"Latent": "2"})):
        with Image.open(name) as picture:
            assert said.items() | own.items() <= picture.info.items()
            assert not {"Seed", "Seeds"} & picture.info.keys()
    assert np.array_equal(pixels(Path("rows/latent000002.png")), cells(Path("a.png"), SIDE)[2])


def test_a_walk_is_a_file_of_its_frames(run):
    walk = {"interpolate": "1:2", "frames": 3, "out": Path("w.webp")}
    draw(run[0], **walk, save_latents=Path("w.npy"))
    draw(run[0], latents=Path("w.npy"), out=Path("g.png"))
    assert np.array_equal(cells(Path("g.png"), SIDE), frames_of(Path("w.webp"))[0][:, ::8, ::8])


def written(array, **options):
    np.save("z.npy", array, **options)


def with_a(value, dtype=np.float32):
    rows = np.zeros((CHECKED + 2, NZ), dtype)
    rows[-1, 7] = value
    return rows


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: None, "no such file"),
        (lambda: Path("z.npy").mkdir(), "no such file"),
        (lambda: Path("z.npy").write_bytes(b""), "no array that can be read"),
        (lambda: Path("z.npy").write_text("1,2,3"), "no array that can be read"),
        (lambda: written(np.array([Path()]), allow_pickle=True), "Python objects"),
        (lambda: written(np.zeros((0, NZ))), "found "),
        (lambda: written(np.float32(1)), "float32 of shape ()"),
        (lambda: written(np.zeros(NZ)), f"float64 of shape ({NZ},)"),
        (lambda: written(np.zeros((2, NZ + 1))), f"(N, {NZ}) or (N, {NZ}, 1, 1)"),
        (lambda: written(np.zeros((2, NZ, 1, 2))), f"shape (2, {NZ}, 1, 2)"),
        (lambda: written(np.zeros((2, NZ), np.float16)), "found   float16"),
        (lambda: written(np.zeros((2, NZ), np.int64)), "found   int64"),
        (lambda: written(with_a(np.nan)), "found   nan"),
        (lambda: written(with_a(-np.inf)), "found   -inf"),
        (lambda: written(with_a(1e300, np.float64)), "found   1e+300"),
    ],
)
def test_what_are_no_latents(run, make, said):
    make()
    before = sorted(Path().rglob("*"))
    with pytest.raises(UserError) as error:
        draw(run[0], latents=Path("z.npy"), each=Path("each"))
    assert_four_parts(error.value, "--latents z.npy", said)
    assert sorted(Path().rglob("*")) == before


def test_large_files_are_written_and_read_in_little_memory(tmp_path):
    path, number = tmp_path / "z.npy", 50_000
    tracemalloc.start()
    save_latents((torch.zeros(16, 1, 1) for _ in range(number)), (number, 16), path)
    assert sum(1 for _ in zip(read_latents(path, 16), range(9), strict=False)) == 9
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert path.stat().st_size == 128 + number * 64
    assert peak < path.stat().st_size / 4
    with path.open("wb") as file:  # sparse
        head = {"descr": "<f4", "fortran_order": False, "shape": (MAX_LATENTS + 1, 16)}
        np.lib.format.write_array_header_1_0(file, head)
        file.truncate(128 + (MAX_LATENTS + 1) * 64)
    with pytest.raises(UserError, match="1,000,001 latents"):
        read_latents(path, 16)
