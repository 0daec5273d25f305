"""From the options to what they describe: nets and step, on their device."""

from __future__ import annotations

import hashlib

import torch

from dcgan.average import Average
from dcgan.distributed import ALONE, Ranks
from dcgan.models import Discriminator, Generator, init_weights, load_weights
from dcgan.options import TrainConfig
from dcgan.precision import choose_kernels, set_matrix_format
from dcgan.speed import WholeStep
from dcgan.stats import StepRows
from dcgan.step import AdversarialStep


def build_nets(config: TrainConfig, device: torch.device) -> tuple[Generator, Discriminator]:
    """Both nets on their device, in channels_last, with their first weights."""
    generator = Generator(config.image_size, config.nz, config.ngf, config.channels)
    discriminator = Discriminator(config.image_size, config.ndf, config.channels)
    weights = stream(config.seed, "weights", torch.device("cpu"))
    init_weights(generator, weights)
    init_weights(discriminator, weights)
    if config.netG is not None:
        load_weights(generator, config.netG, "--netG")
    if config.netD is not None:
        load_weights(discriminator, config.netD, "--netD")
    for net in (generator, discriminator):
        net.to(device).to(memory_format=torch.channels_last)
    return generator, discriminator


def stream(seed: int, purpose: str, device: torch.device) -> torch.Generator:
    """A random stream of its own for each purpose, so that the noise is not the weights again."""
    digest = hashlib.sha256(f"{seed}/{purpose}".encode()).digest()
    generator = torch.Generator(device)
    generator.manual_seed(int.from_bytes(digest[:8]) >> 1)
    return generator


def build_step(
    config: TrainConfig,
    generator: Generator,
    discriminator: Discriminator,
    rows: StepRows,
    rollbacks: int = 0,
    ranks: Ranks = ALONE,
) -> WholeStep:
    """The step of `config`, whose `precision` and `seed` are resolved, over nets on their device.

    Args:
        config: the options.
        generator: on its device.
        discriminator: likewise.
        rows: takes the statistics.
        rollbacks: how often the run went back already: each time draws other random numbers.
        ranks: that share each batch, and draw random numbers of their own.
    """
    device = next(generator.parameters()).device
    set_matrix_format(config.precision, device)
    choose_kernels()
    average = None
    if config.ema_nimg:
        average = Average(generator, config.batch_size, config.ema_nimg)
    bf16 = config.precision == "bf16"
    images = ranks.share_of(config.batch_size)
    return WholeStep(
        AdversarialStep(
            generator,
            discriminator,
            config.lr_d or config.lr,
            config.lr_g or config.lr,
            config.beta1,
            bf16,
            config.label_smoothing,
        ),
        (images, config.image_size, config.image_size, config.channels),
        config.nz,
        stream(config.seed, _noise(rollbacks, ranks.rank), device),
        rows,
        config.mirror,
        average,
    )


def _noise(rollbacks: int, rank: int) -> str:
    """The purpose of a rank's noise, in each of a run's attempts."""
    attempt = f"noise/{rollbacks}" if rollbacks else "noise"
    return f"{attempt}/rank {rank}" if rank else attempt
