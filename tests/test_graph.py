"""The whole DALI graph, as a GPU runs it, and the loader on the CPU, where torch resizes.

Both against torchvision on Pillow images, Resize(S) and CenterCrop(S), and against each other.
"""

import functools
import io
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms

from pipeline.images.pixels import to_signed
from pipeline.images.resize import contained
from pipeline.images.resize import fit as fitted
from pipeline.loading.loader import Loader
from pipeline.loading.options import LoaderOptions
from pipeline.loading.reader import Reader
from pipeline.shards.order import Schedule
from pipeline.shards.shard_set import ShardSet
from tests.loaders import keys, open_kind
from tests.needs import require, take, within
from tests.pictures import CELEBA, encode, noisy, pack_pictures, smooth

SIZES = {
    "celeba": CELEBA,
    "wide": (400, 120),
    "tall": (90, 300),
    "odd": (177, 219),
    "square": (101, 101),
    "near-64": (65, 64),
    "small": (40, 48),
    "smaller-than-32": (33, 20),
    "one-pixel": (1, 1),
    "strip": (3, 200),
}
"""Width and height; most are smaller than some of the image sizes below, and some than all."""

IMAGE_SIZES = (32, 64, 256)
KINDS = {"smooth": smooth, "noisy": noisy}


@dataclass(frozen=True)
class Bound:
    """In 8-bit levels, the most that two ways of resizing may differ."""

    mean: float
    largest: int
    share: float
    """Of values more than one level away."""


INSIDE = Bound(mean=0.30, largest=1, share=0.0)
"""Measured: mean 0.266, for both kinds: nowhere inside is a value more than one level away."""

EDGE = {"smooth": Bound(0.42, 2, 0.01), "noisy": Bound(2.8, 14, 0.70)}
"""Of the outermost rows and columns, where the filter reaches past the picture: Pillow leaves what
is not there out of its mean, DALI repeats the last pixel.
Measured: smooth 0.363, 2, 0.54 %; noisy 2.50, 12, 62 %, both at 32×32, where the edge is widest."""

LUMA = {"smooth": Bound(0.33, 1, 0.0), "noisy": Bound(0.45, 11, 0.09)}
"""Of whole pictures: DALI takes the JPEG's own luma, Pillow computes it from rounded and clipped
RGB. Measured: smooth 0.294, 1, 0; noisy 0.403, 9, 7.9 %."""

ON_THE_CPU = Bound(mean=0.25, largest=1, share=0.0)
"""Torch's resize is Pillow's but for the rounding of its weights, which tells where the scale is a
fraction as plain as 90 to 64. Measured: 0.229 for that, 0.003 for CelebA's size."""


@pytest.fixture(scope="module")
def encoded():
    """Every picture as a JPEG, under a name that sorts as it stands here."""
    return {
        f"{kind}-{name}.jpg": encode(draw(*size, seed=len(name)))
        for kind, draw in KINDS.items()
        for name, size in SIZES.items()
    }


@pytest.fixture(scope="module")
def shards(encoded, tmp_path_factory):
    require("dali")
    return pack_pictures(tmp_path_factory.mktemp("parity"), encoded)


def names_of(shards: ShardSet) -> list[str]:
    """The picture in each row."""
    names = sorted(f"{kind}-{name}.jpg" for kind in KINDS for name in SIZES)
    return [names[key] for key in keys(shards)]


def by_name(loader: Any, shards: ShardSet) -> dict[str, torch.Tensor]:
    """A loader's first batch, which is the whole set: name → (S, S, C)."""
    (batch,) = take(loader, 1)
    within(10, loader.close)
    order = Schedule.of(shards, len(shards), seed=0).order(0)
    names = names_of(shards)
    return {names[row]: image.cpu() for row, image in zip(order, batch, strict=True)}


