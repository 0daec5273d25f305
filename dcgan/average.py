"""The moving average of the generator's weights, which draws better pictures than the last ones.

Karras et al., "Progressive Growing of GANs", ICLR 2018 (arXiv:1710.10196), section 6.1; counted in
images, as a half-life, as in Karras et al., "Analyzing and Improving the Image Quality of
StyleGAN", CVPR 2020.
"""

from __future__ import annotations

import copy

import torch
from torch import nn


class Average:
    """A net that follows another one.

    Args:
        net: the one to follow, as its first weights are; the average begins there.
        images: in a step.
        half_life: images after which a weight's past counts half.

    Attributes:
        net: the average, in `net`'s type and layout.
    """

    def __init__(self, net: nn.Module, images: int, half_life: int) -> None:
        self.net = copy.deepcopy(net).requires_grad_(False)
        self._step = 1 - 0.5 ** (images / half_life)
        self._followed = net

    @torch.no_grad()
    def update(self) -> None:
        """Move towards the net that is followed; the host sees nothing of it."""
        followed = self._followed
        torch._foreach_lerp_([*self.net.parameters()], [*followed.parameters()], self._step)
        # BatchNorm's statistics are averages already
        torch._foreach_copy_([*self.net.buffers()], [*followed.buffers()])
