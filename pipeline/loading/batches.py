"""The interface and the state that every loader has."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from dataclasses import dataclass
from typing import Any, Self

import torch

from pipeline.errors import UserError
from pipeline.images.labels import LabelSpace
from pipeline.images.pixels import to_signed, to_signed_alone


@dataclass(frozen=True)
class LabelsOnDevice:
    """The labels of a whole set."""

    space: LabelSpace
    table: torch.Tensor
    """On the device, by row: int64 (n,) classes, or float32 (n, k) attributes of 0 and 1."""
    first: int = 0
    """This rank's first row."""


class Batches(ABC):
    """Batches on the device, without end.

    An epoch is `steps_per_epoch` batches; within it no image occurs twice.

    Args:
        batch_size: images in a batch, on this rank.
        steps_per_epoch: batches in an epoch.
        dtype: float32 for batches (B, C, H, W) in [-1, 1], channels_last; uint8 for stored pixels,
            (B, H, W, C).
        identity: everything that batch b of epoch e depends on, by name; see
            `LoaderOptions.identity`.
        description: one line for people: which loader this is, and why.
        labels: the set's, if each batch is to come with its images' labels: int64 (B,), or float32
            (B, k) of 0 and 1.
    """

    def __init__(
        self,
        batch_size: int,
        steps_per_epoch: int,
        dtype: torch.dtype,
        identity: dict[str, str | int],
        description: str,
        labels: LabelsOnDevice | None = None,
    ) -> None:
        self.batch_size, self.steps_per_epoch = batch_size, steps_per_epoch
        self.dtype, self.identity, self.description = dtype, identity, description
        self.labels = labels
        self.epoch = 0
        self.batch = 0
        """Place in the epoch of the batch that comes next."""
        self._taken = self._closed = False
        self._ahead: deque[tuple[torch.Tensor, torch.Tensor]] = deque()

    def __iter__(self) -> Self:
        return self

    @property
    def label_space(self) -> LabelSpace | None:
        """What the images are labelled with; None if batches come without labels."""
        return None if self.labels is None else self.labels.space

    @property
    def label_table(self) -> torch.Tensor | None:
        """The labels of the whole set, on the device: int64 (n,), or float32 (n, k) of 0 and 1."""
        return None if self.labels is None else self.labels.table

    def __next__(self) -> Any:
        """The next batch, in `dtype`; with its labels, (images, labels).

        Raises:
            UserError: the data is damaged, or does not come in time.
            StopIteration: it is closed.
        """
        images, places = self._next(None)
        images = self._converted(images)
        return images if self.labels is None else (images, self._labels_at(places, None))

    def fill(self, buffer: torch.Tensor, labels: torch.Tensor | None = None) -> None:
        """Put the next batch into static buffers, on the current stream: no allocation of images.

        Args:
            buffer: (B, H, W, C) uint8 on the device, contiguous.
            labels: int64 (B,) or float32 (B, k) on the device, for batches with labels.
        """
        assert not self.dtype.is_floating_point, "static buffers take uint8"
        assert (labels is None) == (self.labels is None), "a buffer for labels, if there are some"
        places = self._next(buffer)[1]
        if labels is not None:
            self._labels_at(places, labels)

    def look_ahead(self, count: int) -> list[torch.Tensor]:
        """The next batches of this epoch, which come all the same; the position stays.

        A failure after the first of them ends the list, and comes again when its turn does.

        Args:
            count: of batches, at most.

        Returns:
            Each (B, H, W, C) uint8.

        Raises:
            UserError: as `__next__` does.
        """
        begun = self.batch
        try:
            while self.batch < min(begun + count, self.steps_per_epoch):
                self._ahead.append(self.take(None))
                self.batch += 1
        except Exception:
            if not self._ahead:
                raise
        finally:
            self.batch, self._taken = begun, True
        return [images for images, _ in self._ahead]

    def _converted(self, images: torch.Tensor) -> torch.Tensor:
        if not self.dtype.is_floating_point:
            return images
        if images.is_floating_point():
            return images.permute(0, 3, 1, 2)
        return to_signed(images) if images.device.type != "cpu" else to_signed_alone(images)

    def _labels_at(self, places: torch.Tensor, out: torch.Tensor | None) -> torch.Tensor:
        assert self.labels is not None, "only batches with labels come here"
        table = self.labels.table
        if places.device != table.device:
            pinned = places.pin_memory() if table.device.type == "cuda" else places
            places = pinned.to(table.device, non_blocking=True)
        return torch.index_select(table[self.labels.first :], 0, places, out=out)

    def state_dict(self) -> dict[str, Any]:
        """The position, in plain values: what `load_state_dict` needs to give the next batch."""
        return {"epoch": self.epoch, "batch": self.batch, "identity": dict(self.identity)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume from a state of this process or another one, before the first batch is taken.

        Raises:
            UserError: it is the state of other batches than these.
            RuntimeError: a batch was taken before.
        """
        if self._taken:
            raise RuntimeError("a loader that has given batches does not go back")
        self._refuse_other(state["identity"])
        self.epoch, self.batch = state["epoch"], state["batch"]

    def close(self) -> None:
        """Stop all threads and let go of files and memory."""
        self._closed = True
        self._close()

    @abstractmethod
    def _close(self) -> None: ...

    @abstractmethod
    def take(self, out: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        """Batch `batch` of epoch `epoch`, for `__next__` and `fill`, which then count it.

        Args:
            out: where to put the images, or None.

        Returns:
            The images, (B, H, W, C), and their places among this rank's rows, (B,) int64, on any
            device.
        """

    def _next(self, out: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        if self._closed:
            raise StopIteration
        if self._ahead:
            images, places = self._ahead.popleft()
            images = images if out is None else out.copy_(images)
        else:
            images, places = self.take(out)
        self._taken = True
        self.batch += 1
        if self.batch == self.steps_per_epoch:
            self.epoch, self.batch = self.epoch + 1, 0
        return images, places

    def _refuse_other(self, saved: dict[str, Any]) -> None:
        ours = self.identity
        names = [name for name in ours | saved if saved.get(name) != ours.get(name)]
        if names:
            raise UserError(
                "the saved position of the data",
                ", ".join(f"{name} {saved.get(name, 'left out')}" for name in names),
                ", ".join(f"{name} {ours.get(name, 'left out')}" for name in names),
                "resume with the shard set and the options that the run began with",
            )
