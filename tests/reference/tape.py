"""A CUDA graph without CUDA: records the calls of a step, and replays them with its semantics.

A graph repeats the kernels of one recorded call: same addresses, same arguments, nothing of Python.
Here each ATen call that reaches the CPU is noted with its arguments. On replay

- a call whose result is a view is skipped: the view is there, and shows the same memory;
- a call that writes to its arguments does so again, to the same memory;
- the result of any other call is copied into the memory of the recorded result.

Random numbers may come from one generator, the registered one, which goes on from replay to replay.

What it does not show: the order of streams, the allocator's pools, kernels that refuse capture.
"""

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

READS = (torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape)
"""torch's own marks of calls that hand a value, or a shape made of values, to the host."""


class Tape(TorchDispatchMode):
    """Records while entered.

    Args:
        registered: the generator that calls may draw from.

    Raises:
        AssertionError: a call that a capture refuses: it would have to wait for a value, or draws
            from another generator.
    """

    def __init__(self, registered: torch.Generator) -> None:
        super().__init__()
        self.registered = registered
        self.calls: list[tuple[Any, Any, Any, Any]] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        assert not any(tag in func.tags for tag in READS), f"{func}: reads a value on the host"
        kwargs = kwargs or {}
        if torch.Tag.nondeterministic_seeded in func.tags:
            assert self._is_registered(kwargs.get("generator")), f"{func}: draws from elsewhere"
        result = func(*args, **kwargs)
        if not _is_view(func, result, args):
            self.calls.append((func, args, kwargs, result))
        return result

    def _is_registered(self, generator: torch.Generator | None) -> bool:
        """By its place in its sequence: each call sees a new Python object for it."""
        return generator is not None and generator.get_state().equal(self.registered.get_state())

    @torch.no_grad()
    def replay(self) -> None:
        """Do it all again."""
        for func, args, kwargs, recorded in self.calls:
            again = func(*args, **kwargs)
            for old, new in zip(tree_flatten(recorded)[0], tree_flatten(again)[0], strict=True):
                if isinstance(old, torch.Tensor) and old.data_ptr() != new.data_ptr():
                    old.copy_(new)


def _is_view(func: Any, result: Any, args: Any) -> bool:
    """Whether the call only looks at memory of its arguments, and writes nothing."""
    if func._schema.is_mutable or not isinstance(result, torch.Tensor):
        return False
    given = (value for value in tree_flatten(args)[0] if isinstance(value, torch.Tensor))
    return _memory(result) in {_memory(tensor) for tensor in given}


def _memory(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
