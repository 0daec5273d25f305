"""Own nets, for images of 48×48, in the same step, with the same loader and pictures."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import torch
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm

from dcgan.rundir.environment import pick_device
from dcgan.sampling.generate import FIXED_SEEDS, generate, latents
from dcgan.sampling.pictures import save_grid
from dcgan.step import STATISTICS
from dcgan.step.adversarial import AdversarialStep
from dcgan.step.statistics import StepRows
from dcgan.step.train_step import WholeStep, choose_step
from pipeline.loading.open import open_loader
from pipeline.loading.options import LoaderOptions

SHARDS, BATCH, SIZE, NZ, TICK = "synthetic", 16, 48, 32, 10  # or SHARDS = "shards/"


def make_generator() -> nn.Sequential:
    """(B, NZ, 1, 1) → (B, 3, 48, 48) in [-1, 1]: enlarge, then convolve."""
    layers: list[nn.Module] = [nn.ConvTranspose2d(NZ, 128, 3), nn.ReLU()]  # 3×3
    for deep, shallow in pairwise((128, 64, 32, 16, 16)):  # 6×6, 12×12, 24×24, 48×48
        layers += [nn.Upsample(scale_factor=2), nn.Conv2d(deep, shallow, 3, padding=1)]
        layers += [nn.BatchNorm2d(shallow), nn.ReLU()]
    return nn.Sequential(*layers, nn.Conv2d(16, 3, 3, padding=1), nn.Tanh())


def make_discriminator() -> nn.Sequential:
    """(B, 3, 48, 48) → logits (B,), without BatchNorm: every layer is spectrally normalised."""
    layers: list[nn.Module] = []
    for shallow, deep in pairwise((3, 16, 32, 64, 128)):  # 24×24, 12×12, 6×6, 3×3
        layers += [spectral_norm(nn.Conv2d(shallow, deep, 4, 2, 1)), nn.LeakyReLU(0.2)]
    return nn.Sequential(*layers, spectral_norm(nn.Conv2d(128, 1, 3)), nn.Flatten(0))


def make_step(device: torch.device) -> WholeStep:
    torch.manual_seed(0)
    generator, discriminator = make_generator(), make_discriminator()
    for net in (generator, discriminator):
        net.to(device).to(memory_format=torch.channels_last)
    update = AdversarialStep(generator, discriminator)
    random, rows = torch.Generator(device).manual_seed(0), StepRows(TICK, device)
    return WholeStep(update, (BATCH, SIZE, SIZE, 3), NZ, random, rows)


def main() -> None:
    device = pick_device("auto")
    step = make_step(device)
    step.prepare(choose_step("auto", device).name, print)  # before the first batch
    options = LoaderOptions(BATCH, SIZE, device=device, dtype=torch.uint8)
    loader = open_loader(SHARDS, options)
    for tick in range(1, 4):
        for _ in range(TICK):
            loader.fill(step.pixels)
            step.run()
        means = step.rows.take(TICK)().mean(axis=0)  # the host waits for the device only here
        named = zip(STATISTICS, means, strict=True)
        print(f"step {tick * TICK}", *(f"{name} {mean:.3f}" for name, mean in named))
    loader.close()
    generator = step.update.generator
    torch.save(generator.state_dict(), "own_net.pt")
    save_grid(generate(generator, latents(FIXED_SEEDS, NZ)), Path("own_net.png"))


if __name__ == "__main__":
    main()
