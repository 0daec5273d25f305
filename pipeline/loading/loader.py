"""Batches decoded as they are needed: the loader of the first epoch, and of sets too large to keep.

Beside it stand `ResidentCache` (the decoded set, from the second epoch on) and `SyntheticLoader`
(batches that cost nothing); all are `Batches`.
"""

from __future__ import annotations

import importlib
import sys
import threading
from collections import deque
from collections.abc import Generator, Iterator
from contextlib import closing
from itertools import chain, count
from queue import Empty, SimpleQueue
from typing import Any, Generic, TypeVar

import torch

from pipeline.errors import UserError
from pipeline.images.decode import RejectedError, decode
from pipeline.images.labels import LabelSpace
from pipeline.loading.batches import Batches, LabelsOnDevice
from pipeline.loading.decoders import DecodeError, Decoder, RawDecoder, ThreadDecoder
from pipeline.loading.options import LoaderOptions
from pipeline.loading.reader import Encoded, Reader
from pipeline.remote.files import RemoteFiles
from pipeline.remote.supply import Supply
from pipeline.shards.labels import labels_of_rows, read_labels
from pipeline.shards.order import ReadPlan, Rows, Schedule, batches_of
from pipeline.shards.shard_set import ShardSet

READY = 2
"""Decoded batches that wait for the consumer, besides those that the decoder has in hand."""

CLOSING_PATIENCE = 5.0
"""Seconds for the thread to end by itself; one that is stuck in a read is left behind."""

T = TypeVar("T")


