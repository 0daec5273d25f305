"""The whole step: its input stage, its average, its precision, and its state."""

import copy

import pytest
import torch

from dcgan.checks.findings import Verdict
from dcgan.checks.verify import step_resumes
from dcgan.step.ema import EMA, FITTED_BATCHES, FITTED_IMAGES
from dcgan.step.train_step import WholeStep
from pipeline.images.pixels import to_signed
from tests.steps import BATCH, NZ, nets, pixel_batch, states, whole_step

# What goes into the update, and what comes out


@pytest.mark.parametrize("bf16", [False, True])
def test_the_update_gets_normalised_pixels_and_noise_of_the_generator(bf16):
    step, by_hand = whole_step(bf16, mirror=False), whole_step(bf16)
    draw = torch.Generator().manual_seed(5)
    for k in range(3):
        noise = torch.zeros_like(step.noise).normal_(generator=draw)
        real = to_signed(pixel_batch(k), torch.bfloat16 if bf16 else torch.float32)
        expected = by_hand.update(real, noise)
        assert torch.equal(step(pixel_batch(k)), expected)
        assert torch.equal(step.rows.rows[k], expected)
    assert step.rows.place.item() == 3


@pytest.mark.parametrize(
    "batch",
    [
        torch.zeros(1, 32, 32, 3, dtype=torch.uint8),  # copy_ would repeat it
        torch.zeros(BATCH, 32, 32, 3),
        torch.zeros(BATCH, 3, 32, 32, dtype=torch.uint8),
    ],
)
def test_another_kind_of_batch_is_refused(batch):
    with pytest.raises(AssertionError, match="a batch of"):
        whole_step()(batch)


def test_mirror_flips_about_half_of_the_images_anew_each_time():
    step = whole_step()
    step.pixels.copy_(pixel_batch(0))
    flips = []
    for _ in range(20):
        step.draw()
        shown = step._flipped()
        as_they_are = [torch.equal(a, b) for a, b in zip(shown, step.pixels, strict=True)]
        turned = [torch.equal(a, b) for a, b in zip(shown, step.pixels.flip(2), strict=True)]
        assert [not same for same in as_they_are] == turned
        flips.append(turned)
    assert torch.equal(step.pixels, pixel_batch(0))
    share = sum(map(sum, flips)) / (20 * BATCH)
    assert abs(share - 0.5) < 4 * 0.5 / (20 * BATCH) ** 0.5
    assert len(set(map(tuple, flips))) > 15


def test_an_image_and_its_mirror_image_train_alike_only_with_mirror():
    def trained(mirror, batch):
        return whole_step(mirror=mirror)(batch).clone()

    symmetric = pixel_batch(0) | pixel_batch(0).flip(2)
    plain = trained(False, pixel_batch(0))
    assert not torch.equal(plain, trained(False, pixel_batch(0).flip(2)))
    assert not torch.equal(plain, trained(True, pixel_batch(0)))
    # the flips are drawn after the noise, so that nothing else changes with them
    assert torch.equal(trained(False, symmetric), trained(True, symmetric))


# The average


def share_of_the_net(updates: int, half_life: int) -> float:
    """How far an update moves the average; stylegan2-ada-pytorch's `training_loop`, literally."""
    cur_nimg = (updates - 1) * BATCH
    ema_nimg = min(half_life, cur_nimg * 0.05)
    return float(1 - 0.5 ** (BATCH / max(ema_nimg, 1e-8)))


