"""Several processes that train one model: ranks, collectives on the hosts, and the one all-reduce.

torchrun starts the processes and sets `RANK`, `LOCAL_RANK`, `WORLD_SIZE` and `LOCAL_WORLD_SIZE`
(docs.pytorch.org/docs/stable/elastic/run.html). Each rank has its own share of the set and of every
batch, and its own noise. Gradients are averaged, so that all ranks keep the same weights. Only the
first rank writes files and logs.

Every method that communicates is a collective: all ranks must call it, in the same order. The hosts
communicate over gloo; only gradients are reduced on the devices. A rank that does not answer is
noticed by its heartbeat (`dcgan.heartbeats`), which ends this process.
"""

from __future__ import annotations

import importlib
import os
import pickle
import re
import socket
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Self, TypeVar

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.rendezvous import rendezvous

from dcgan import heartbeats
from dcgan.heartbeats import Heartbeats
from pipeline.errors import UserError, first_line

if TYPE_CHECKING:  # the public name has no type
    from torch._C._distributed_c10d import Store

T = TypeVar("T")

PATIENCE = timedelta(minutes=30)
"""Timeout of a collective. It is long because the other ranks may be waiting for the first one's
pictures and metrics. A rank that died is noticed at once, one that does not answer by its missing
heartbeat."""

JOINING = timedelta(minutes=5)
"""How long the ranks wait at the start for the last one. torchrun starts all of them together, but
the first import of torch from a shared disk may take minutes."""


class LostRankError(UserError):
    """Another rank has died or does not answer, so no collective can succeed any more."""


