"""Loaders that are compared show the same images, and so does each form of the set."""

import time
from dataclasses import replace
from itertools import islice

import numpy as np
import psutil
import pytest
import torch
from PIL import Image

from dcgan.profiling.contenders import (
    HostDecoder,
    _transform,
    cached,
    decoded_on_host,
    first_shards,
    ours,
    pack_as,
    plain_dali,
    read_batches,
    torchvision_folder,
    webdataset_shards,
    write_images,
)
from dcgan.profiling.stages import cumulative
from pipeline.errors import UserError
from pipeline.images.pixels import to_uint8
from pipeline.loading.options import LoaderOptions
from pipeline.shards.manifest import Recipe
from tests.needs import require, within
from tests.packing_runs import serially
from tests.pictures import CELEBA, encode, pack_pictures, smooth
from tests.running import assert_four_parts

COUNT, BATCH, SIZE = 16, 4, 32
CONDITIONS = LoaderOptions(BATCH, SIZE, workers=1)
OF_PIXELS = replace(CONDITIONS, dtype=torch.uint8)
FACES = {f"{number:02d}.jpg": encode(smooth(*CELEBA, number)) for number in range(COUNT)}

FLOATS, PIXELS = (BATCH, 3, SIZE, SIZE), (BATCH, SIZE, SIZE, 3)


@pytest.fixture(scope="module", autouse=True)
def without_packing_processes():
    with pytest.MonkeyPatch.context() as patches:
        patches.setattr("pipeline.packing.pack._written", serially)
        yield


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return pack_pictures(tmp_path_factory.mktemp("faces"), FACES, per_shard=8)


@pytest.fixture(scope="module")
def files(shards, tmp_path_factory):
    return write_images(shards, tmp_path_factory.mktemp("files") / "images")


@pytest.fixture(scope="module")
def packed(shards, files, tmp_path_factory):
    """The same images in each store."""
    folder = tmp_path_factory.mktemp("packed")
    small = {
        store: pack_as(store, shards, files, SIZE, folder / store, 1) for store in ("jpeg", "raw")
    }
    return {"original": shards, **small}


