"""Several processes that train one model: the ranks, what they agree on, the one all-reduce.

torchrun starts them and sets `RANK`, `LOCAL_RANK` and `WORLD_SIZE`
(docs.pytorch.org/docs/stable/elastic/run.html). Each takes its own share of the set and of every
batch, and has noise of its own; gradients are averaged, so that the weights stay the same on all.
The first rank alone writes and speaks.

Every method that communicates is a collective: all ranks must call it, in the same order. The hosts
communicate over gloo; only gradients are reduced on the devices.
"""

from __future__ import annotations

import os
import pickle
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from datetime import timedelta
from typing import Any, Self, TypeVar

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.rendezvous import rendezvous

from pipeline.errors import UserError, first_line

T = TypeVar("T")

PATIENCE = timedelta(minutes=30)
"""Timeout of a collective: long, as the others may be waiting for the first rank's pictures and
measurements. A rank that died is noticed at once."""


class LostRankError(UserError):
    """Another rank is gone, so no collective can succeed any more."""


class Ranks:
    """This process among those that train together; for one process, collectives cost nothing.

    Args:
        rank: of this process.
        count: of processes.
        local: number of this process on its machine.

    Attributes:
        complete: whether all ranks are still there and in step, so that collectives can succeed.
    """

    def __init__(self, rank: int = 0, count: int = 1, local: int = 0) -> None:
        self.rank, self.count, self.local = rank, count, local
        self.complete = True
        self._agreed: BaseException | None = None
        self._devices: dist.ProcessGroup | None = None

    @classmethod
    @contextmanager
    def joined(cls) -> Iterator[Self]:
        """Join the processes that torchrun started, if it did, and wait for all of them at the end.

        Raises:
            UserError: the others cannot be reached.
        """
        ranks = cls._found()
        try:
            yield ranks
        except BaseException as error:
            ranks.separate(error)
            raise
        finally:
            ranks._leave()  # noqa: SLF001, this class's own

    @classmethod
    def _found(cls) -> Self:
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
        if not os.environ.keys() >= {*names} or os.environ["WORLD_SIZE"] == "1":
            return cls()
        try:
            _join()
        except (RuntimeError, ValueError) as error:
            known = (*names, "MASTER_ADDR", "MASTER_PORT")
            settings = ", ".join(f"{name}={os.environ.get(name)}" for name in known)
            raise UserError(
                f"rank {os.environ['RANK']}",
                f"no connection to the other ranks ({_first_line(error)})",
                "processes that reach each other",
                f"start them with torchrun, which sets {settings}",
            ) from error
        return cls(*(int(os.environ[name]) for name in names))

    def _leave(self) -> None:
        """Wait until the first rank has written everything: torchrun may kill it soon after."""
        if self.count > 1 and self.complete:
            with suppress(LostRankError):
                self.any(False)
            dist.destroy_process_group()

    @property
    def is_first(self) -> bool:
        """Whether this rank writes files and logs."""
        return self.rank == 0

    def reports(self, error: BaseException) -> bool:
        """Whether this rank reports an error: the first does, or the only one that knows of it."""
        return self.is_first or not (self._is_agreed(error) or isinstance(error, LostRankError))

    def separate(self, error: BaseException) -> None:
        """Take part in no more collectives after an error on this rank alone."""
        if not self._is_agreed(error):
            self.complete = self.count == 1

    def _is_agreed(self, error: BaseException) -> bool:
        return self._agreed is not None and self._agreed in (error, error.__cause__)

    def any(self, *flags: bool) -> tuple[bool, ...]:
        """Whether each flag is up on at least one rank.

        Raises:
            LostRankError: a rank is gone.
        """
        if self.count == 1:
            return flags
        raised = torch.tensor(flags, dtype=torch.uint8)
        with self._reaching_all():
            dist.all_reduce(raised, dist.ReduceOp.MAX)
        return tuple(map(bool, raised.tolist()))

    def all(self, flag: bool) -> bool:
        """Whether a flag is up on every rank."""
        return not self.any(not flag)[0]

    @contextmanager
    def together(self) -> Iterator[None]:
        """Raise what fails inside on any rank on all of them: the lowest rank's error.

        Nothing inside may be a collective.
        """
        if self.count == 1 or not self.complete:
            yield
            return
        failure: Exception | None = None
        try:
            yield
        except Exception as error:
            failure = error
        if self.any(failure is not None)[0]:
            self._agreed = self._lowest(failure)
            raise self._agreed

    def first(self, do: Callable[[], T]) -> T | None:
        """Have the first rank do something; if that fails, all ranks raise its error."""
        with self.together():
            return do() if self.is_first else None

    def same(self, value: T) -> T:
        """The first rank's value, on all ranks."""
        values = [value]
        if self.count > 1:
            with self._reaching_all():
                dist.broadcast_object_list(values, src=0)
        return values[0]

    def gather(self, tensor: torch.Tensor) -> torch.Tensor:
        """Stack what each rank has, equally shaped and on the CPU: (ranks, ...)."""
        if self.count == 1:
            return tensor.unsqueeze(0)
        gathered = [torch.empty_like(tensor) for _ in range(self.count)]
        with self._reaching_all():
            dist.all_gather(gathered, tensor)
        return torch.stack(gathered)

    def mean(self, rows: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Average arrays of one shape."""
        if self.count == 1:
            return rows
        total = torch.from_numpy(rows.copy())
        with self._reaching_all():
            dist.all_reduce(total)
        return np.asarray(total / self.count, dtype=np.float32)

    def require_same(self, what: str, digest: Callable[[], str], remedy: str) -> None:
        """Check that every rank has what the first one has.

        Args:
            what: in words.
            digest: of it; not called where there is nobody to compare with.
            remedy: where they differ.

        Raises:
            UserError: one has another; on every rank, naming it.
        """
        if self.count == 1:
            return
        found = self._all(digest())
        others = [rank for rank, each in enumerate(found) if each != found[0]]
        if others:
            self.complete = False  # what differs can be neither saved nor averaged
            self._agreed = UserError(
                f"rank {', '.join(map(str, others))} of {self.count}",
                f"other {what} than on rank 0",
                f"the same {what} on all ranks",
                remedy,
            )
            raise self._agreed

    def share_of(self, batch_size: int) -> int:
        """Images of a batch that this rank takes.

        Raises:
            UserError: they cannot be shared out evenly.
        """
        if batch_size % self.count:
            least = -(-batch_size // self.count) * self.count
            raise UserError(
                f"--batch-size {batch_size}",
                f"{self.count} processes",
                "a batch that they can share evenly: it is that of all together",
                f"use --batch-size {least}",
            )
        return batch_size // self.count

    def connect(self, device: torch.device) -> None:
        """Prepare for collectives on a device: over NCCL on CUDA, or else gloo."""
        if self._devices is None:
            backend = "nccl" if device.type == "cuda" else "gloo"
            with self._reaching_all():
                group = dist.new_group(backend=backend, timeout=PATIENCE)
            assert isinstance(group, dist.ProcessGroup)  # every rank is in it
            self._devices = group

    def sum_(self, flat: torch.Tensor) -> None:
        """Add up tensors on the devices, in place; the host does not wait for CUDA."""
        # On CUDA a missing rank shows at the host's next collective, and an error is a capture's
        with nullcontext() if flat.is_cuda else self._reaching_all():
            dist.all_reduce(flat, group=self._devices)

    def _all(self, value: T) -> list[T]:
        values = [value] * self.count
        if self.count > 1:
            with self._reaching_all():
                dist.all_gather_object(values, value)
        return values

    def _lowest(self, own: Exception | None) -> Exception:
        found: list[Any] = self._all(own and _sendable(own))
        rank, error = next((rank, error) for rank, error in enumerate(found) if error is not None)
        if rank == self.rank:
            assert own is not None
            return own
        if isinstance(error, UserError) and rank:
            where = f"{error.where} (rank {rank})"
            return UserError(where, error.found, error.wanted, error.remedy, error.listed)
        assert isinstance(error, Exception)
        return error

    @contextmanager
    def _reaching_all(self) -> Iterator[None]:
        """Say plainly that a rank is gone, where torch raises a RuntimeError of some kind."""
        if not self.complete:
            raise self._lost("it was noticed before")
        try:
            yield
        except RuntimeError as error:
            self.complete = False
            raise self._lost(_first_line(error)) from error

    def _lost(self, how: str) -> LostRankError:
        return LostRankError(
            f"rank {self.rank} of {self.count}",
            f"another rank is gone ({how})",
            "all ranks until the end",
            "see what the others said; the same command goes on from the last checkpoint",
        )


ALONE = Ranks()


def _join() -> None:
    store, rank, count = next(rendezvous("env://"))
    # torchrun has the same store when it starts the processes again, with the addresses of those
    # that are gone still in it; a rank that reads them waits for nobody
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    store = dist.PrefixStore(f"attempt {attempt}", store)  # type: ignore[attr-defined]
    dist.init_process_group("gloo", store=store, rank=rank, world_size=count, timeout=PATIENCE)


def _sendable(error: Exception) -> Exception:
    try:
        pickle.dumps(error)
    except Exception:  # whatever it holds
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


def _first_line(error: Exception) -> str:
    """What gloo or NCCL says, without the place in its source, or advice."""
    return re.sub(r"^\[[^]]*\.cc:\d+\] ", "", first_line(error)).partition(". ")[0]


class GradientReduction:
    """Replaces a net's gradients by their mean over all ranks: one all-reduce of one flat buffer.

    DistributedDataParallel would reduce in each of the two passes of D, and its hooks complicate a
    capture. Everything here may be captured: NCCL's kernels are recorded like any other
    (docs.nvidia.com/deeplearning/nccl/user-guide, "Using NCCL with CUDA Graphs").

    Args:
        ranks: connected to the nets' device.
        nets: whose gradients are to be averaged, each at a time of its own.
    """

    def __init__(self, ranks: Ranks, *nets: nn.Module) -> None:
        self._ranks = ranks
        self._buffers = {net: _flat(net) for net in nets}
        # NCCL sets up its channels in the first call, which is not to be one in a capture
        for flat, _ in self._buffers.values():
            ranks.sum_(flat)

    def __call__(self, net: nn.Module) -> None:
        """Average them; every parameter has one."""
        flat, places = self._buffers[net]
        gradients = [parameter.grad for parameter in net.parameters() if parameter.grad is not None]
        torch._foreach_copy_(places, gradients)
        self._ranks.sum_(flat)
        flat.div_(self._ranks.count)
        torch._foreach_copy_(gradients, places)


def _flat(net: nn.Module) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """A buffer for all gradients of a net, and the place of each in it, in the layout of each."""
    parameters = [parameter.detach() for parameter in net.parameters()]
    flat = parameters[0].new_zeros(sum(parameter.numel() for parameter in parameters))
    places, begin = [], 0
    for parameter in parameters:
        places.append(flat.as_strided(parameter.shape, parameter.stride(), begin))
        begin += parameter.numel()
    return flat, places
