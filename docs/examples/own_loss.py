"""Own loss: the hinge loss in place of the binary cross-entropy, in an otherwise ordinary run.

Lim and Ye, "Geometric GAN", 2017 (arXiv:1705.02894), section 3; as in Miyato et al., "Spectral
Normalization for Generative Adversarial Networks", ICLR 2018 (arXiv:1802.05957), equations 16, 17.
"""

from __future__ import annotations

from contextlib import closing

import torch
import torch.nn.functional as F

from dcgan.options import TrainConfig
from dcgan.rundir.log import Log
from dcgan.training.build import build
from dcgan.training.signals import StopRequest
from dcgan.training.trainer import Trainer
from pipeline.errors import plain_errors


def discriminator_hinge(logits_x: torch.Tensor, logits_gz: torch.Tensor) -> torch.Tensor:
    """D's loss, from its outputs (B,) for real and generated images; 0 where D is right by 1."""
    return F.relu(1 - logits_x).mean() + F.relu(1 + logits_gz).mean()


def generator_hinge(logits_gz: torch.Tensor) -> torch.Tensor:
    """G's loss, from D's outputs (B,) for generated images; it may be negative."""
    return -logits_gz.mean()


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


def main() -> None:
    with closing(Log()) as log, StopRequest() as stop:  # Ctrl-C saves a checkpoint
        trainer = Trainer(build(CONFIG, log), log)
        trainer.step.update.loss_d = discriminator_hinge
        trainer.step.update.loss_g = generator_hinge
        trainer.run_until(stop)


if __name__ == "__main__":
    with plain_errors():
        main()