class Ranks:
    """This process and its connection to the others; with one process, collectives cost nothing.

    Args:
        rank: the rank of this process.
        count: the number of processes.
        local: the number of this process on its machine.
        local_count: the number of processes on its machine; None if whoever started them does not
            say.

    Attributes:
        complete: whether all ranks are still there and in step, so that collectives can succeed.
        on_loss: called with the error, in a thread, before this process ends because another rank
            does not answer.
    """

    def __init__(
        self, rank: int = 0, count: int = 1, local: int = 0, local_count: int | None = None
    ) -> None:
        self.rank, self.count, self.local, self._local_count = rank, count, local, local_count
        self.complete = True
        self.on_loss: Callable[[LostRankError], object] = lambda error: None
        self._agreed: BaseException | None = None
        self._hosts: list[str] = []
        self._heartbeats: Heartbeats | None = None
        self._devices: dist.ProcessGroup | None = None

    @classmethod
    @contextmanager
    def joined(cls) -> Iterator[Self]:
        """Join the processes that torchrun started, if any, and wait for all of them at the end.

        Raises:
            UserError: the other processes cannot be reached.
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
        rank, count, local = (int(os.environ[name]) for name in names)
        here = os.environ.get("LOCAL_WORLD_SIZE")
        ranks = cls(rank, count, local, None if here is None else int(here))
        try:
            ranks._join()
        except UserError:
            raise
        except (RuntimeError, ValueError) as error:
            known = (*names, "MASTER_ADDR", "MASTER_PORT")
            settings = ", ".join(f"{name}={os.environ.get(name)}" for name in known)
            raise UserError(
                f"rank {rank}",
                f"no connection to the other ranks ({_first_line(error)})",
                "processes that reach each other",
                f"start them with torchrun, which sets {settings}",
            ) from error
        return ranks

    def _join(self) -> None:
        store, *_ = next(rendezvous("env://"))
        store, watched = _of_this_attempt(store), _of_this_attempt(_another_connection())
        self._hosts = self._meet(store)
        self._require_address()
        self._heartbeats = Heartbeats(watched, self.rank, self.count, self._end)
        # Imported later, as the compiler does, this module would keep the group for good, as a
        # default of its functions. A thread of gloo that lives on may need the interpreter while
        # that ends, which aborts the process
        importlib.import_module("torch.distributed.nn.functional")
        try:
            dist.init_process_group(
                "gloo", store=store, rank=self.rank, world_size=self.count, timeout=PATIENCE
            )
        except BaseException:
            self._heartbeats.close()
            raise

    def _meet(self, store: Store) -> list[str]:
        """Wait for all ranks, and return their hosts' names."""
        self._tell_where(store)
        hosts = [f"host/{rank}" for rank in range(self.count)]
        try:
            store.wait(hosts, JOINING)
        except RuntimeError as error:
            missing = [rank for rank, host in enumerate(hosts) if not store.check([host])]
            raise UserError(
                self._name(missing),
                f"not there after {JOINING.total_seconds():.0f} s",
                "processes that all start",
                "see the errors of torchrun on the other hosts",
            ) from error
        return [host.decode() for host in store.multi_get(hosts)]

    def _tell_where(self, store: Store) -> None:
        heartbeats.announce(store, self.rank)
        store.set(f"host/{self.rank}", socket.gethostname())

    def _require_address(self) -> None:
        """Check that gloo takes an address which other hosts can reach: that of the host's name."""
        if "GLOO_SOCKET_IFNAME" in os.environ or len({*self._hosts}) == 1:
            return
        name = socket.gethostname()
        try:
            address = socket.gethostbyname(name)
        except OSError:
            address = "no address"
        if address.startswith("127.") or address == "no address":
            interfaces = [name for _, name in socket.if_nameindex() if name != "lo"]
            raise UserError(
                f"GLOO_SOCKET_IFNAME on host {name}",
                f"it is not set, and the name {name} stands for {address}",
                "an address that the other hosts reach",
                "export GLOO_SOCKET_IFNAME=INTERFACE on every host, here one of "
                + ", ".join(interfaces),
            )

    def _leave(self) -> None:
        """Wait until the first rank has written everything: torchrun may kill it if others end."""
        if self.count > 1 and self.complete:
            with suppress(LostRankError):
                self.any(False)
        if self._heartbeats is not None:
            self._heartbeats.close()
        if self.count > 1 and self.complete:
            self._devices = None  # a group's threads end with the last reference to it
            dist.destroy_process_group()

    @property
    def is_first(self) -> bool:
        """Whether this rank writes files and logs."""
        return self.rank == 0

    @property
    def local_ranks(self) -> tuple[int, ...]:
        """The ranks on this machine, which torchrun numbers one after another."""
        first = self.rank - self.local
        return (
            (self.rank,)
            if self._local_count is None
            else (*range(first, first + self._local_count),)
        )

    @property
    def is_first_here(self) -> bool:
        """Whether this rank fetches what all ranks of this machine need."""
        return self.rank == self.local_ranks[0]

    def reports(self, error: BaseException) -> bool:
        """Whether this rank reports an error.

        What all ranks know, the first one reports; that a rank is lost, the first one of each
        machine, since the first of all may be the lost one; anything else, whoever knows of it.
        """
        if isinstance(error, LostRankError):
            return self.is_first_here
        return self.is_first or not self._is_agreed(error)

    def separate(self, error: BaseException) -> None:
        """Stop taking part in collectives after an error that occurred on this rank alone."""
        if not self._is_agreed(error):
            self.complete = self.count == 1

    def _is_agreed(self, error: BaseException) -> bool:
        return self._agreed is not None and self._agreed in (error, error.__cause__)

    def any(self, *flags: bool) -> tuple[bool, ...]:
        """Return for each flag whether it is set on at least one rank.

        Raises:
            LostRankError: a rank has died.
        """
        if self.count == 1:
            return flags
        raised = torch.tensor(flags, dtype=torch.uint8)
        with self._reaching_all():
            dist.all_reduce(raised, dist.ReduceOp.MAX)
        return tuple(map(bool, raised.tolist()))

    def all(self, flag: bool) -> bool:
        """Return whether a flag is set on every rank."""
        return not self.any(not flag)[0]

    @contextmanager
    def together(self) -> Iterator[None]:
        """If the block fails on any rank, raise the error of the lowest such rank on all ranks.

        The block may not contain a collective.
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

    def first_here(self, do: Callable[[], T]) -> T:
        """Call `do` on the first rank of each machine, then on all others; a collective.

        If it fails on any rank, all raise the error of the lowest such rank.
        """
        done: list[T] = []
        for turn in (True, False):
            with self.together():
                if self.is_first_here == turn:
                    done.append(do())
        return done[0]

    def first(self, do: Callable[[], T]) -> T | None:
        """Call `do` on the first rank; if that fails, all ranks raise its error."""
        with self.together():
            return do() if self.is_first else None

    def same(self, value: T) -> T:
        """Return the first rank's value on all ranks."""
        values = [value]
        if self.count > 1:
            with self._reaching_all():
                dist.broadcast_object_list(values, src=0)
        return values[0]

    def gather(self, tensor: torch.Tensor) -> torch.Tensor:
        """Stack the ranks' tensors, which have one shape and are on the CPU, to (ranks, ...)."""
        if self.count == 1:
            return tensor.unsqueeze(0)
        gathered = [torch.empty_like(tensor) for _ in range(self.count)]
        with self._reaching_all():
            dist.all_gather(gathered, tensor)
        return torch.stack(gathered)

    def mean(self, rows: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Average the ranks' arrays, which have one shape."""
        if self.count == 1:
            return rows
        total = torch.from_numpy(rows.copy())
        with self._reaching_all():
            dist.all_reduce(total)
        return np.asarray(total / self.count, dtype=np.float32)

    def require_same(self, what: str, digest: Callable[[], str], remedy: str) -> None:
        """Check that a value is the same on every rank as on the first one.

        Args:
            what: a word for the value.
            digest: returns a digest of the value; not called if there is only one process.
            remedy: what to do if the values differ.

        Raises:
            UserError: the values differ; raised on every rank, naming the ranks that differ.
        """
        if self.count == 1:
            return
        found = self._all(digest())
        others = [rank for rank, each in enumerate(found) if each != found[0]]
        if others:
            self.complete = False  # values that differ can be neither saved nor averaged
            self._agreed = UserError(
                f"rank {', '.join(map(str, others))} of {self.count}",
                f"other {what} than on rank 0",
                f"the same {what} on all ranks",
                remedy,
            )
            raise self._agreed

    def share_of(self, batch_size: int) -> int:
        """Return how many images of a batch this rank takes.

        Raises:
            UserError: the batch cannot be divided evenly.
        """
        if batch_size % self.count:
            least = -(-batch_size // self.count) * self.count
            raise UserError(
                f"--batch-size {batch_size}",
                f"{self.count} processes",
                "a batch, of all processes together, that they can divide evenly",
                f"use --batch-size {least}",
            )
        return batch_size // self.count

    def connect(self, device: torch.device) -> None:
        """Prepare for collectives on a device, over NCCL on CUDA and over gloo elsewhere."""
        if self._devices is None:
            backend = "nccl" if device.type == "cuda" else "gloo"
            with self._reaching_all():
                group = dist.new_group(backend=backend, timeout=PATIENCE)
            assert isinstance(group, dist.ProcessGroup)  # every rank is in it
            self._devices = group

    def sum_(self, flat: torch.Tensor) -> None:
        """Add up the ranks' tensors on the devices, in place; the host does not wait for CUDA."""
        # On CUDA a missing rank shows at the host's next collective; an error here comes from a
        # capture
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
        """Turn a RuntimeError of torch into a `LostRankError`."""
        if not self.complete:
            raise self._lost("noticed before")
        try:
            yield
        except RuntimeError as error:
            self.complete = False
            raise self._lost(_first_line(error)) from error

    def _end(self, silent: Sequence[int]) -> None:
        """End this process, whose main thread may wait for silent ranks, on the host or a GPU."""
        if not self.complete:  # it ends by itself
            return
        error = self._unanswered(silent)
        with suppress(Exception):
            self.on_loss(error)
        if self.rank == min({*self.local_ranks, self.rank} - {*silent}, default=self.rank):
            sys.stderr.write(f"error: {error}\n")
            sys.stderr.flush()
        os._exit(1)

    def _unanswered(self, silent: Sequence[int]) -> LostRankError:
        wanted = "all ranks until the end"
        remedy = "look at that host, and at this one's network"
        remedy += "; the same command resumes from the last checkpoint"
        if self.rank in silent:
            found = "torchrun's store there does not answer: it cannot be reached, or is stopped"
            return LostRankError(f"host {self._hosts[0]}", found, wanted, remedy)
        found = "no heartbeat for a minute: it is stopped, stuck or gone, or cannot be reached"
        return LostRankError(self._name(silent), found, wanted, remedy)

    def _name(self, ranks: Sequence[int]) -> str:
        """Describe ranks, with the names of their hosts where these are known."""
        named = f"rank {', '.join(map(str, ranks))} of {self.count}"
        hosts = dict.fromkeys(self._hosts[rank] for rank in ranks if self._hosts)
        return f"{named}, on host {', '.join(hosts)}" if hosts else named

    def _lost(self, how: str) -> LostRankError:
        # Another rank may have noticed a moment earlier, and ended
        if self._heartbeats and (silent := self._heartbeats.silent(heartbeats.MISSED)):
            return self._unanswered(silent)
        return LostRankError(
            f"rank {self.rank} of {self.count}",
            f"another rank is gone ({how})",
            "all ranks until the end",
            "see the errors of the others; the same command resumes from the last checkpoint",
        )


ALONE = Ranks()


def _of_this_attempt(store: Store) -> Store:
    # When torchrun restarts the processes, its store still has the addresses of the dead ones; a
    # rank that read those would wait in vain
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    return dist.PrefixStore(f"attempt {attempt}", store)  # type: ignore[attr-defined]


def _another_connection() -> Store:
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    return dist.TCPStore(host, port, is_master=False, wait_for_workers=False)  # type: ignore[attr-defined]


def _sendable(error: Exception) -> Exception:
    try:
        pickle.dumps(error)
    except Exception:  # an error may hold anything
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


def _first_line(error: Exception) -> str:
    """What gloo or NCCL says, without the place in its source, or advice."""
    return re.sub(r"^\[[^]]*\.cc:\d+\] ", "", first_line(error)).partition(". ")[0]


class GradientReduction:
    """Replaces a net's gradients by their mean over all ranks: one all-reduce of one flat buffer.

    DistributedDataParallel would reduce in each of D's two passes, and its hooks would complicate a
    capture. Everything here may be captured: NCCL's kernels are recorded like any others
    (docs.nvidia.com/deeplearning/nccl/user-guide, "Using NCCL with CUDA Graphs"). The ranks are
    connected to the nets' device already; each net is reduced in a call of its own.
    """

    def __init__(self, ranks: Ranks, *nets: nn.Module) -> None:
        self._ranks = ranks
        self._buffers = {net: _flat(net) for net in nets}
        # NCCL sets up its channels in the first call, which must not be inside a capture
        for flat, _ in self._buffers.values():
            ranks.sum_(flat)

    def __call__(self, net: nn.Module) -> None:
        """Average the gradients of a net; every parameter must have one."""
        flat, places = self._buffers[net]
        gradients = [parameter.grad for parameter in net.parameters() if parameter.grad is not None]
        torch._foreach_copy_(places, gradients)
        self._ranks.sum_(flat)
        flat.div_(self._ranks.count)
        torch._foreach_copy_(gradients, places)


def _flat(net: nn.Module) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Make a buffer for all gradients of a net, and a view into it for each, in its layout."""
    parameters = [parameter.detach() for parameter in net.parameters()]
    flat = parameters[0].new_zeros(sum(parameter.numel() for parameter in parameters))
    places, begin = [], 0
    for parameter in parameters:
        places.append(flat.as_strided(parameter.shape, parameter.stride(), begin))
        begin += parameter.numel()
    return flat, places