class Loader(Batches):
    """Reads, decodes and resizes a shard set, batch by batch, in a thread that runs ahead.

    Args:
        decoder: for the set's samples; None for the best that this machine can run.
        plan: what is to be read; None for the epochs of a schedule, without end.

    Raises:
        UserError: the batch is larger than this rank's share of the set, the set has fewer pixels
            than asked for, or its files do not fit together.
    """

    def __init__(
        self,
        shards: ShardSet,
        options: LoaderOptions,
        decoder: Decoder | None = None,
        plan: ReadPlan | None = None,
    ) -> None:
        shards.require_size(options.image_size)
        self.shards, self.options = shards, options
        self.schedule = Schedule.of(
            shards, options.batch_size, options.seed, options.rank, options.num_ranks
        )
        self._reader = Reader(shards)
        self.decoder = decoder or open_decoder(shards, options)
        super().__init__(
            options.batch_size,
            self.schedule.steps_per_epoch,
            options.dtype,
            options.identity(shards, self.decoder.name),
            self.decoder.description,
            self._open_labels() if options.labels else None,
        )
        self._plan = plan or self._epochs
        self._supply: Supply | None = None
        self._stage = "decoding"
        self._unreadable: UserError | None = None
        self._prefetcher = Prefetcher(self._decoded(), READY, "loader")

    def _epochs(self, schedule: Schedule) -> Iterator[Rows]:
        """The rows of all epochs from here on, endless."""
        return chain(
            [schedule.rows(self.epoch, self.batch)], map(schedule.rows, count(self.epoch + 1))
        )

    def _encoded(self, ahead: deque[Rows]) -> Iterator[list[Encoded]]:
        """Read the samples of each batch, and note its rows in `ahead`.

        The tars of a remote set are fetched ahead, and let go of where no more is read of them.
        """
        size, self._stage = self.schedule.batch_size, "reading"
        try:
            self._supply = open_supply(self.shards, self.options, self._plan)
            for run, rows in enumerate(self._plan(self.schedule)):
                for number, batch in enumerate(batches_of(rows, size)):
                    for name in self._supply.reached(run, number * size) if self._supply else ():
                        self._reader.forget(name)
                    samples = self._reader.read(batch)
                    ahead.append(batch)
                    self._stage = "decoding"
                    yield samples
                    self._stage = "reading"
        except UserError as error:
            self._unreadable = error  # raised after the batches that were read before

    def _decoded(self) -> Generator[tuple[Rows, Any], None, None]:
        """Decode what is read: this runs in the prefetcher's thread."""
        ahead: deque[Rows] = deque()
        try:
            with closing(self.decoder.decode(self._encoded(ahead))) as batches:
                for decoded in batches:
                    yield ahead.popleft(), decoded
        except DecodeError as error:
            raise self._undecodable(ahead[0], error) from error
        if self._unreadable is not None:
            raise self._unreadable

    def take(self, out: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        """The plan's next batch.

        Raises:
            StopIteration: the plan has ended.
            UserError: a shard or an image is damaged, or nothing came in time.
        """
        while True:
            try:
                rows, decoded = self._prefetcher.take(self.options.data_timeout)
                break
            except TimeoutError:
                # Slow is not stuck: as long as bytes come, the batch will
                if self._supply is None or self._supply.idle > self.options.data_timeout:
                    raise self._stuck() from None
        images = deliver(decoded, self.options.device, out)
        return images, torch.from_numpy(rows - self.schedule.first)

    def _open_labels(self) -> LabelsOnDevice:
        """The set's labels by row, on the device."""
        labels = read_labels(self.shards)
        table = torch.from_numpy(labels_of_rows(labels.values, self._reader.keys))
        dtype = torch.int64 if table.ndim == 1 else torch.float32
        table = table.to(self.options.device, dtype)
        space = LabelSpace(labels.kind, labels.names)
        return LabelsOnDevice(space, table, self.schedule.first)

    def _close(self) -> None:
        files = self.shards.files
        if isinstance(files, RemoteFiles):
            files.ended = True
        # What is stuck is left behind, and what it uses with it
        if self._prefetcher.close(CLOSING_PATIENCE):
            self._reader.close()
            self.decoder.close()
        if self._supply is not None:
            self._supply.close()
        if isinstance(files, RemoteFiles):
            files.ended = False  # it may be read again, by another loader

    def _undecodable(self, rows: Rows, error: DecodeError) -> UserError:
        for row, sample in zip(rows.tolist(), self._reader.read(rows), strict=True):
            try:
                decode(sample.tobytes())
            except RejectedError as fault:
                return self._reader.undecodable(row, fault)
        return UserError(
            self.shards.name,
            f"a batch that does not decode: {error}",
            "images that decode, and the memory to do it in",
            f"look for the image: python tools/check_shards.py {self.shards.name} --decode",
        )

    def _stuck(self) -> UserError:
        return UserError(
            self._reader.tar,
            f"no batch for {self.options.data_timeout:g} s, stuck while {self._stage}",
            "a batch within --data-timeout",
            "see whether the disk, share or store answers; if it is only slow, raise"
            " --data-timeout",
        )


def deliver(decoded: Any, device: torch.device, out: torch.Tensor | None) -> torch.Tensor:
    """Bring a decoded batch to the device, on the current stream, without a wait on the host.

    Torch keeps pinned memory from reuse until the copies from it are over
    (docs.pytorch.org/tutorials/intermediate/pinmem_nonblock.html).

    Args:
        decoded: what a decoder gave.
        device: where to.
        out: where to put it, contiguous; None for a tensor of its own, which a batch that is there
            already is.

    Returns:
        (B, H, W, C) uint8, or float in [-1, 1] where DALI normalised it.
    """
    if isinstance(decoded, torch.Tensor):
        if out is None:
            return decoded.to(device, non_blocking=True)
        return out.copy_(decoded, non_blocking=True)
    from nvidia.dali.plugin.pytorch import feed_ndarray, to_torch_type

    # DALI's buffer waits behind this copy. Exporting it through dlpack would leave its release to a
    # background thread that synchronises the whole device (dali/pipeline/data/dltensor.cc)
    batch = decoded.as_tensor()
    if out is None:
        out = torch.empty(batch.shape(), dtype=to_torch_type[batch.dtype], device=device)
    feed_ndarray(batch, out, cuda_stream=torch.cuda.current_stream(device))
    return out


def open_supply(shards: ShardSet, options: LoaderOptions, plan: ReadPlan) -> Supply | None:
    """Begin to fetch what a plan reads of a remote set, for all ranks of this machine.

    Returns:
        None if the set is on this machine.
    """
    if not isinstance(shards.files, RemoteFiles):
        return None
    here = options.local_ranks if options.access.first else ()
    schedules = [
        Schedule.of(shards, options.batch_size, options.seed, rank, options.num_ranks)
        for rank in here or (options.rank,)
    ]
    return Supply(shards, shards.files, schedules, plan, fetches=options.access.first)


def open_decoder(shards: ShardSet, options: LoaderOptions) -> Decoder:
    """The best decoder that this machine can run, for the samples of a set."""
    if shards.manifest.recipe.store == "raw":
        return RawDecoder(shards, options)
    obstacle = why_not_dali(options.device)
    if obstacle:
        return ThreadDecoder(shards, options, obstacle)
    from pipeline.loading.dali import DaliDecoder

    return DaliDecoder(shards, options)


def why_not_dali(device: torch.device) -> str | None:
    """What keeps DALI from serving this device, or None."""
    if sys.platform != "linux":
        return f"DALI has no wheels for {sys.platform}"
    if device.type not in ("cpu", "cuda"):
        return f"DALI does not know the device {device.type}"
    try:
        importlib.import_module("nvidia.dali.fn")
    except ModuleNotFoundError:
        return "DALI is not installed"
    except (ImportError, OSError, RuntimeError) as error:
        return f"DALI does not load ({error})"
    return None


class Prefetcher(Generic[T]):
    """Runs a generator in a thread of its own, a few items ahead of whoever takes them.

    Args:
        items: run in the thread, from the first `take` on, and closed there; none is an exception.
        ahead: items kept ready.
        name: of the thread.
    """

    def __init__(self, items: Generator[T, None, None], ahead: int, name: str) -> None:
        self._items, self._room = items, threading.Semaphore(ahead)
        self._ready: SimpleQueue[T | BaseException] = SimpleQueue()
        self._end: BaseException | None = None
        """What `take` raises from now on."""
        # A daemon: it may be stuck in a read that never ends, which must not keep the process
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def take(self, timeout: float) -> T:
        """The next item.

        Raises:
            StopIteration: the generator has ended, or this prefetcher is closed.
            TimeoutError: it took longer than `timeout` seconds.
            BaseException: whatever the generator raised.
        """
        if self._end is None:
            if not self._thread.ident:
                self._thread.start()
            try:
                item = self._ready.get(timeout=timeout)
            except Empty:
                raise TimeoutError from None
            if not isinstance(item, BaseException):
                self._room.release()
                return item
            self._end = item
        raise self._end

    def close(self, patience: float) -> bool:
        """End the thread; true if that took no longer than `patience` seconds."""
        self._end = StopIteration()
        self._room.release()  # the thread may wait for it,
        self._ready.put(self._end)  # and somebody for an item
        if self._thread.ident:
            self._thread.join(patience)
        return not self._thread.is_alive()

    def _run(self) -> None:
        end: BaseException = StopIteration()
        try:
            with closing(self._items):
                for item in self._items:
                    self._room.acquire()
                    if self._end is not None:
                        break
                    self._ready.put(item)
        except BaseException as error:
            end = error
        self._ready.put(end)
