"""Convolutions as matrix products, against the library's."""

from unittest.mock import MagicMock

import pytest
import torch
from torch.nn import functional

from dcgan.nets import im2col
from dcgan.nets.models import Discriminator, Generator

GEOMETRIES = [(4, 2, 1, 4), (4, 1, 0, 1), (4, 2, 1, 3), (2, 2, 0, 2)]
"""Kernel, stride, padding, side of the smaller map."""

LAYERS = [im2col.Conv2d, im2col.ConvTranspose2d]


def layer_and_input(kind, geometry, dtype=torch.float32, inputs=6, outputs=5, batch=3):
    kernel, stride, padding, small = geometry
    draw = torch.Generator().manual_seed(1)
    layer = kind(inputs, outputs, kernel, stride, padding, bias=False).to(dtype)
    weight = torch.randn(layer.weight.shape, generator=draw, dtype=torch.float64)
    layer.load_state_dict({"weight": weight})
    side = im2col._side(small, *geometry[:3]) if kind is im2col.Conv2d else small
    maps = torch.randn(batch, inputs, side, side + side // 3, generator=draw, dtype=torch.float64)
    if kind is im2col.Conv2d:  # as wide as whole strides are
        maps = maps[..., :side]
    return layer, maps.to(dtype)


def results(layer, maps, layout):
    """Output and both gradients, for a loss whose slope differs everywhere."""
    layer = layer.to(memory_format=layout)
    layer.zero_grad()
    maps = maps.to(memory_format=layout).requires_grad_()
    output = layer(maps)
    slope = torch.linspace(-1, 1, output.numel(), dtype=torch.float64).view(output.shape)
    (output * slope.to(output.dtype)).sum().backward()
    assert maps.grad is not None
    return output.detach(), maps.grad, layer.weight.grad.clone()


@pytest.fixture
def library(monkeypatch):
    """Called with the arguments of `results`, gives those of the library's convolution."""

    def reference(*arguments):
        with monkeypatch.context() as patched:
            patched.setattr(im2col, "LARGEST", 0)
            patched.setattr(im2col, "_is_one_patch", lambda *geometry: False)
            return results(*arguments)

    return reference


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("kind", LAYERS)
def test_products_are_the_librarys_convolution(kind, geometry, layout, library):
    layer, maps = layer_and_input(kind, geometry, torch.float64)
    found, wanted = results(layer, maps, layout), library(layer, maps, layout)
    for mine, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("geometry", GEOMETRIES[:2])
@pytest.mark.parametrize("kind", LAYERS)
def test_in_bf16_they_are_as_near_to_the_truth_as_the_librarys(kind, geometry, library):
    layer, maps = layer_and_input(kind, geometry, inputs=64, outputs=32)
    truth = library(layer.double(), maps.double(), torch.channels_last)
    arguments = (layer.float(), maps.float(), torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
        mine, theirs = results(*arguments), library(*arguments)
    assert [tensor.dtype for tensor in mine] == [tensor.dtype for tensor in theirs]
    for found, reference, true in zip(mine, theirs, truth, strict=True):
        errors = [(tensor - true).norm() / true.norm() for tensor in (found, reference)]
        assert errors[0] < 0.004  # of a sum of numbers that each have 8 bits
        # Sums of overlapping patches are rounded as they grow, up to four times
        assert errors[0] < 2 * errors[1]


def test_patches_are_those_of_unfold_and_overlaps_those_of_fold():
    kernel, stride, padding, small = GEOMETRIES[0]
    side = im2col._side(small, kernel, stride, padding)
    images = torch.randn(2, side, side, 3)
    gathered = im2col._gather(images, kernel, stride, padding)
    assert gathered.shape == (2, small, small, kernel * kernel * 3)
    columns = gathered.unflatten(3, (kernel**2, 3)).permute(0, 4, 3, 1, 2).flatten(3).flatten(1, 2)
    in_planes = images.permute(0, 3, 1, 2)
    unfolded = functional.unfold(in_planes, kernel, padding=padding, stride=stride)
    assert torch.equal(columns, unfolded)
    folded = functional.fold(columns, side, kernel, padding=padding, stride=stride)
    added = im2col._overlap_add(gathered, kernel, stride, padding)
    torch.testing.assert_close(added.permute(0, 3, 1, 2), folded)
    assert added.is_contiguous()


@pytest.mark.parametrize(("largest", "products"), [(0, 0), (8, 1), (64, 3)])
def test_which_layers_are_products(monkeypatch, largest, products):
    monkeypatch.setattr(im2col, "LARGEST", largest)
    calls = [MagicMock(wraps=getattr(im2col, name)) for name in ("_gather", "_overlap_add")]
    monkeypatch.setattr(im2col, "_gather", calls[0])
    monkeypatch.setattr(im2col, "_overlap_add", calls[1])
    with torch.no_grad():
        Discriminator(32, ndf=4)(torch.zeros(2, 3, 32, 32))
        Generator(32, nz=5, ngf=4)(torch.zeros(2, 5, 1, 1))
    assert [each.call_count for each in calls] == [products, products]


@pytest.mark.parametrize("kind", LAYERS)
def test_between_one_pixel_and_one_patch_no_convolution_is_left(kind, monkeypatch):
    layer, maps = layer_and_input(kind, (4, 1, 0, 1))
    for base in (torch.nn.Conv2d, torch.nn.ConvTranspose2d):
        monkeypatch.setattr(base, "forward", None)
    for layout in (torch.contiguous_format, torch.channels_last):
        results(layer, maps.detach(), layout)
        assert layer.weight.grad.stride() == layer.weight.stride(), "what Inductor expects"
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    assert torch.equal(compiled(maps.detach()), layer(maps.detach()))