def images(contender, batches=COUNT // BATCH):
    """The next images, (N, S, S, 3) in levels; floats are brought back."""
    taken = within(60, lambda: [next(contender.batches) for _ in range(batches)])
    pixels = torch.cat([to_uint8(x) if x.is_floating_point() else x for x in taken])
    return pixels.cpu().numpy().astype(int)


def assert_same_images(found, wanted, mean):
    """The same multiset, each within a mean difference in levels."""
    apart = np.abs(found[:, None] - wanted[None]).mean(axis=(2, 3, 4))
    assert sorted(apart.argmin(axis=1)) == list(range(len(wanted)))
    assert apart.min(axis=1).max() <= mean
    np.fill_diagonal(ordered := apart[:, apart.argmin(axis=1)], 255)
    assert ordered.min() > 3 * mean  # no two could be taken for one another


@pytest.fixture(scope="module")
def reference(shards):
    """An epoch of our loader: the images that everybody should show."""
    contender = ours("ours", shards, OF_PIXELS)
    found = images(contender)
    contender.close()
    return found


def open_other(kind, shards, files, conditions=CONDITIONS):
    if kind == "torchvision":
        return torchvision_folder(kind, files, shards.manifest.recipe, conditions)
    if kind == "webdataset":
        return webdataset_shards(kind, shards, conditions)
    require("dali")
    return plain_dali(kind, shards, conditions)


@pytest.mark.parametrize("kind", ["torchvision", "webdataset", "dali"])
def test_others_show_the_same_images_epoch_after_epoch(kind, shards, files, reference):
    contender = open_other(kind, shards, files)
    try:
        assert next(contender.batches).shape == FLOATS
        images(contender, COUNT // BATCH - 1)
        assert_same_images(images(contender), reference, mean=1)
    finally:
        contender.close()
    ended = time.monotonic() + 20
    while any("spawn_main" in " ".join(child.cmdline()) for child in psutil.Process().children()):
        assert time.monotonic() < ended, "worker processes were left running"
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [
        ("original", torch.float32),
        ("jpeg", torch.uint8),
        ("raw", torch.float32),
        ("cache", torch.uint8),
    ],
)
def test_each_form_of_the_set_shows_the_same_images(kind, dtype, packed, reference):
    conditions = replace(CONDITIONS, dtype=dtype)
    if kind == "cache":
        contender = cached(kind, packed["original"], conditions)
    else:
        contender = ours(kind, packed[kind], conditions)
    first = next(contender.batches)
    assert first.shape == (PIXELS if dtype == torch.uint8 else FLOATS)
    assert first.dtype == dtype
    begun = 2 if kind == "cache" else 1  # filling it takes the first batch of its second epoch
    images(contender, COUNT // BATCH - begun)
    assert_same_images(images(contender), reference, mean=2 if kind == "jpeg" else 0)
    contender.close()


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_decoding_on_the_host_gives_the_pixels_of_a_cpu(device, shards, reference):
    require("dali")
    conditions = replace(CONDITIONS, device=torch.device(device))
    contenders = list(decoded_on_host(shards, conditions))
    assert [each.name.split()[4] for each in contenders] == ["dali-cpu", "threads"]
    for contender in contenders:
        assert np.array_equal(images(contender), reference)
        batch = next(contender.batches)
        assert (batch.shape, batch.dtype, batch.device.type) == (PIXELS, torch.uint8, device)
        contender.close()
    decoder = HostDecoder(shards, conditions)
    (pixels,) = decoder.decode(islice(read_batches(shards, conditions), 1))
    assert pixels.is_pinned() == (device == "cuda")
    decoder.close()


@pytest.mark.parametrize(
    ("recipe", "size"),
    [
        (Recipe(crop=108), SIZE),
        (Recipe(crop=108, fit="stretch"), (32, 48)),
        (Recipe(fit="pad:#0ac81e"), (80, 64)),
    ],
    ids=["crop", "stretch", "pad"],
)
def test_a_crop_of_the_sets_own_and_its_fit_are_what_all_see(tmp_path, recipe, size):
    require("dali")
    shards = pack_pictures(tmp_path, FACES, recipe=recipe)
    files = write_images(shards, tmp_path / "files")
    raw = pack_as("raw", shards, files, size, tmp_path / "raw", 1)
    made = raw.manifest.recipe
    assert (made.crop, made.fit, made.size) == (recipe.crop, recipe.fit, size)
    originals = ours("ours", shards, replace(OF_PIXELS, image_size=size))
    reference = images(originals)
    originals.close()
    stored = ours("raw", raw, replace(CONDITIONS, image_size=size))
    assert_same_images(images(stored), reference, mean=0)
    stored.close()
    contender = open_other("dali", shards, files, replace(CONDITIONS, image_size=size))
    assert_same_images(images(contender), reference, mean=1)
    contender.close()
    # As the DataLoader's processes apply it
    transform = _transform(recipe, size)
    transformed = [transform(Image.open(path)) for path in sorted((files / "images").iterdir())]
    found = to_uint8(torch.stack(transformed)).numpy().astype(int)
    assert_same_images(found, reference, mean=1)


@pytest.mark.parametrize(("batch_size", "workers", "ahead"), [(8, 9, 4), (16, 2, 2)])
def test_webdatasets_processes_have_a_shard_and_a_batch_each(shards, batch_size, workers, ahead):
    conditions = replace(CONDITIONS, batch_size=batch_size, workers=workers)
    assert webdataset_shards("webdataset", shards, conditions).ahead == ahead  # starts nothing


def test_a_cache_that_does_not_fit_is_refused(shards, monkeypatch):
    monkeypatch.setattr("pipeline.loading.open.free_memory", lambda device: 1000)
    with pytest.raises(UserError) as refused:
        cached("cache", shards, CONDITIONS)
    assert_four_parts(refused.value, "--images", "free")


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        ("original", ["read", "decode", "resize", "normalise"]),
        ("raw", ["read", "decode", "normalise"]),
    ],
)
def test_the_stages_end_with_the_loader(kind, names, packed):
    require("dali")
    stages = cumulative(packed[kind], CONDITIONS)
    assert [stage.name for stage in stages] == names
    loader = ours("loader", packed[kind], CONDITIONS)
    try:
        encoded = next(stages[0].batches)
        assert len(encoded) == BATCH
        assert all(sample.dtype == np.uint8 for sample in encoded)
        for stage in stages[1:-2]:  # images of their own sizes, in DALI's memory
            (decoded,) = next(stage.batches)
            assert decoded.at(0).shape == (218, 178, 3)
        pixels = next(stages[-2].batches)
        assert pixels.shape == PIXELS
        assert torch.equal(next(stages[-1].batches), next(loader.batches))
    finally:
        for contender in (*stages, loader):
            contender.close()


def test_the_first_shards_are_a_set_of_their_own(shards):
    assert len(first_shards(shards, 1)) == 8
    assert len(first_shards(shards, 8)) == 8
    assert first_shards(shards, 9) == shards
    assert first_shards(shards, 1000) == shards
    part = first_shards(shards, 1)
    contender = ours("part", part, CONDITIONS)
    assert images(contender, 2).shape == (8, SIZE, SIZE, 3)
    contender.close()


def test_no_room_for_the_files_is_told(shards, tmp_path, monkeypatch):
    def full(path, data):
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr("pathlib.Path.write_bytes", full)
    with pytest.raises(UserError) as refused:
        write_images(shards, tmp_path / "files")
    assert_four_parts(refused.value, "No space left", "TMPDIR", "--images")
