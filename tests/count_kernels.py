"""Kernels and bytes of a step on a pretended H100: `python -m tests.count_kernels`.

Counted are the launches of one step at the default sizes, in bf16, as its parts are compiled and as
one graph; computed, not measured. See `tests/pretended_gpu.py`.
"""

import argparse
import re
from collections import Counter
from collections.abc import Sequence
from typing import Any
from unittest import mock

import torch

from dcgan.nets.models import Discriminator, Generator
from dcgan.step.adversarial import AdversarialStep
from dcgan.step.ema import EMA
from dcgan.step.statistics import StepRows
from dcgan.step.train_step import WholeStep
from dcgan.step.tuning import Tuning
from pipeline.images.labels import LabelSpace
from tests.pretended_gpu import Kernel, Ledger, pretend

COOPERATIVE: dict[str, Any] = {
    "triton.cooperative_reductions": True,
    "triton.force_cooperative_reductions": True,
}
"""Sums over many values in one launch, whose blocks wait for each other, rather than in three; what
is read a second time counts once, as if it came from a cache. Inductor has it for debugging."""

ONE_GRAPH = Tuning(one_graph=True)
COMBINED = Tuning(one_graph=True, compiler=("combo_kernels",))

VARIANTS: dict[str, tuple[Tuning, dict[str, Any]]] = {
    "parts": (Tuning(), {}),
    "one graph": (ONE_GRAPH, {}),
    "one graph, combo_kernels": (COMBINED, {}),
    "one graph, combo_kernels, joint": (COMBINED.model_copy(update={"joint": True}), {}),
    "one graph, cooperative": (ONE_GRAPH, COOPERATIVE),
    "one graph, cooperative, combo_kernels": (COMBINED, COOPERATIVE),
}
"""How each is computed, and further options of Inductor."""

KINDS = {
    "products": r"^(convolution|convolution_backward|mm|addmm|bmm|mv|dot)$",
    "lists: Adam, average": r"foreach|triton_for|fused_adam|lerp",
    "BatchNorm backward": r"batch_norm_backward",
    "BatchNorm forward": r"batch_norm",
    "activations alone": r"relu|tanh|threshold",
    "casts alone": r"fused__to_copy(_(permute|t|view|_to_copy))*(_\d+)?$|^eager aten._to_copy",
    "counters": r"fused_add(_copy_?)?(_\d+)?$",
    "everything else": r"",
}
"""What a kernel's name tells of it: the first pattern that is found in it."""

ACTIVATIONS = "BatchNorm backward", "BatchNorm forward", "activations alone"


def kind_of(kernel: Kernel) -> str:
    return next(kind for kind, pattern in KINDS.items() if re.search(pattern, kernel.name))


def count(
    variant: str, batch: int = 128, augmented: bool = False, classes: int = 0, **nets: int
) -> list[Kernel]:
    """Compile a step for the pretended GPU, do one, and return its kernels.

    Args:
        variant: of `VARIANTS`.
        batch: images in a step.
        augmented: whether D sees changed images.
        classes: of conditional nets; 0 for others.
        nets: sizes, for `make_step`.
    """
    from torch._inductor import config

    tuning, options = VARIANTS[variant]
    step, ledger = make_step(batch, augmented=augmented, classes=classes, **nets), Ledger()
    said: list[str] = []
    torch._dynamo.reset()
    with config.patch(**options), mock.patch.object(torch, "compile", ledger.compile):
        mode = step.prepare("compiled", said.append, tuning=tuning)
    assert (mode, step.is_one_graph) == ("compiled", tuning.one_graph), said
    ledger.kernels.clear()
    with ledger:
        step.body()
    return ledger.kernels


def make_step(
    batch: int = 128,
    image_size: int = 64,
    nz: int = 100,
    ngf: int = 64,
    ndf: int = 64,
    augmented: bool = False,
    classes: int = 0,
) -> WholeStep:
    """Build a step on the CPU that computes as on a GPU: in bf16, with a rate in a tensor."""
    labels = LabelSpace("classes", tuple(map(str, range(classes)))) if classes else None
    generator = Generator(image_size, nz, ngf, labels=labels)
    discriminator = Discriminator(image_size, ndf, labels=labels)
    for net in (generator, discriminator):
        net.to(memory_format=torch.channels_last)
    update = AdversarialStep(generator, discriminator, bf16=True, augmented=augmented)
    for optimizer in (update.optimizer_d, update.optimizer_g):
        for group in optimizer.param_groups:
            group["lr"] = torch.tensor(group["lr"])
    shape, rows = (batch, image_size, image_size, 3), StepRows(50, torch.device("cpu"))
    average, table = EMA(generator, batch, 10_000), torch.arange(classes) if classes else None
    return WholeStep(update, shape, nz, torch.Generator(), rows, False, average, table)


def table(kernels: Sequence[Kernel]) -> str:
    """Return a line for each kind, and their sums."""
    launches, moved = Counter[str](), Counter[str]()
    for kernel in kernels:
        launches[kind_of(kernel)] += kernel.launches
        moved[kind_of(kernel)] += kernel.bytes
    lines = [f"  {kind:22} {launches[kind]:4} {moved[kind] / 1e6:8,.0f} MB" for kind in KINDS]
    activations = sum(moved[kind] for kind in ACTIVATIONS) / 1e9
    lines.append(
        f"  {'all':22} {launches.total():4}; BatchNorm and activations {activations:.2f} GB"
    )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("variants", nargs="*", help=f"of {', '.join(VARIANTS)}; default: all")
    parser.add_argument("--augmented", action="store_true", help="with DiffAugment")
    parser.add_argument("--classes", type=int, default=0, help="of conditional nets")
    parser.add_argument("--batch", type=int, default=128, help="images in a step")
    parser.add_argument("--names", action="store_true", help="also list every kernel")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    pretend()
    for variant in asked.variants or VARIANTS:
        kernels = count(variant, asked.batch, asked.augmented, asked.classes)
        print(f"{variant}: kernels, and bytes that compiled code moves")
        print(table(kernels))
        if asked.names:
            for kernel in kernels:
                of = f"{kind_of(kernel):22} {kernel.launches} {kernel.bytes / 1e6:7.1f} MB"
                print(f"    {of} {kernel.name}")


if __name__ == "__main__":
    main()
