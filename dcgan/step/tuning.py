"""A choice among equal ways to compute a step: the forms of its layers, and how it is compiled.

On CUDA the choice is measured (`dcgan.step.tuner`). On a CPU it is a fixed table, so that the same
command gives the same bits.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from typing import Literal, NamedTuple, get_args

import torch
from pydantic import BaseModel, ConfigDict
from torch import nn

from dcgan.nets.conditional import blank_labels
from dcgan.nets.forms import (
    HALVING,
    KERNEL,
    ONE_PATCH,
    PADDED_TO,
    Conv2d,
    ConvTranspose2d,
    Forms,
    Product,
    products_of,
)
from dcgan.step.adversarial import AdversarialStep
from dcgan.step.precision import cpu_flags

CompilerOption = Literal["combo_kernels", "triton.enable_pdl", "coordinate_descent_tuning"]
COMPILER_OPTIONS: tuple[CompilerOption, ...] = get_args(CompilerOption)
"""Options of torch._inductor.config that may make the same maths faster: small kernels in one
launch, a kernel that starts while the last one ends, and a search for block sizes."""


class Tuning(BaseModel):
    """How a step is computed; by default, untuned."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    layers: dict[str, Forms] = {}
    """By name. A layer without an entry follows the fixed rule in `dcgan.nets.forms`."""
    joint: bool = False
    """Whether real and generated images go through D as one batch."""
    one_graph: bool = False
    """Whether the update is compiled as a whole."""
    compiler: tuple[CompilerOption, ...] = ()
    """The compiler's options that are on."""

    def fits(self, layers: Mapping[str, LayerSize]) -> bool:
        """Return whether a step of such layers, by name, can compute so."""
        return all(
            name in layers
            and all(
                form in known
                for form, known in zip(forms, layers[name].forms().values(), strict=True)
            )
            for name, forms in self.layers.items()
        )

    def apply(self, update: AdversarialStep) -> None:
        """Have a step compute in the chosen way, as far as that is not the compiler's business."""
        for name, layer in named_layers(update):
            layer.forms = self.layers.get(name)
        update.joint = self.joint

    @contextmanager
    def compiling(self) -> Iterator[None]:
        """Apply the compiler's options to all that is compiled inside."""
        from torch._inductor import config  # importing this takes seconds

        with ExitStack() as patches:
            for option in self.compiler:
                with suppress(AttributeError):  # an option that this torch does not have
                    patches.enter_context(config.patch({option: True}))
            yield

    def describe(self) -> str:
        """Describe the choice in a line."""
        changed = sum(forms != Forms() for forms in self.layers.values())
        words = [f"other forms than the library's in {changed} layers"] if changed else []
        words += ["real and generated images in one batch"] if self.joint else []
        words += ["the update as one graph"] if self.one_graph else []
        words += self.compiler
        return ", ".join(words) or ("the library's forms" if self.layers else "none")


UNTUNED = Tuning()


class LayerSize(NamedTuple):
    """The size of a layer; equal sizes are timed once."""

    big: tuple[int, ...]
    """(C, H, W)"""
    small: tuple[int, ...]
    """(N, h, w)"""

    @property
    def is_one_patch(self) -> bool:
        """Whether it lies between one pixel and one patch."""
        return self.small[1:] == (1, 1)

    @property
    def weights(self) -> tuple[int, int, int, int]:
        """The shape of its weights, (N, C, K, L)."""
        height, width = self.big[1:] if self.is_one_patch else (KERNEL, KERNEL)
        return self.small[0], self.big[0], height, width

    def forms(self) -> dict[str, dict[str, Product]]:
        """Return the forms by name, of each product by name, without those that are the same."""
        products = ONE_PATCH if self.is_one_patch else HALVING
        same = {"padded"} if self.big[0] % PADDED_TO == 0 else set()
        return {
            product: {name: form for name, form in forms.items() if name not in same}
            for product, forms in products._asdict().items()
        }


def named_layers(update: AdversarialStep) -> Iterator[tuple[str, Conv2d | ConvTranspose2d]]:
    """Yield the layers of both nets that have forms, by name."""
    for which, net in (("G", update.generator), ("D", update.discriminator)):
        for name, module in net.named_modules():
            if isinstance(module, Conv2d | ConvTranspose2d):
                yield f"{which}.{name}", module


@torch.no_grad()
def measure_layers(
    update: AdversarialStep, nz: int, image: tuple[int, int, int]
) -> dict[str, LayerSize]:
    """Find the sizes of the layers of both nets, by name; images are (C, H, W)."""
    layers = dict(named_layers(update))
    found: dict[str, LayerSize] = {}

    def note(
        name: str, module: nn.Module, inputs: tuple[torch.Tensor], output: torch.Tensor
    ) -> None:
        (channels, *sides), (features, *places) = inputs[0].shape[1:], output.shape[1:]
        if isinstance(module, ConvTranspose2d):
            (channels, *sides), (features, *places) = (features, *places), (channels, *sides)
        if products_of(layers[name], sides) is not None:
            found[name] = LayerSize((channels, *sides), (features, *places))

    hooks = [each.register_forward_hook(partial(note, name)) for name, each in layers.items()]
    device = next(update.generator.parameters()).device
    for net, shape in ((update.generator, (nz, 1, 1)), (update.discriminator, image)):
        training = net.training
        labels = blank_labels(getattr(net, "labels", None), 1, device)
        net.eval()(torch.zeros(1, *shape, device=device), *labels)
        net.train(training)
    for hook in hooks:
        hook.remove()
    return found


# What needs no measuring


def library(layers: Mapping[str, LayerSize]) -> Tuning:
    """Return the library's forms, except between one pixel and one patch.

    There, compiled code for CUDA needs products (see `dcgan.nets.forms`).
    """
    return Tuning(layers={name: Forms() for name, each in layers.items() if not each.is_one_patch})


PICTURES, OF_PICTURES = 3, Forms(up="blocks")
"""Channels of a big map that is pictures, at most, and the forms of its layer."""

SMALL = 8
"""Side of a big map that is small, at most."""

OF_SMALL = {
    ("AVX2", "fp32"): Forms(weights="im2col"),
    ("AVX512", "fp32"): Forms(),
    ("AVX512", "bf16"): Forms(weights="im2col"),
}
"""By instruction set and precision. Measured on an EPYC (Zen 4, AVX-512; held to AVX2 for the first
row), as `dcgan-profile step --tune` does. With AMX, layers stay as `dcgan.nets.forms` has them,
which was measured on a Xeon."""


def for_cpu(layers: Mapping[str, LayerSize], precision: str) -> Tuning:
    """Return the fixed choice for this machine's CPU."""
    of_small = OF_SMALL.get((instruction_set(), precision))
    if of_small is None:
        return UNTUNED
    chosen = library(layers).layers
    for name in chosen:
        channels, *sides = layers[name].big
        if channels <= PICTURES:
            chosen[name] = OF_PICTURES
        elif max(sides) <= SMALL:
            chosen[name] = of_small
    return Tuning(layers=chosen)


def instruction_set() -> str:
    """Return the instruction set of torch's products on this CPU: AMX, AVX512, AVX2 or another."""
    if "amx_tile" in cpu_flags():
        return "AMX"
    return torch.backends.cpu.get_cpu_capability()