@pytest.fixture(scope="module")
def through_dali(shards):
    """Everything through the whole graph once, on the CPU: name → (S, S, C)."""

    @functools.cache
    def run(image_size, channels=3, until="resize", fit=None):
        from pipeline.loading.dali import build_graph

        with closing(Reader(shards)) as reader:
            read = iter([reader.read(np.arange(len(shards)))])
        graph: Any = build_graph(
            shards,
            lambda: next(read),
            LoaderOptions(len(shards), image_size, channels, workers=2, fit=fit),
            until,
        )
        graph.build()
        (output,) = within(30, graph.run)
        batch = torch.from_numpy(np.array(output.as_tensor()))
        return dict(zip(names_of(shards), batch, strict=True))

    return run


@pytest.fixture(scope="module")
def through_loader(shards):
    """Everything through DALI's decoder and the loader's own resize: name → (S, S, C)."""

    @functools.cache
    def run(image_size, channels=3):
        options = {"dtype": torch.uint8, "channels": channels}
        return by_name(open_kind("dali", shards, len(shards), image_size, **options), shards)

    return run


def through_torchvision(data: bytes, image_size: int, channels: int = 3) -> np.ndarray:
    """The reference, in 8-bit levels: (S, S, C)."""
    image = Image.open(io.BytesIO(data)).convert("RGB" if channels == 3 else "L")
    chain = transforms.Compose(
        [
            transforms.Resize(image_size),
            transforms.CenterCrop(image_size),
            transforms.ToTensor(),
            transforms.Normalize((0.5,) * channels, (0.5,) * channels),
        ]
    )
    levels: np.ndarray = (chain(image).permute(1, 2, 0) * 127.5 + 127.5).numpy()
    return levels


def edge_of(image_size: int) -> np.ndarray:
    edge = np.ones((image_size, image_size), dtype=bool)
    edge[1:-1, 1:-1] = False
    return edge


def assert_close(error: np.ndarray, bound: Bound) -> None:
    error = error.round(3)  # the reference comes from floats
    assert error.mean() <= bound.mean
    assert error.max() <= bound.largest
    assert (error > 1).mean() <= bound.share


def error_of(got: torch.Tensor, data: bytes, image_size: int, channels: int = 3) -> np.ndarray:
    """How many levels off, everywhere: (S, S, C)."""
    expected = through_torchvision(data, image_size, channels)
    assert got.shape == expected.shape
    assert got.dtype == torch.uint8
    error: np.ndarray = np.abs(got.numpy() - expected)
    return error


# The pixels


@pytest.mark.parametrize("image_size", IMAGE_SIZES)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", KINDS)
def test_pixels_are_torchvisions(through_dali, encoded, kind, size, image_size):
    name = f"{kind}-{size}.jpg"
    error = error_of(through_dali(image_size)[name], encoded[name], image_size)
    edge = edge_of(image_size)
    assert_close(error[~edge], INSIDE)
    assert_close(error[edge], EDGE[kind])


def test_celebas_size_at_64_is_within_the_promised_bound(through_dali, encoded):
    name = "smooth-celeba.jpg"
    error = error_of(through_dali(64)[name], encoded[name], 64)
    assert_close(error, Bound(mean=0.15, largest=1, share=0.005))


@pytest.mark.parametrize("image_size", IMAGE_SIZES)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", KINDS)
def test_one_channel_is_the_luma(through_dali, encoded, kind, size, image_size):
    name = f"{kind}-{size}.jpg"
    got = through_dali(image_size, channels=1)[name]
    assert_close(error_of(got, encoded[name], image_size, channels=1), LUMA[kind])


def test_the_crop_is_not_a_pixel_off(through_dali, encoded):
    """The bounds above are tight enough: the neighbouring crop is far outside them."""
    image = Image.open(io.BytesIO(encoded["noisy-celeba.jpg"]))
    resized = np.asarray(transforms.Resize(64)(image)).astype(int)
    assert resized.shape == (78, 64, 3)
    got = through_dali(64)["noisy-celeba.jpg"].numpy()
    errors = {top: np.abs(got - resized[top : top + 64]).mean() for top in (6, 7, 8)}
    assert errors[7] < 0.3
    assert min(errors[6], errors[8]) > 10


