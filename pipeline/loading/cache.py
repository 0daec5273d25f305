"""The resident cache: the whole decoded set in memory, so that later epochs decode nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import torch

from pipeline.images.size import sides
from pipeline.loading.batches import Batches
from pipeline.loading.decoders import Decoder
from pipeline.loading.loader import Loader
from pipeline.loading.options import LoaderOptions
from pipeline.shards.order import Rows, Schedule
from pipeline.shards.shard_set import ShardSet

Progress = Callable[[int, int], None]
"""Called with the images done and the images in all."""


class ResidentCache(Batches):
    """Streams the first epoch and keeps it; gathers every later one.

    Its batches are those that the loader would give, in each epoch, to the bit: images lie by their
    row in the set, and the same schedule says which rows make up a batch.

    Args:
        where: the memory that holds the images: the options' own device, or the CPU's.
        progress: called while what the first epoch left out is read: nearly all, after a resume.

    Raises:
        UserError: as the loader says.
    """

    def __init__(
        self,
        shards: ShardSet,
        options: LoaderOptions,
        where: torch.device,
        progress: Progress = lambda done, total: None,
        decoder: Decoder | None = None,
    ) -> None:
        as_stored = replace(options, dtype=torch.uint8)
        self._loader = loader = Loader(shards, as_stored, decoder, self._filling)
        super().__init__(
            loader.batch_size,
            loader.steps_per_epoch,
            options.dtype,
            loader.identity,
            loader.description,
            loader.labels,
        )
        self._schedule, self._progress = loader.schedule, progress
        self._device = options.device
        width, height = sides(options.image_size)
        shape = (len(self._schedule), height, width, options.channels)
        self._images = torch.empty(shape, dtype=torch.uint8, device=where)
        self._filled = 0
        self._complete = False
        self._order: torch.Tensor | None = None
        self._next_order: Future[torch.Tensor] | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="order")

    def _close(self) -> None:
        self._loader.close()
        self._thread.shutdown(cancel_futures=True)
        self._images = torch.empty(0, dtype=torch.uint8)

    def take(self, out: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        if self.epoch == 0:
            return self._take_and_keep(out)
        if not self._complete:
            self._fill_up()
        return self._gather(out)

    def _filling(self, schedule: Schedule) -> Iterator[Rows]:
        """What is left of the first epoch, then all rows that it did not contain, in set order."""
        begun = schedule.rows(0, self.batch) if self.epoch == 0 else np.empty(0, np.int64)
        mine = np.arange(len(schedule)) + schedule.first
        return iter([begun, np.setdiff1d(mine, begun)])

    def _take_and_keep(self, out: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        images, places = self._loader.take(out)
        self._images.index_copy_(0, places.to(self._images.device), images.to(self._images.device))
        self._filled += len(places)
        return images, places

    def _fill_up(self) -> None:
        """Read what the first epoch left out; in a resumed process, that is nearly all."""
        while self._filled < len(self._schedule):
            self._take_and_keep(None)
            self._progress(self._filled, len(self._schedule))
        self._loader.close()
        self._complete = True

    def _gather(self, out: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        if self._order is None or self.batch == 0:
            self._order = self._order_of_epoch()
        places = self._order[self.batch * self.batch_size :][: self.batch_size]
        if self._images.device.type != "cpu":
            if out is None:
                return self._images[places], places
            return torch.index_select(self._images, 0, places, out=out), places
        gathered = torch.empty(
            (self.batch_size, *self._images.shape[1:]),
            dtype=torch.uint8,
            pin_memory=self._device.type == "cuda",
        )
        # One thread: torch would wake all of its own for a fifth of a millisecond
        np.take(self._images.numpy(), places.numpy(), axis=0, out=gathered.numpy(), mode="clip")
        if out is None:
            return gathered.to(self._device, non_blocking=True), places
        return out.copy_(gathered, non_blocking=True), places

    def _order_of_epoch(self) -> torch.Tensor:
        """This epoch's order, where the images are; the next one's is being drawn meanwhile."""
        drawn = self._next_order.result() if self._next_order else self._draw(self.epoch)
        self._next_order = self._thread.submit(self._draw, self.epoch + 1)
        return drawn.to(self._images.device, non_blocking=True)

    def _draw(self, epoch: int) -> torch.Tensor:
        return torch.from_numpy(self._schedule.order(epoch) - self._schedule.first)
