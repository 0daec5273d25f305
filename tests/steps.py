"""Small nets, batches and whole steps for the tests of the step."""

import torch

from dcgan.nets.models import Discriminator, Generator, init_weights
from dcgan.step.adversarial import AdversarialStep
from dcgan.step.ema import EMA
from dcgan.step.statistics import StepRows
from dcgan.step.train_step import WholeStep
from pipeline.images.labels import LabelSpace
from pipeline.images.size import ImageSize, sides

SIZE, NZ, BATCH = 64, 16, 8


CLASSES = LabelSpace("classes", ("cats", "dogs", "--owls, wise"))
ATTRIBUTES = LabelSpace("attributes", ("Male", "Smiling"))
TABLES = {
    CLASSES: torch.tensor([0, 2, 2, 1, 2]),
    ATTRIBUTES: torch.tensor([[0.0, 1.0], [1.0, 0.0], [0.0, 0.0], [0.0, 1.0]]),
}
"""Of two labelled sets, the labels by row."""


def nets(
    dtype: torch.dtype = torch.float32, size: ImageSize = SIZE, labels: LabelSpace | None = None
) -> tuple[Generator, Discriminator]:
    """Draw a generator and a discriminator, always the same ones."""
    seed = torch.Generator().manual_seed(11)
    pair = (
        Generator(size, nz=NZ, ngf=8, labels=labels),
        Discriminator(size, ndf=8, labels=labels),
    )
    for net in pair:
        init_weights(net, seed)
        net.to(dtype)
    return pair


def batch(
    seed: int, dtype: torch.dtype = torch.float32, size: ImageSize = SIZE
) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw real images and noise."""
    draw = torch.Generator().manual_seed(seed)
    width, height = sides(size)
    real = torch.rand(BATCH, 3, height, width, generator=draw, dtype=torch.float64) * 2 - 1
    noise = torch.randn(BATCH, NZ, 1, 1, generator=draw, dtype=torch.float64)
    return real.to(dtype), noise.to(dtype)


def pixel_batch(seed: int, size: int = 32) -> torch.Tensor:
    """Draw stored pixels."""
    draw = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (BATCH, size, size, 3), generator=draw, dtype=torch.uint8)


def labelled_batch(step: WholeStep, seed: int) -> tuple[torch.Tensor, ...]:
    """Draw what a step takes: stored pixels, and labels if it is conditional."""
    table, draw = step.label_table, torch.Generator().manual_seed(seed)
    if table is None:
        return (pixel_batch(seed),)
    return pixel_batch(seed), table[torch.randint(len(table), (BATCH,), generator=draw)]


def whole_step(
    bf16: bool = False,
    mirror: bool = True,
    ema_nimg: int = 100,
    device: str = "cpu",
    update: type[AdversarialStep] = AdversarialStep,
    augmented: bool = False,
    labels: LabelSpace | None = None,
    size: ImageSize = 32,
) -> WholeStep:
    """Build a step as the trainer does, always the same one."""
    generator, discriminator = nets(size=size, labels=labels)
    for net in (generator, discriminator):
        net.to(device).to(memory_format=torch.channels_last)
    return WholeStep(
        update(generator, discriminator, bf16=bf16, augmented=augmented),
        (BATCH, *sides(size)[::-1], 3),
        NZ,
        torch.Generator(device).manual_seed(5),
        StepRows(32, torch.device(device)),
        mirror,
        EMA(generator, BATCH, ema_nimg) if ema_nimg else None,
        None if labels is None else TABLES[labels].to(device),
    )


def states(step: WholeStep) -> list[torch.Tensor]:
    """Copy everything that a step leaves behind, its random generator's place included."""
    return [*(tensor.clone() for tensor in step.state()), step.random.get_state()]
