"""The one meeting of the devices in a step: gradients, averaged over all ranks."""

from __future__ import annotations

import torch
from torch import nn

from dcgan.distributed import Ranks


class SharedGradients:
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
