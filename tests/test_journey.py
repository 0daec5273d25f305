"""One face from its file to the nets, and one latent from the nets to a picture.

    JPEG file → make_shards → tar member → ShardSet → Loader → to_uint8 → reals.png
    netG.pt → Generator → generate → samples/fakes-<nimg>.png

Each test is one boundary, in this order; all look at the same run.
"""

import tarfile
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from dcgan.nets.models import Discriminator, Generator
from dcgan.nets.weights import load_weights
from dcgan.sampling.generate import FIXED_SEEDS, generate, latents
from pipeline.images.pixels import to_signed, to_uint8
from pipeline.loading.open import open_loader
from pipeline.loading.options import LoaderOptions
from pipeline.shards.shard_set import ShardSet
from tests.needs import take, within
from tests.packing_runs import run_here, without_workers
from tests.pictures import CELEBA, decode, encode, noisy, smooth, write_pictures
from tests.running import cells, tiny, train_here
from tools import make_shards

SIZE, BATCH, SEED = 64, 8, 6
FACE = "img_align_celeba/000003.jpg"
KEY = "00000002"
"""Its rank among the sorted names."""


def picture(number: int) -> bytes:
    """Number 3 is the face; the others are as unlike it as they can be."""
    draw = smooth if number == 3 else noisy
    return encode(draw(*CELEBA, seed=number))


def as_the_tutorial(jpeg: bytes) -> np.ndarray:
    """Resize(64) and CenterCrop(64) of a 178×218 picture, in Pillow alone: (64, 64, 3) uint8."""
    whole = Image.fromarray(decode(jpeg))
    resized = whole.resize((64, 78), Image.Resampling.BILINEAR)
    return np.array(resized.crop((0, 7, 64, 71)))


@pytest.fixture(scope="module")
def way(tmp_path_factory):
    """Pack eight pictures by the command, take the loader's first batch, train three steps."""
    folder = tmp_path_factory.mktemp("journey")
    pictures = {f"img_align_celeba/{n:06d}.jpg": picture(n) for n in range(1, BATCH + 1)}
    write_pictures(folder / "celeba", pictures)
    with without_workers():
        status, _, err = run_here(make_shards.main, "celeba", "--per-shard", 3, cwd=folder)
    assert status == 0, err
    shards = folder / "shards"
    loader = open_loader(str(shards), LoaderOptions(BATCH, SIZE, seed=SEED, workers=1))
    (batch,) = take(loader, 1)
    within(10, loader.close)
    options = {"shards": str(shards), "image_size": SIZE, "seed": SEED, "max_steps": 3}
    trainer = train_here(tiny(folder / "run", batch_size=BATCH, ema_nimg=100, **options))
    jpeg = pictures[FACE]
    pixels = as_the_tutorial(jpeg)
    # Where in the batch the face came: where it differs least
    distances = (to_signed(torch.from_numpy(pixels)[None]) - batch).abs().amax(dim=(1, 2, 3))
    return SimpleNamespace(
        jpeg=jpeg,
        pixels=pixels,
        shards=shards,
        batch=batch,
        place=int(distances.argmin()),
        run=trainer.run.folder,
        trainer=trainer,
    )


def test_file_to_tar_member(way):
    """The bytes of the file are the bytes in the shard, under the key that is the name's rank."""
    found, shards = {}, ShardSet.open(way.shards)
    assert (len(shards), len(shards.tars), shards.manifest.largest_image) == (BATCH, 3, CELEBA)
    for tar in shards.tars:
        with tarfile.open(tar) as archive:
            for member in archive:
                file = archive.extractfile(member)
                assert file is not None
                found[member.name] = file.read()
    assert sorted(found) == [f"{rank:08d}.jpg" for rank in range(BATCH)]
    assert found[f"{KEY}.jpg"] == way.jpeg


def test_loader_to_batch(way):
    """(B, 3, 64, 64) float32 in [-1, 1], channels_last: the tutorial's pixels to a level or so."""
    batch = way.batch
    assert (batch.shape, batch.dtype) == ((BATCH, 3, SIZE, SIZE), torch.float32)
    assert batch.is_contiguous(memory_format=torch.channels_last)
    assert -1 <= batch.amin() < -0.5
    assert 0.5 < batch.amax() <= 1
    levels = (batch[way.place] + 1) * 127.5
    off = levels - torch.from_numpy(way.pixels).permute(2, 0, 1)
    assert off.abs().mean() < 0.5
    assert off.abs().max() < 2
    others = [image for place, image in enumerate(batch) if place != way.place]
    assert all((image - batch[way.place]).abs().mean() > 0.2 for image in others)


def test_batch_to_pixels(way):
    """(B, 64, 64, 3) uint8, rounded to the nearest level."""
    pixels = to_uint8(way.batch)
    assert (pixels.shape, pixels.dtype) == ((BATCH, SIZE, SIZE, 3), torch.uint8)
    levels = (way.batch.permute(0, 2, 3, 1) + 1) * 127.5
    assert (pixels - levels).abs().max() < 0.51
    assert np.abs(pixels[way.place].int().numpy() - way.pixels).max() <= 2


def test_pixels_to_reals_png(way):
    """The run showed the first batch, and the face stands in the cell of its place."""
    shown = cells(way.run.reals, SIZE)
    assert shown.shape == (BATCH, SIZE, SIZE, 3)
    assert np.array_equal(shown, to_uint8(way.batch).numpy())
    assert np.abs(shown[way.place].astype(int) - way.pixels).max() <= 2


def test_batch_to_logits_and_weights_to_fakes_png(way):
    """D of the run takes the batch and gives a logit (B,) for each image; G draws the grid.

    Whoever loads netG_ema.pt draws exactly the images of the run's last grid.
    """
    judge = Discriminator(SIZE, ndf=4)
    load_weights(judge, way.run.discriminator, "--netD")
    logits = judge.eval()(way.batch)
    assert (logits.shape, logits.dtype) == ((BATCH,), torch.float32)
    assert logits.isfinite().all()
    net = Generator(SIZE, nz=8, ngf=4)
    load_weights(net, way.run.generator_average, "--netG")
    images = generate(net, latents(FIXED_SEEDS, 8))
    assert (images.shape, images.dtype) == ((64, SIZE, SIZE, 3), torch.uint8)
    shown = cells(way.run.fakes(3 * BATCH), SIZE)
    assert np.array_equal(shown, images.numpy())
    assert not np.array_equal(shown, cells(way.run.fakes_init, SIZE))
