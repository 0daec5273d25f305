"""What is compared: our loader and those that people have, over a set and other forms of it."""

from __future__ import annotations

import math
from collections.abc import Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import replace
from functools import partial
from itertools import chain, count
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from dcgan.profiling.measuring import Contender
from pipeline.errors import UserError
from pipeline.images.fit import CROP, STRETCH, padding_of
from pipeline.images.pixels import MEAN, STD
from pipeline.images.size import ImageSize, sides
from pipeline.loading.cache import ResidentCache
from pipeline.loading.decoders import BATCHES_AHEAD, Decoder, ThreadDecoder
from pipeline.loading.loader import READY, Loader, open_decoder
from pipeline.loading.open import place_cache
from pipeline.loading.options import LoaderOptions
from pipeline.loading.reader import Encoded, Reader
from pipeline.packing.pack import Packing, pack
from pipeline.packing.sources.open import open_source
from pipeline.shards.manifest import Recipe, make_recipe
from pipeline.shards.order import Schedule, permutation
from pipeline.shards.shard_set import ShardSet

SET, RAW, JPEG, CACHE = "the set", "--store raw", "--store jpeg", "the cache"
"""What our loader reads: the set as it was packed, the same images in another store, or its own
memory from the second epoch on. Every table calls them so."""

AHEAD = BATCHES_AHEAD + 1 + READY
"""Batches that our loader has: the decoder's, one in the hands of its thread, and the queue's."""

DATALOADER_AHEAD = 2
"""Batches that a worker of torch's DataLoader prepares, by default."""

WEBDATASET_SHUFFLE = 1000
"""Samples in webdataset's shuffle buffer, as in its documentation."""

DALI_SHUFFLE = 1024
"""Samples in the shuffle buffer of DALI's reader: its default."""

DALI_AHEAD = 3
"""Batches that a plain DALI pipeline has: two that it prepared, by default, and one of its reader's
prefetching."""

FOLDER = "images"
"""Sub-folder for the written files: ImageFolder wants one for each class, and there is one."""


def ours(
    name: str,
    shards: ShardSet,
    conditions: LoaderOptions,
    decoder: Decoder | None = None,
) -> Contender:
    """This project's loader, without a cache."""
    loader = Loader(shards, conditions, decoder)
    return Contender(name, loader, conditions.batch_size, AHEAD, loader.close, loader.description)


class HostDecoder(Decoder):
    """What decodes for a CPU, into memory that a GPU copies from while the host goes on.

    Pinning copies the pixels once more, a megabyte and a half in a batch of 128 small images
    (docs.pytorch.org/docs/stable/notes/cuda.html, "Use pinned memory buffers").

    Args:
        shards: a set of JPEGs.
        options: of the loader.
    """

    def __init__(self, shards: ShardSet, options: LoaderOptions) -> None:
        self._pinned = options.device.type == "cuda"
        self._decoder = open_decoder(shards, replace(options, device=torch.device("cpu")))
        self.name, self.description = self._decoder.name, self._decoder.description

    def decode(self, encoded: Iterator[list[Encoded]]) -> Generator[torch.Tensor, None, None]:
        with closing(self._decoder.decode(encoded)) as batches:
            for batch in batches:
                yield batch.pin_memory() if self._pinned else batch

    def close(self) -> None:
        self._decoder.close()


def decoded_on_host(shards: ShardSet, conditions: LoaderOptions) -> Iterator[Contender]:
    """Our loader with a CPU's decoders, whose pixels are copied to the device.

    DALI decodes in several threads and one resizes what they give; each of our own does both.
    """
    threads = replace(conditions, device=torch.device("cpu")).threads
    options = replace(conditions, dtype=torch.uint8, workers=threads)
    decoders = HostDecoder(shards, options), ThreadDecoder(shards, options)
    for decoder in {each.name: each for each in decoders}.values():  # one and the same without DALI
        name = f"decoded on the host, {decoder.name} × {threads}, uint8"
        yield ours(name, shards, options, decoder)


def read_batches(
    shards: ShardSet, conditions: LoaderOptions
) -> Generator[list[Encoded], None, None]:
    """The samples of one batch after another, as the loader reads them."""
    schedule = Schedule.of(shards, conditions.batch_size, conditions.seed)
    with closing(Reader(shards)) as reader:
        for epoch in count():
            for rows in schedule.batches(epoch):
                yield reader.read(rows)


