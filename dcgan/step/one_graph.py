"""The whole update as one compiled graph, traced from the code that eager steps run.

`make_fx` runs a step once and notes every ATen call of it, of the backward passes and the
optimisers too, in the order in which they happen; their Python is run, not translated
(docs.pytorch.org/docs/stable/fx.experimental.html). So the maths is not written a second time: what
is compiled is what `AdversarialStep` and whatever nets and losses it was given have done. As in a
CUDA graph, a number that Python computes is repeated as it was.

The fused Adam is the exception. It is one kernel, which a compiler can neither look into nor merge
with what is before and after, so here it is written out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias

import torch
from torch._decomp import get_decompositions
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx

from dcgan.step.adversarial import AdversarialStep, Net
from dcgan.step.masks import recompute_masks

aten = torch.ops.aten

Tensors: TypeAlias = list[torch.Tensor]

OPTIONS: dict[str, Any] = {"realize_reads_threshold": 8, "realize_opcount_threshold": 100}
"""Inductor's limits for recomputing instead of storing (`torch._inductor.list_options()`). With its
defaults, 4 and 30, it stores the masked gradients."""


def compile_whole(body: Callable[[], object], tensors: Tensors) -> Callable[[], None]:
    """Compile what a call of `body` does to tensors, all of it, as one graph.

    Args:
        body: does the same to the same tensors in each call, and reads nothing on the host.
        tensors: all that it reads or writes, each one once, as far as they outlive a call.

    Returns:
        A function that does the same; its first call compiles. It leaves no gradients behind.
    """
    module = trace(body, tensors)
    recompute_masks(module)
    compiled = torch.compile(module, fullgraph=True, dynamic=False, options=OPTIONS)

    @torch.no_grad()
    def run() -> None:
        compiled(*tensors)

    return run


def trace(body: Callable[[], object], tensors: Tensors) -> GraphModule:
    """Call `body` once, which does what it does, and note its ATen calls.

    The arguments are those of `compile_whole`; the optimisers' state is there already, as after a
    first step.

    Returns:
        The calls as a module without outputs: it writes to its inputs, the tensors, as `body` does.
    """

    def of_tensors(*given: torch.Tensor) -> None:
        body()

    # For CUDA, autograd works in threads of its own, in which make_fx records nothing
    with torch.autograd.set_multithreading_enabled(False):
        module = make_fx(of_tensors, decomposition_table=_table())(*tensors)
    for node in reversed(module.graph.nodes):
        if str(node.target).startswith("profiler."):  # an optimiser's name for its step
            module.graph.erase_node(node)
    module.recompile()
    return module


@contextmanager
def seen_as_compiled(update: AdversarialStep) -> Iterator[None]:
    """Have the nets see `torch.compiler.is_compiling()`, as they do when they are compiled apart.

    A layer may then compute in a form that suits a compiler. The optimisers must not see it: they
    would take another path.
    """
    nets = update.generate, update.discriminate
    update.generate, update.discriminate = map(_as_compiled, nets)
    try:
        yield
    finally:
        update.generate, update.discriminate = nets


def _as_compiled(net: Net) -> Net:
    def run(*inputs: torch.Tensor, **options: int) -> torch.Tensor:
        asked, torch.compiler.is_compiling = torch.compiler.is_compiling, lambda: True
        try:
            return net(*inputs, **options)
        finally:
            torch.compiler.is_compiling = asked

    return run


def _table() -> dict[Any, Callable[..., Any]]:
    """Return what is noted in place of some calls.

    BatchNorm's own kernels change the running statistics, of which their schemas say nothing to a
    compiler; that of `_native_batch_norm_legit` does.
    """
    table: dict[Any, Callable[..., Any]] = {
        **get_decompositions([aten.cudnn_batch_norm, aten.cudnn_batch_norm_backward]),
        aten.native_batch_norm.default: aten._native_batch_norm_legit.default,  # noqa: SLF001
        aten._fused_adam_.default: adam_,
        aten._fused_adam_.tensor_lr: adam_,
        aten._foreach_lerp_.List: _lerp_,
        aten._foreach_copy_.default: _copy_,
    }
    return table


def adam_(
    weights: Tensors,
    gradients: Tensors,
    means: Tensors,
    squares: Tensors,
    largest_squares: Tensors,
    steps: Tensors,
    *,
    lr: float | torch.Tensor,
    beta1: float,
    beta2: float,
    weight_decay: float,
    eps: float,
    amsgrad: bool,
    maximize: bool,
    grad_scale: torch.Tensor | None = None,
    found_inf: torch.Tensor | None = None,
) -> None:
    """Do what `torch._fused_adam_` does, in place, in calls that a compiler merges.

    Kingma and Ba, "Adam", ICLR 2015 (arXiv:1412.6980), algorithm 1. The arguments are those of
    torch's kernel; `steps` has been counted up already, by the same number for all weights.

    Raises:
        NotImplementedError: an option of Adam that this project does not use.
    """
    if weight_decay or amsgrad or maximize or grad_scale is not None or found_inf is not None:
        raise NotImplementedError("Adam is written out without weight_decay, amsgrad and maximize")
    torch._foreach_lerp_(means, gradients, 1 - beta1)
    torch._foreach_mul_(squares, beta2)
    torch._foreach_addcmul_(squares, gradients, gradients, 1 - beta2)
    sizes = torch._foreach_sqrt(squares)  # noqa: SLF001
    torch._foreach_div_(sizes, _correction(beta2, steps[0]).sqrt())
    torch._foreach_add_(sizes, eps)
    moves = torch._foreach_div(means, sizes)  # noqa: SLF001
    torch._foreach_mul_(moves, lr / _correction(beta1, steps[0]))
    torch._foreach_sub_(weights, moves)


def _correction(beta: float, step: torch.Tensor) -> torch.Tensor:
    """Return 1 - beta ** step, without losing digits where that is small."""
    return -torch.expm1(step * (math.log(beta) if beta else -math.inf))


def _lerp_(starts: Tensors, ends: Tensors, shares: Tensors) -> None:
    """Write out a list's `lerp_` with one share for all, in calls that a compiler merges."""
    ways = torch._foreach_sub(ends, starts)  # noqa: SLF001
    torch._foreach_mul_(ways, shares[0])
    torch._foreach_add_(starts, ways)


def _copy_(copies: Tensors, originals: Tensors, non_blocking: bool = False) -> None:
    for copy, original in zip(copies, originals, strict=True):
        copy.copy_(original)
