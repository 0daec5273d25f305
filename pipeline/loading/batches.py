"""The interface and the state that every loader has."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, Self

import torch

from pipeline.errors import UserError
from pipeline.images.pixels import to_signed, to_signed_alone


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
    """

    def __init__(
        self,
        batch_size: int,
        steps_per_epoch: int,
        dtype: torch.dtype,
        identity: dict[str, str | int],
        description: str,
    ) -> None:
        self.batch_size, self.steps_per_epoch = batch_size, steps_per_epoch
        self.dtype, self.identity, self.description = dtype, identity, description
        self.epoch = 0
        self.batch = 0
        """Place in the epoch of the batch that comes next."""
        self._taken = self._closed = False

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> torch.Tensor:
        """The next batch, in `dtype`.

        Raises:
            UserError: the data is damaged, or does not come in time.
            StopIteration: it is closed.
        """
        images = self._take_next(None)
        if not self.dtype.is_floating_point:
            return images
        if images.is_floating_point():
            return images.permute(0, 3, 1, 2)
        return to_signed(images) if images.device.type != "cpu" else to_signed_alone(images)

    def fill(self, buffer: torch.Tensor) -> None:
        """Put the next batch into a static buffer, on the current stream: one copy, no allocation.

        Args:
            buffer: (B, H, W, C) uint8 on the device, contiguous.
        """
        assert not self.dtype.is_floating_point, "static buffers take uint8"
        self._take_next(buffer)

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
    def _take(self, out: torch.Tensor | None) -> torch.Tensor:
        """Batch `batch` of epoch `epoch`, (B, H, W, C); into `out` where that is given."""

    def _take_next(self, out: torch.Tensor | None) -> torch.Tensor:
        if self._closed:
            raise StopIteration
        images = self._take(out)
        self._taken = True
        self.batch += 1
        if self.batch == self.steps_per_epoch:
            self.epoch, self.batch = self.epoch + 1, 0
        return images

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