def cached(name: str, shards: ShardSet, conditions: LoaderOptions) -> Contender:
    """The resident cache, from its second epoch on: the first one fills it here.

    Raises:
        UserError: the decoded set does not fit in memory.
    """
    where, why = place_cache(len(shards), conditions)
    if where is None:
        raise UserError("--images", why, "images that fit in memory", "use fewer --images")
    cache = ResidentCache(shards, conditions, where)
    while cache.epoch == 0:
        next(cache)
    next(cache)  # reads what the first epoch left out
    return Contender(name, cache, conditions.batch_size, 0, cache.close)


def torchvision_folder(
    name: str, images: Path, recipe: Recipe, conditions: LoaderOptions
) -> Contender:
    """The loader of PyTorch's DCGAN tutorial: ImageFolder and DataLoader.

    Its epochs follow one another without a gap, which the tutorial's do not: in its favour.

    Args:
        name: of the contender.
        images: a folder with one sub-folder of image files.
        recipe: of the set that they are from: it says which part of them is seen.
        conditions: its options.
    """
    from torchvision.datasets import ImageFolder

    dataset = ImageFolder(str(images), _transform(recipe, conditions.image_size))
    order = chain.from_iterable(
        permutation(len(dataset), conditions.seed, epoch).tolist() for epoch in count()
    )
    size, workers = conditions.batch_size, conditions.threads
    return _dataloader(name, dataset, size, conditions, workers, order)


def webdataset_shards(name: str, shards: ShardSet, conditions: LoaderOptions) -> Contender:
    """Webdataset reads the tars, torchvision does the rest, in the DataLoader's processes."""
    import webdataset as wds

    transform = _transform(shards.manifest.recipe, conditions.image_size)
    tars = [str(tar.resolve()) for tar in shards.tars]
    dataset = (
        wds.WebDataset(tars, shardshuffle=len(tars), seed=conditions.seed)
        .shuffle(WEBDATASET_SHUFFLE)
        .decode("pilrgb", only=["jpg"])
        .to_tuple("jpg")
        .map_tuple(transform)
        .batched(conditions.batch_size, partial=False)
        .repeat()
    )
    # Each process reads tars of its own, and needs as many samples as make a batch
    smallest = min(shard.samples for shard in shards.manifest.shards)
    workers = min(conditions.threads, len(tars)) if smallest >= conditions.batch_size else 1
    return _dataloader(name, dataset, None, conditions, workers)


def shared_by_dataloader(conditions: LoaderOptions) -> int:
    """Bytes of /dev/shm that one DataLoader's batches may take, each worker's and the one in use.

    Where there are fewer, its workers die by SIGBUS, or it does not even start.
    """
    c = conditions
    batches = DATALOADER_AHEAD * c.threads + 1
    return batches * c.batch_size * 3 * math.prod(sides(c.image_size)) * torch.float32.itemsize


def plain_dali(name: str, shards: ShardSet, conditions: LoaderOptions) -> Contender:
    """DALI by itself: its reader, and decode, resize and crop as its examples chain them."""
    from nvidia.dali import fn, types
    from nvidia.dali.pipeline import Pipeline
    from torch.utils.dlpack import from_dlpack

    on_gpu = conditions.device.type == "cuda"
    (width, height), recipe = sides(conditions.image_size), shards.manifest.recipe
    modes = {CROP: "not_smaller", STRETCH: "stretch"}
    graph = Pipeline(
        batch_size=conditions.batch_size,
        num_threads=conditions.threads,
        device_id=(conditions.device.index or 0) if on_gpu else None,
        seed=conditions.seed,
    )
    with graph:
        encoded = fn.readers.webdataset(
            paths=[str(tar) for tar in shards.tars],
            index_paths=[str(index) for index in shards.indexes],
            ext=["jpg"],
            random_shuffle=True,
            initial_fill=DALI_SHUFFLE,
        )
        images = fn.decoders.image(
            encoded,
            device="mixed" if on_gpu else "cpu",
            output_type=types.RGB,
            jpeg_fancy_upsampling=True,
        )
        if crop := recipe.reader_crop:
            images = fn.crop(images, crop=(crop, crop))
        # With subpixel_scale, the default, it sees other pixels than torchvision does
        how = modes.get(recipe.fit, "not_larger")
        images = fn.resize(images, size=(height, width), mode=how, subpixel_scale=False)
        if how == "not_larger":
            colour = padding_of(recipe.fit) or (0, 0, 0)  # it has no pixels of the edge to pad with
            outside = {"out_of_bounds_policy": "pad", "fill_values": colour}
            images = fn.crop(images, crop=(height, width), **outside)
        middle = {"crop": (height, width), "mean": [MEAN] * 3, "std": [STD] * 3}
        graph.set_outputs(fn.crop_mirror_normalize(images, dtype=types.FLOAT, **middle))
    graph.build()

    def batches() -> Generator[torch.Tensor, None, None]:
        while True:
            (output,) = graph.run()
            yield from_dlpack(output.as_tensor())

    running = batches()
    return Contender(name, running, conditions.batch_size, DALI_AHEAD, running.close)


