"""Every form of a layer's products against the library's, alone and in the nets."""

import copy
from unittest.mock import MagicMock

import pytest
import torch
from torch.nn import functional

from dcgan.nets import forms
from dcgan.nets.batch_norm import BatchNorm2d
from dcgan.nets.forms import HALVING, IM2COL, ONE_PATCH, Conv2d, ConvTranspose2d, Forms
from dcgan.step.tuning import Tuning, for_cpu, measure_layers, named_layers
from tests.steps import NZ, batch, nets, whole_step

EXACT = 1e-14
"""Of the largest magnitude, in float64."""

SHAPES = [
    (side, channels, features, images)
    for side in ((8, 8), (6, 6), (64, 64), (6, 14))
    for channels, features, images in ((3, 8, 3), (1, 5, 1), (16, 7, 2))
]
"""Height and width of the big map, C, N and B."""


def maps(*shape, seed=0, dtype=torch.float64):
    drawn = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return drawn.to(dtype).contiguous(memory_format=torch.channels_last)


def farthest(found, wanted):
    return float(((found - wanted).abs().max() / wanted.abs().max()).detach())


@pytest.mark.parametrize(("sides", "channels", "features", "images"), SHAPES)
def test_every_form_of_a_product_is_the_librarys(sides, channels, features, images):
    halves = [side // 2 for side in sides]
    patch = (4, 4) if sides[0] == sides[1] else (2, 7)
    for products, big, small, kernel in (
        (HALVING, sides, halves, (4, 4)),
        (ONE_PATCH, patch, (1, 1), patch),
    ):
        of = {
            "big": maps(images, channels, *big, seed=1),
            "small": maps(images, features, *small, seed=2),
            "weights": maps(features, channels, *kernel, seed=3),
        }
        operands = {"down": ("big", "weights"), "up": ("small", "weights")}
        for product, known in products._asdict().items():
            given = [of[name] for name in operands.get(product, ("big", "small"))]
            wanted = known["library"](*given)
            assert len(known) > 1
            for name, form in known.items():
                found = form(*given)
                assert found.shape == wanted.shape, name
                assert farthest(found, wanted) <= EXACT, name


def test_patches_are_those_of_unfold_and_overlaps_those_of_fold():
    images = torch.randn(2, 8, 8, 3)
    gathered = forms._patches(images)
    assert gathered.shape == (2, 4, 4, 16 * 3)
    columns = gathered.unflatten(3, (16, 3)).permute(0, 4, 3, 1, 2).flatten(3).flatten(1, 2)
    unfolded = functional.unfold(images.permute(0, 3, 1, 2), 4, padding=1, stride=2)
    assert torch.equal(columns, unfolded)
    folded = functional.fold(columns, 8, 4, padding=1, stride=2)
    torch.testing.assert_close(forms._overlap_add(gathered).permute(0, 3, 1, 2), folded)


@pytest.mark.parametrize(
    ("name", "size"), [("im2col", 32), ("blocks", 32), ("padded", 32), ("blocks", (20, 12))]
)
def test_a_step_in_any_form_is_the_librarys(name, size):
    """The layers choose the right product for forward and for each gradient."""
    steps = [whole_step(size=size), whole_step(size=size)]
    real, noise = batch(0, torch.float64, size=size)
    last = [each for each, _ in named_layers(steps[0].update)][-1]
    layers = {}
    for each, _ in named_layers(steps[0].update):
        one_patch = each in ("G.main.0", last)
        layers[each] = IM2COL if one_patch else Forms(name, name, name)
    for step, tuning in zip(steps, (Tuning(layers=layers), Tuning()), strict=True):
        tuning.apply(step.update)
        for net in (step.update.generator, step.update.discriminator):
            net.double()
        step.update(real, noise)
    for which in ("generator", "discriminator"):
        found, wanted = (getattr(step.update, which) for step in steps)
        for mine, theirs in zip(found.parameters(), wanted.parameters(), strict=True):
            assert farthest(mine.grad, theirs.grad) < 1e-11


@pytest.mark.parametrize("layer", [Conv2d(8, 6, 4, 2, 1, bias=False), Conv2d(8, 6, 4, bias=False)])
@pytest.mark.parametrize("transposed", [False, True])
def test_in_bf16_it_is_as_near_to_the_truth_as_the_librarys(layer, transposed):
    if transposed:
        kind = ConvTranspose2d(6, 8, 4, layer.stride, layer.padding, bias=False)
        kind.weight = layer.weight
        layer = kind
        inputs = maps(3, 6, *([4, 4] if layer.stride == (2, 2) else [1, 1]), dtype=torch.float32)
    else:
        inputs = maps(3, 8, *([8, 8] if layer.stride == (2, 2) else [4, 4]), dtype=torch.float32)
    truth = layer.double()(inputs.double())
    layer.float()
    errors = []
    for each in (Forms(), IM2COL):
        layer.forms = each
        with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
            found = layer(inputs)
        assert found.dtype == torch.bfloat16
        errors.append(float(((found - truth).norm() / truth.norm()).detach()))
    assert errors[1] < 0.01
    assert errors[1] < 2 * errors[0]


def test_a_net_draws_the_same_pictures_whatever_its_run_has_chosen(monkeypatch):
    step = whole_step()
    net = step.update.generator.eval()
    noise = torch.randn(2, NZ, 1, 1)
    before = net(noise)
    chosen = {"G.main.6": Forms("blocks", "blocks"), "G.main.9": Forms("blocks", "blocks")}
    Tuning(layers=chosen).apply(step.update)
    assert torch.equal(net(noise), before)
    called = MagicMock(wraps=HALVING.up["blocks"])
    monkeypatch.setitem(HALVING.up, "blocks", called)
    net.train()(noise)
    assert called.call_count == 2, "in training it is what was chosen"


def test_between_one_pixel_and_one_patch_gradients_are_laid_out_as_the_weights():
    """As Inductor expects, whatever cuDNN would do."""
    for layer, inputs in (
        (Conv2d(6, 5, 4, bias=False), maps(3, 6, 4, 4, dtype=torch.float32)),
        (ConvTranspose2d(6, 5, 4, bias=False), maps(3, 6, 1, 1, dtype=torch.float32)),
    ):
        layer.to(memory_format=torch.channels_last)
        layer(inputs).sum().backward()
        assert layer.weight.grad is not None
        assert layer.weight.grad.stride() == layer.weight.stride()
        compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
        assert torch.equal(compiled(inputs), layer(inputs))


def test_sizes_of_layers_are_found_and_those_of_any_smallest_map_have_a_fixed_choice(monkeypatch):
    wide = measure_layers(whole_step(size=(28, 20)).update, NZ, (3, 20, 28))
    assert (wide["G.main.0"].big, wide["D.main.5"].big) == ((16, 5, 7), (16, 5, 7))
    assert wide["D.main.5"].is_one_patch
    assert wide["D.main.5"].weights == (1, 16, 5, 7)
    assert wide["G.main.3"].weights == (16, 8, 4, 4)
    monkeypatch.setattr("dcgan.step.tuning.instruction_set", lambda: "AVX2")
    assert [*for_cpu(wide, "fp32").layers] == ["G.main.3", "G.main.6", "D.main.0", "D.main.2"]
    step = whole_step()
    layers = measure_layers(step.update, NZ, (3, 32, 32))
    assert layers["G.main.0"] == ((32, 4, 4), (NZ, 1, 1))
    assert layers["G.main.9"] == ((3, 32, 32), (8, 16, 16)) == layers["D.main.0"]
    assert set(layers) == {name for name, _ in named_layers(step.update)}


# Real and generated images as one batch


def test_two_batches_in_one_call_are_two_calls():
    one = BatchNorm2d(5).double()
    torch.nn.init.normal_(one.weight)
    other = copy.deepcopy(one)
    images = maps(6, 5, 4, 4).requires_grad_()
    found = one(images, 2)
    wanted = torch.cat([other(half) for half in images.chunk(2)])
    assert farthest(found, wanted) <= EXACT
    slope = maps(6, 5, 4, 4, seed=1)
    leaves = [images, one.weight, one.bias]
    mine = torch.autograd.grad(found, leaves, slope)
    theirs = torch.autograd.grad(wanted, [images, other.weight, other.bias], slope)
    assert max(map(farthest, mine, theirs)) <= 10 * EXACT
    for name, buffer in one.named_buffers():  # in the order of the calls
        torch.testing.assert_close(buffer, other.get_buffer(name), rtol=EXACT, atol=EXACT)


def test_gradients_of_two_batches_have_none_of_their_own():
    """They would be wrong; a penalty on gradients needs one batch at a time."""
    images = maps(4, 3, 2, 2).requires_grad_()
    (gradient,) = torch.autograd.grad(
        BatchNorm2d(3).double()(images, 2).pow(3).sum(), images, create_graph=True
    )
    with pytest.raises(RuntimeError, match="differentiate"):
        gradient.sum().backward()


def test_nets_count_their_mini_batches_as_batchnorms_of_torch_do():
    update = whole_step().update
    update(*batch(0, size=32))  # D sees real images, generated ones, and these again
    update.joint = True
    update(*batch(1, size=32))
    update.generator.eval()(batch(2, size=32)[1])
    counts = [
        {int(count) for name, count in net.named_buffers() if name.endswith("tracked")}
        for net in (update.generator, update.discriminator)
    ]
    assert counts == [{2}, {6}]


def test_the_joint_pass_is_two_passes():
    pair = nets(torch.float64, size=32)
    steps = []
    for joint in (False, True):
        step = whole_step()
        for name, net in zip(("generator", "discriminator"), pair, strict=True):
            getattr(step.update, name).double().load_state_dict(net.state_dict())
        step.update.joint = joint
        steps.append(step.update)
    statistics = [step(*batch(0, torch.float64, size=32)) for step in steps]
    assert farthest(statistics[1], statistics[0]) <= 10 * EXACT
    two, one = (step.discriminator for step in steps)
    for name, buffer in two.named_buffers():
        torch.testing.assert_close(one.get_buffer(name), buffer, rtol=1e-12, atol=1e-13)
    for mine, theirs in zip(one.parameters(), two.parameters(), strict=True):
        assert farthest(mine.grad, theirs.grad) < 1e-11
