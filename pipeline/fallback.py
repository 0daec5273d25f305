"""The loader for machines where DALI cannot run: webdataset reads, torchvision transforms."""

from __future__ import annotations

import io
import random
import tarfile
from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from itertools import islice
from typing import Any, Self

import torch
from PIL import Image, UnidentifiedImageError
from torchvision.transforms import functional as transforms
from webdataset.filters import shuffle
from webdataset.tariterators import group_by_keys, tar_file_expander

from pipeline.batches import damage_error, default_workers, steps_per_epoch
from pipeline.errors import UserError
from pipeline.manifest import ShardSet, pack_command
from pipeline.order import permutation
from pipeline.pixels import to_signed

SHUFFLE_BUFFER = 4096
"""As in the DALI graph."""

BATCHES_AHEAD = 2
"""Batches whose images are being decoded while one is in use."""


class FallbackLoader:
    """The interface of `pipeline.batches.Batches` without DALI; the arguments are `Loader`'s.

    Threads decode (Pillow releases the interpreter's lock while it does), so there is no fork, no
    shared memory, and nothing to hang on.

    Args:
        reason: why this loader is in use, for its description.

    Raises:
        UserError: the batch is larger than this rank's share of the set.
    """

    def __init__(
        self,
        shards: ShardSet,
        batch_size: int,
        image_size: int = 64,
        device: torch.device | str = "cpu",
        seed: int = 0,
        dtype: torch.dtype = torch.float32,
        rank: int = 0,
        num_ranks: int = 1,
        channels: int = 3,
        workers: int | None = None,
        reason: str = "asked for",
    ) -> None:
        shards.require_size(image_size)
        self.batch_size = batch_size
        self.steps_per_epoch = steps_per_epoch(len(shards), batch_size, num_ranks)
        workers = workers or default_workers()
        self.description = f"webdataset + torchvision, {workers} threads, because {reason}"
        self._shards, self._seed = shards, seed
        self._rank, self._num_ranks = rank, num_ranks
        self._image_size, self._channels = image_size, channels
        self._device, self._dtype = torch.device(device), dtype
        self._threads = ThreadPoolExecutor(workers, thread_name_prefix="decode")
        self._encoded = self._encoded_batches()
        self._ahead: deque[list[Future[torch.Tensor]]] = deque()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> torch.Tensor:
        while len(self._ahead) <= BATCHES_AHEAD:
            batch = next(self._encoded)
            self._ahead.append([self._threads.submit(self._decode, sample) for sample in batch])
        pixels = torch.stack([image.result() for image in self._ahead.popleft()])
        pixels = pixels.to(self._device)
        return to_signed(pixels) if self._dtype.is_floating_point else pixels

    def close(self) -> None:
        self._encoded.close()
        self._ahead.clear()
        self._threads.shutdown(wait=True, cancel_futures=True)

    def _encoded_batches(self) -> Generator[list[dict[str, Any]], None, None]:
        epoch = 0
        while True:
            mine = islice(self._epoch(epoch), self._rank, None, self._num_ranks)
            for _ in range(self.steps_per_epoch):
                yield self._full_batch(mine)
            epoch += 1

    def _full_batch(self, samples: Iterator[dict[str, Any]]) -> list[dict[str, Any]]:
        try:
            batch = list(islice(samples, self.batch_size))
        except tarfile.TarError as error:
            raise damage_error(self._shards, f"a damaged tar ({error})") from error
        if len(batch) < self.batch_size:  # tarfile takes a damaged header for the archive's end
            raise damage_error(self._shards, "a tar that ends before its last sample")
        return batch

    def _epoch(self, epoch: int) -> Iterator[dict[str, Any]]:
        """All samples once, shards in a random order and samples through a shuffle buffer."""
        order = permutation(len(self._shards.tars), self._seed, epoch).tolist()
        picks = random.Random(f"{self._seed}/{epoch}")
        mix = shuffle(SHUFFLE_BUFFER, initial=SHUFFLE_BUFFER, rng=picks)
        with closing(self._open_tars(order)) as tars:  # at once, also when an epoch breaks off
            yield from mix(group_by_keys(tar_file_expander(tars)))

    def _open_tars(self, order: list[int]) -> Generator[dict[str, Any], None, None]:
        # Streams, not names: webdataset would take a name like "pipe:…" for a command to run
        for number in order:
            path = self._shards.tars[number]
            with path.open("rb") as stream:
                yield {"url": str(path), "stream": stream}

    def _decode(self, sample: dict[str, Any]) -> torch.Tensor:
        """Decode one sample to (S, S, C) uint8, as torchvision's Resize and CenterCrop do."""
        try:
            image = self._open(sample).convert("RGB" if self._channels == 3 else "L")
        except (KeyError, OSError, SyntaxError, ValueError) as error:
            unknown = isinstance(error, UnidentifiedImageError)
            raise UserError(
                sample["__url__"],
                f"sample {sample['__key__']} is "
                + ("not an image" if unknown else f"damaged: {error}"),
                "shards as tools/make_shards.py writes them",
                f"pack the set again: {pack_command(self._shards.folder)}",
            ) from error
        image = transforms.resize(image, self._image_size)
        image = transforms.center_crop(image, self._image_size)
        pixels: torch.Tensor = transforms.pil_to_tensor(image)
        return pixels.permute(1, 2, 0)

    def _open(self, sample: dict[str, Any]) -> Image.Image:
        recipe = self._shards.manifest.recipe
        if recipe.store == "raw":
            assert recipe.size is not None, "raw stores have a size"
            return Image.frombytes("RGB", (recipe.size, recipe.size), sample["raw"])
        image: Image.Image = Image.open(io.BytesIO(sample["jpg"]))
        if recipe.store == "original" and isinstance(recipe.crop, int):
            image = transforms.center_crop(image, recipe.crop)
        return image