def test_warm_the_average_has_its_half_life_in_images():
    net, _ = nets(size=32)
    average = EMA(net, images=BATCH, half_life=10 * BATCH)
    before = [weight.clone() for weight in average.net.parameters()]
    with torch.no_grad():
        for weight in net.parameters():
            weight.add_(1)
        for statistics in net.buffers():
            statistics.add_(3)
    for _ in range(10):
        average.update(torch.tensor(1000.0))
    for old, mean in zip(before, average.net.parameters(), strict=True):
        torch.testing.assert_close(mean, old + 0.5, rtol=1e-5, atol=1e-5)
        assert not mean.requires_grad
    for mine, theirs in zip(average.net.buffers(), net.buffers(), strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize("updates", [1, 2, 250, 252, 1_000_000])
@pytest.mark.parametrize("half_life", [100, 10_000_000])
def test_the_half_life_is_at_most_a_twentieth_of_the_images_seen(updates, half_life):
    net = torch.nn.BatchNorm1d(1)
    torch.nn.init.zeros_(net.weight)
    average = EMA(net, images=BATCH, half_life=half_life)
    torch.nn.init.ones_(net.weight)
    average.update(torch.tensor(float(updates)))
    expected = share_of_the_net(updates, half_life)
    assert average.net.get_parameter("weight").item() == pytest.approx(expected, rel=1e-5)


def test_the_step_averages_after_each_update():
    step, (followed, _) = whole_step(ema_nimg=2), nets(size=32)  # warm after five steps
    expected = [weight.clone() for weight in followed.parameters()]
    assert step.ema is not None
    for k in range(7):
        step(pixel_batch(k))
        for mean, weight in zip(expected, step.update.generator.parameters(), strict=True):
            mean.lerp_(weight.detach(), share_of_the_net(k + 1, 2))
        found = list(step.ema.net.parameters())
        torch.testing.assert_close(found, expected, atol=1e-7, rtol=1e-5)
    assert whole_step(ema_nimg=0).ema is None


def test_settling_takes_the_statistics_of_the_averaged_weights_and_nothing_else():
    step = whole_step(ema_nimg=40)
    for k in range(3):
        step(pixel_batch(k))
    average, random = step.ema, torch.get_rng_state()
    assert average is not None
    before = [weight.clone() for weight in average.net.parameters()]
    average.fit_batch_norm(NZ)
    assert all(map(torch.equal, before, average.net.parameters()))
    assert torch.get_rng_state().equal(random)
    first, norm = average.net.get_submodule("main.0"), average.net.get_submodule("main.1")
    noise = torch.randn(
        FITTED_BATCHES, FITTED_IMAGES, NZ, 1, 1, generator=torch.Generator().manual_seed(0)
    )
    maps = [first(batch) for batch in noise]
    means = torch.stack([each.mean(dim=(0, 2, 3)) for each in maps]).mean(dim=0)
    variances = torch.stack([each.var(dim=(0, 2, 3)) for each in maps]).mean(dim=0)
    torch.testing.assert_close(norm.running_mean, means)
    torch.testing.assert_close(norm.running_var, variances)
    settled = [buffer.clone() for buffer in average.net.buffers()]
    average.fit_batch_norm(NZ)
    assert all(map(torch.equal, settled, average.net.buffers()))
    step(pixel_batch(4))  # training goes on as if nothing had been
    assert all(map(torch.equal, average.net.buffers(), step.update.generator.buffers()))


# Precision


def test_in_bf16_everything_that_stays_is_float32():
    step = whole_step(bf16=True)
    made, judged = [], []
    step.update.generator.register_forward_hook(lambda net, args, out: made.append(out.dtype))
    step.update.discriminator.register_forward_hook(lambda net, args, out: judged.append(out.dtype))
    step(pixel_batch(0))
    assert (made, judged) == ([torch.bfloat16], [torch.bfloat16] * 3)
    kept = [tensor for tensor in step.state() if tensor.is_floating_point()]
    kept += [p.grad for p in step.update.discriminator.parameters() if p.grad is not None]
    assert len(kept) > 50
    assert {tensor.dtype for tensor in kept} == {torch.float32}


@pytest.mark.parametrize("around", [True, False])
def test_a_region_around_the_step_leaves_no_stale_weights(around):
    def trained() -> list[torch.Tensor]:
        step = whole_step(bf16=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=around):
            for k in range(2):
                step(pixel_batch(k))
        return states(step)

    alone = whole_step(bf16=True)
    for k in range(2):
        alone(pixel_batch(k))
    assert all(torch.equal(one, two) for one, two in zip(trained(), states(alone), strict=True))


# Its state, saved and loaded


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_a_loaded_state_is_the_one_saved(device, bf16):
    first, second = (whole_step(bf16, device=device) for _ in range(2))
    for seed in range(3):
        first(pixel_batch(seed).to(device))
    second.load_state_dict(first.state_dict(), same_random=False)
    assert not second.random.get_state().equal(first.random.get_state())
    second.load_state_dict(copy.deepcopy(first.state_dict()), same_random=True)
    pairs = list(zip(states(first), states(second), strict=True))
    assert len(pairs) > 60
    assert all(one.equal(other) for one, other in pairs)
    if device == "cpu":  # elsewhere a backward pass may add in any order
        for step in (first, second):
            step(pixel_batch(9))
        assert all(map(torch.equal, states(first), states(second)))


def test_a_saved_state_holds_no_more_than_it_needs():
    """Three rows, not the buffer of 32 that they lie in."""
    step = whole_step()
    for seed in range(3):
        step(pixel_batch(seed))
    rows = step.state_dict()["rows"]
    assert rows.shape == (3, 5)
    assert rows.untyped_storage().nbytes() == 3 * 5 * 4


@pytest.mark.parametrize("place", [0, -3])
def test_a_number_that_is_none_is_found_wherever_it_is(place):
    step = whole_step()
    step(pixel_batch(0))
    assert step.is_finite()
    tensor = [tensor for tensor in step.state() if tensor.is_floating_point()][place]
    with torch.no_grad():
        tensor[(0,) * tensor.ndim] = float("inf")
    assert not step.is_finite()


def test_the_doctor_sees_that_it_resumes_and_would_see_if_not(monkeypatch):
    finding = step_resumes(torch.device("cpu"))
    assert (finding.verdict, finding.found) == (Verdict.OK, "equal to the bit")
    load = WholeStep.load_state_dict

    def without_optimisers(self, state, same_random):
        load(self, {**state, "optimizer_d": {}, "optimizer_g": {}}, same_random)

    monkeypatch.setattr(WholeStep, "load_state_dict", without_optimisers)
    assert step_resumes(torch.device("cpu")).verdict is Verdict.FAIL
