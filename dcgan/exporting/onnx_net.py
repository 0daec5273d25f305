"""A generator as an ONNX net, and the check that it draws what torch draws."""

from __future__ import annotations

import warnings
from typing import NamedTuple

import torch
from torch import nn

from dcgan.nets.models import Generator
from dcgan.sampling.generate import latents
from pipeline.images.pixels import to_uint8

OPSET = 18
"""Of ONNX, December 2022: what torch 2.9 exports without converting; onnxruntime reads it since
version 1.14."""

CHECKED_SEEDS = range(64)
CHECKED_BATCHES = (1, 5, 64)


class Difference(NamedTuple):
    """The largest differences between two drawings of the same latents."""

    images: float
    """Of the floats in [-1, 1]."""
    levels: int
    """Of the pixels, in levels of 255."""


class _Drawing(nn.Module):
    """What the file computes: latent (B, nz), labels (B, n) → images and pixels."""

    def __init__(self, net: Generator) -> None:
        super().__init__()
        self.net = net

    def forward(
        self, latent: torch.Tensor, labels: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        images = self.net(latent[:, :, None, None], labels)
        return images, to_uint8(images)


def to_onnx(net: Generator) -> bytes:
    """Export a generator, with its weights, for batches of any size.

    Args:
        net: on the CPU, float32, in eval mode.

    Returns:
        A model in ONNX's format. Its inputs are `latent`, (batch, nz) float32, and for a
        conditional net `labels`, (batch, n) float32: shares of the n classes that add up to 1, or
        attributes from 0 to 1. Its outputs are `images`, (batch, C, H, W) float32 in [-1, 1], and
        `pixels`, (batch, H, W, C) uint8.
    """
    inputs = _inputs(net, range(2))
    batch = torch.export.Dim("batch")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about the batch that both inputs share
        program = torch.onnx.export(
            _Drawing(net).eval(),
            tuple(inputs.values()),
            dynamo=True,
            opset_version=OPSET,
            input_names=[*inputs],
            output_names=["images", "pixels"],
            dynamic_shapes={name: {0: batch} for name in inputs},
            verbose=False,
        )
    assert program is not None
    model = program.model_proto
    graph = model.graph
    # Torch tells in them which lines of whose files each node comes from
    for each in (
        model,
        graph,
        *graph.node,
        *graph.initializer,
        *graph.value_info,
        *graph.input,
        *graph.output,
    ):
        del each.metadata_props[:]
    return model.SerializeToString()  # type: ignore[no-any-return]


def difference(model: bytes, net: Generator) -> Difference:
    """Compare what onnxruntime draws with a model of `to_onnx`, and torch with the net on the CPU.

    Both draw float32 in eval mode, at several sizes of a batch.
    """
    import onnxruntime

    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    inputs = _inputs(net, CHECKED_SEEDS)
    with torch.no_grad():
        images, pixels = _Drawing(net)(*inputs.values())
    worst = Difference(0.0, 0)
    for size in CHECKED_BATCHES:
        for start in range(0, len(images), size):
            rows = slice(start, start + size)
            found = session.run(None, {name: each[rows].numpy() for name, each in inputs.items()})
            floats = (torch.from_numpy(found[0]) - images[rows]).abs().max().item()
            levels = (torch.from_numpy(found[1]).int() - pixels[rows].int()).abs().max().item()
            worst = Difference(max(worst.images, floats), max(worst.levels, int(levels)))
    return worst


def _inputs(net: Generator, seeds: range) -> dict[str, torch.Tensor]:
    """Latents of seeds and, for a conditional net, a label for each in turn, as rows."""
    inputs = {"latent": latents(seeds, net.options["--nz"]).flatten(1)}
    if net.labels is not None:
        count = len(net.labels.names)
        inputs["labels"] = torch.eye(count)[torch.arange(len(seeds)) % count]
    return inputs
