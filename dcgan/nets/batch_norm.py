"""BatchNorm over several mini-batches at once, each with its own statistics.

Real and generated images are separate mini-batches (docs/step.md). With this layer both can pass
through a net as one batch: fewer and larger products, but separate statistics. The formulas are
those of Ioffe and Szegedy, "Batch Normalization", 2015 (arXiv:1502.03167), algorithm 1 and section
3.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd.function import once_differentiable

from dcgan.nets.forms import not_a_view


def count_batches(net: nn.Module, batches: int = 1) -> None:
    """In training, add to `num_batches_tracked` of all `BatchNorm2d` of a net, in one kernel.

    Call this before the layers.
    """
    if net.training:
        layers = [layer for layer in net.modules() if isinstance(layer, BatchNorm2d)]
        torch._foreach_add_([each.get_buffer("num_batches_tracked") for each in layers], batches)


class BatchNorm2d(nn.BatchNorm2d):
    """`nn.BatchNorm2d` whose batch may consist of several equal mini-batches, one after another.

    The net counts them, by `count_batches`.
    """

    def forward(self, maps: torch.Tensor, batches: int = 1) -> torch.Tensor:
        """Normalise maps, (B, C, H, W), of which the result keeps the type.

        In training each of the equal mini-batches is normalised by its own statistics, and updates
        the running ones in turn.
        """
        running_mean, running_var = self.get_buffer("running_mean"), self.get_buffer("running_var")
        if batches == 1 or not self.training:
            momentum = self.momentum
            if momentum is None:  # `update_bn` asks for plain means
                momentum = 1 / float(self.get_buffer("num_batches_tracked"))
            return F.batch_norm(
                maps, running_mean, running_var, self.weight, self.bias, self.training, momentum,
                self.eps,
            )  # fmt: skip
        normalised: torch.Tensor
        normalised, means, variances = _Batches.apply(
            maps, self.weight, self.bias, self.eps, batches
        )
        count = maps.numel() // maps.shape[1] // batches
        unbiased = variances * (count / (count - 1))
        assert self.momentum is not None
        with torch.no_grad():
            for mean, variance in zip(means, unbiased, strict=True):
                running_mean.lerp_(mean, self.momentum)
                running_var.lerp_(variance, self.momentum)
        return normalised


class _Batches(torch.autograd.Function):
    """Training's normalisation, written out with its gradients.

    Autograd would keep several intermediate maps in float32, which cost more memory traffic than
    the layer itself.
    """

    @staticmethod
    def forward(
        context: Any,
        maps: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor,
        eps: float,
        batches: int,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return the normalised maps; means and variances, (batches, C) in the weights' type."""
        values = _split(maps, batches, weight.dtype)
        variances, means = torch.var_mean(values, (1, 3, 4), correction=0, keepdim=True)
        scales = torch.rsqrt(variances + eps)
        normalised = (values - means) * (scales * _per_channel(weight)) + _per_channel(bias)
        context.save_for_backward(maps, weight, means, scales)
        joined = not_a_view(normalised.to(maps.dtype).flatten(0, 1))
        found = joined, means.flatten(1), variances.flatten(1)
        context.mark_non_differentiable(*found[1:])
        return found

    @staticmethod
    @once_differentiable  # statistics are saved as constants
    def backward(context: Any, gradient: torch.Tensor, *_: Any) -> tuple[torch.Tensor | None, ...]:
        maps, weight, means, scales = context.saved_tensors
        batches = len(means)
        centred = _split(maps, batches, weight.dtype) - means
        gradients = _split(gradient, batches, weight.dtype)
        count = centred[0].numel() // maps.shape[1]
        sums = gradients.sum((1, 3, 4), keepdim=True)
        products = (gradients * centred).sum((1, 3, 4), keepdim=True)
        slopes = centred * (products * scales * scales / count) + sums / count
        of_maps = (gradients - slopes) * (scales * _per_channel(weight))
        of_weight, of_bias = (products * scales).sum(0).flatten(), sums.sum(0).flatten()
        return of_maps.to(maps.dtype).flatten(0, 1), of_weight, of_bias, None, None


def _split(maps: torch.Tensor, batches: int, dtype: torch.dtype) -> torch.Tensor:
    """(B, C, H, W) → (batches, B / batches, C, H, W) in another type."""
    return maps.view(batches, -1, *maps.shape[1:]).to(dtype)


def _per_channel(values: torch.Tensor) -> torch.Tensor:
    return values.view(1, 1, -1, 1, 1)