@pytest.mark.parametrize("channels", [1, 3])
def test_floats_are_the_normalised_pixels(through_dali, channels):
    pixels = through_dali(64, channels)
    floats = through_dali(64, channels, "normalise")
    assert len(floats) == len(SIZES) * len(KINDS)
    for name, image in floats.items():
        expected = to_signed(pixels[name][None])[0].permute(1, 2, 0)
        assert image.dtype == torch.float32
        # Normalised after rounding to whole levels: a quarter of a level would show
        torch.testing.assert_close(image, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("fit", ["crop", "stretch", "pad", "pad:edge", "pad:#0ac81e"])
@pytest.mark.parametrize("image_size", [(96, 64), (24, 56)], ids=str)
def test_other_shapes_and_fits_are_those_of_the_cpu(through_dali, encoded, image_size, fit):
    (width, height), padded = image_size, fit.startswith("pad")
    got = through_dali(image_size, fit=fit)
    for name, data in encoded.items():
        picture = torch.from_numpy(np.array(Image.open(io.BytesIO(data))))
        tall, wide, _ = picture.shape
        across, down = contained(wide, tall, image_size) if padded else image_size
        left, top = (width - across) // 2, (height - down) // 2
        error = np.abs(got[name].numpy().astype(int) - fitted(picture, image_size, fit).numpy())
        inside = error[top + 1 : top + down - 1, left + 1 : left + across - 1]
        if inside.size:
            assert_close(inside, INSIDE)
        rows = np.clip(np.arange(height), top, top + down - 1)
        columns = np.clip(np.arange(width), left, left + across - 1)
        if fit == "pad:edge":
            assert np.array_equal(got[name], got[name][rows[:, None], columns])
        else:
            error[top : top + down, left : left + across] = 0
            assert not error.any(), "the colour"
    assert len(got) == len(SIZES) * len(KINDS)


def test_grey_images_are_padded_with_the_luma_of_a_colour(through_dali):
    got = through_dali(64, 1, fit="pad:#0ac81e")["smooth-tall.jpg"]
    assert got[:, 0].unique().tolist() == got[:, -1].unique().tolist() == [124]


# The loader's pixels on the CPU


@pytest.mark.parametrize("image_size", IMAGE_SIZES)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", KINDS)
def test_the_loaders_pixels_are_torchvisions(through_loader, encoded, kind, size, image_size):
    name = f"{kind}-{size}.jpg"
    error = error_of(through_loader(image_size)[name], encoded[name], image_size)
    assert_close(error, Bound(0.01, 1, 0.0) if size == "celeba" else ON_THE_CPU)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("image_size", IMAGE_SIZES)
def test_the_loaders_pixels_are_near_the_graphs(through_loader, through_dali, image_size, channels):
    edge, graphs = edge_of(image_size), through_dali(image_size, channels)
    for name, pixels in through_loader(image_size, channels).items():
        error = np.abs(pixels.numpy().astype(int) - graphs[name].numpy())
        assert_close(error[~edge], INSIDE)
        assert_close(error[edge], EDGE[name.partition("-")[0]])


@pytest.mark.gpu
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("image_size", [32, 64])
def test_the_gpus_pixels_are_near_the_graphs_on_the_cpu(shards, through_dali, image_size, channels):
    # Its JPEG decoder and its resize round by themselves
    sizes, device = (len(shards), image_size, channels), torch.device("cuda")
    loader = Loader(shards, LoaderOptions(*sizes, device=device, dtype=torch.uint8))
    wanted = through_dali(image_size, channels)
    # Three pixels wide, with half as many samples of colour: the decoders fill in otherwise
    # (8.6 levels on an H100, whose grey agrees)
    odd = {f"{kind}-strip.jpg" for kind in KINDS} if channels == 3 else set()
    apart = {
        name: float((pixels.float() - wanted[name].float()).abs().mean())
        for name, pixels in by_name(loader, shards).items()
        if name not in odd
    }
    assert {name: mean for name, mean in apart.items() if mean >= 1} == {}