def _dataloader(
    name: str,
    dataset: Dataset[Any],
    batch_size: int | None,
    conditions: LoaderOptions,
    workers: int,
    order: Iterable[int] | None = None,
) -> Contender:
    """A DataLoader in so many processes; without a `batch_size`, the data set makes batches."""
    loader: DataLoader[Any] = DataLoader(
        dataset,
        batch_size,
        sampler=order,
        num_workers=workers,
        # A fork would copy the threads' locks of DALI and torch in mid-air
        multiprocessing_context="spawn",
        pin_memory=conditions.device.type == "cuda",
    )

    def batches() -> Generator[torch.Tensor, None, None]:
        for images, *_ in loader:
            yield images.to(conditions.device, non_blocking=True)

    running = batches()
    ahead = DATALOADER_AHEAD * workers
    # Closed, the generator lets go of the DataLoader's iterator, which ends its processes
    return Contender(name, running, conditions.batch_size, ahead, running.close)


def _transform(recipe: Recipe, size: ImageSize) -> Any:
    """The tutorial's, after the set's own crop; Pillow's own fit where the tutorial has none."""
    from PIL import Image, ImageOps
    from torchvision import transforms

    box, smooth = sides(size), Image.Resampling.BILINEAR
    fit: list[Any] = [transforms.Resize(size), transforms.CenterCrop(size)]
    if recipe.fit == STRETCH:
        fit = [transforms.Resize((box[1], box[0]))]
    elif recipe.fit != CROP:
        colour = padding_of(recipe.fit) or (0, 0, 0)  # Pillow has no pixels of the edge to pad with
        fit = [partial(ImageOps.pad, size=box, method=smooth, color=colour)]
    elif not isinstance(size, int):
        fit = [partial(ImageOps.fit, size=box, method=smooth)]
    if crop := recipe.reader_crop:
        fit = [transforms.CenterCrop(crop), fit[0]]
    normalise = transforms.Normalize((0.5,) * 3, (0.5,) * 3)
    return transforms.Compose([*fit, transforms.ToTensor(), normalise])


# Other forms of a set


def first_shards(shards: ShardSet, images: int) -> ShardSet:
    """The set as if it ended with the shard that brings it to so many images.

    Packing shuffles, so these are a random sample of the whole.
    """
    kept, samples = [], 0
    for shard in shards.manifest.shards:
        if samples >= images:
            break
        kept.append(shard)
        samples += shard.samples
    manifest = shards.manifest.model_copy(update={"shards": tuple(kept), "samples": samples})
    return replace(shards, manifest=manifest)


def write_images(shards: ShardSet, folder: Path) -> Path:
    """Write the samples of a JPEG set as files, in a sub-folder of `folder`; returns `folder`.

    Raises:
        UserError: the set is damaged, or there is no room.
    """
    assert shards.manifest.recipe.store != "raw", "raw samples are no image files"
    (folder / FOLDER).mkdir(parents=True)
    try:
        with closing(Reader(shards)) as reader:
            for row in range(len(shards)):
                (data,) = reader.read(np.array([row]))
                (folder / FOLDER / f"{row:08d}.jpg").write_bytes(data.tobytes())
    except OSError as error:
        raise UserError(
            folder,
            error.strerror or str(error),
            f"room for {len(shards):,} image files",
            "use fewer --images, or let TMPDIR name a folder on a larger disk",
        ) from error
    return folder


def pack_as(
    store: Literal["jpeg", "raw"],
    shards: ShardSet,
    images: Path,
    image_size: ImageSize,
    out: Path,
    workers: int,
) -> ShardSet:
    """Pack what `write_images` wrote, so that readers see the same part of each image.

    Args:
        store: of the new set.
        shards: the set that the images are from.
        images: their folder.
        image_size: to store, in pixels.
        out: new folder for the set.
        workers: processes.
    """
    source = open_source(images)
    before = shards.manifest.recipe
    crop = str(before.reader_crop) if before.reader_crop else None
    recipe = make_recipe(store, image_size, crop, None, before.fit, checked=True)
    pack(source, source.members(), out, Packing(recipe, workers=workers))
    return ShardSet.open(out)
