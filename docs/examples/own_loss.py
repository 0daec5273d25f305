"""Own loss: the hinge loss in place of the binary cross-entropy, in an otherwise ordinary run.

Lim and Ye, "Geometric GAN", 2017 (arXiv:1705.02894), section 3; as in Miyato et al., "Spectral
Normalization for Generative Adversarial Networks", ICLR 2018 (arXiv:1802.05957), equations 16, 17.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
import torch.nn.functional as F

from dcgan.options import TrainConfig
from dcgan.step.adversarial import AdversarialStep
from dcgan.training.session import train
from pipeline.errors import plain_errors


def discriminator_hinge(logits_x: torch.Tensor, logits_gz: torch.Tensor) -> torch.Tensor:
    """D's loss, from its outputs (B,) for real and generated images; 0 where D is right by 1."""
    return F.relu(1 - logits_x).mean() + F.relu(1 + logits_gz).mean()


def generator_hinge(logits_gz: torch.Tensor) -> torch.Tensor:
    """G's loss, from D's outputs (B,) for generated images; it may be negative."""
    return -logits_gz.mean()


class HingeStep(AdversarialStep):
    """The usual update with other losses."""

    def __init__(self, *nets: Any, **options: Any) -> None:
        super().__init__(*nets, **options)
        self.loss_d, self.loss_g = discriminator_hinge, generator_hinge


CONFIG = TrainConfig(
    shards="synthetic",  # or the folder of a set
    run="own-loss",
    batch_size=16,
    image_size=32,
    ngf=16,
    ndf=16,
    max_steps=30,
    log_every=10,
)


if __name__ == "__main__":
    with plain_errors():
        sys.exit(train(CONFIG, HingeStep))
