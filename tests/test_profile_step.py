"""`dcgan-profile step`: against the reference, and at sizes that take no time."""

import json
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from dcgan.nets import forms
from dcgan.options import MeasuringStep, TrainConfig
from dcgan.profile import app
from dcgan.profiling import step as profile_step
from dcgan.profiling.measuring import CpuClock, Spread
from dcgan.profiling.step import (
    LAUNCHED,
    Entrant,
    UnavailableError,
    build_ours,
    build_tutorial,
    conclude,
    count_flops,
    launch_seconds,
    make_entrants,
    make_pixels,
    matrix_rate,
    take_turn,
)
from dcgan.profiling.tutorial_step import (
    tutorial_discriminator,
    tutorial_generator,
    tutorial_step,
)
from dcgan.training.build import build_nets
from pipeline.errors import UserError
from tests import steps
from tests.reference import tutorial as reference
from tests.running import assert_four_parts, flags

CPU = torch.device("cpu")
NZ, WIDTH = 8, 4
TINY: dict[str, Any] = {
    "batch_size": 4,
    "image_size": 32,
    "nz": NZ,
    "ngf": WIDTH,
    "ndf": WIDTH,
    "rounds": 2,
    "seconds": 0,
    "device": "cpu",
}
EAGER = ["tutorial", "eager fp32", "eager auto"]


@pytest.fixture(scope="module", autouse=True)
def alone():
    """One thread: several wait for each other wherever the machine is busy."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


# The tutorial's step


def test_the_tutorials_step_is_the_references_to_the_bit():
    torch.manual_seed(3)
    net_g, net_d = reference.TutorialGenerator(NZ, WIDTH), reference.TutorialDiscriminator(WIDTH)
    for net in (net_g, net_d):
        net.apply(reference.weights_init)
    ours = tutorial_generator(64, NZ, WIDTH), tutorial_discriminator(64, WIDTH)
    for mine, theirs in zip(ours, (net_g.main, net_d.main), strict=True):
        mine.load_state_dict(theirs.state_dict())
    step = tutorial_step(*ours, NZ, CPU)
    optimizers = reference.tutorial_optimizers(net_g, net_d)
    for number in range(3):
        real, _ = steps.batch(number)
        torch.manual_seed(number)
        found = step(real)
        torch.manual_seed(number)
        noise = torch.randn(len(real), NZ, 1, 1)
        # The reference puts the sigmoid after a net without one
        assert found == reference.tutorial_step(net_g, net_d.main[:-1], *optimizers, real, noise)
    for mine, theirs in zip(ours, (net_g.main, net_d.main), strict=True):
        for name, tensor in mine.state_dict().items():
            assert torch.equal(tensor, theirs.state_dict()[name])


@pytest.mark.parametrize(("size", "channels"), [(32, 3), (64, 1)])
def test_its_nets_take_our_weights_and_compute_the_same(size, channels):
    config = TrainConfig(
        shards="synthetic", image_size=size, channels=channels, nz=NZ, ngf=2, ndf=3
    )
    generator, discriminator = build_nets(config, CPU)
    net_g = tutorial_generator(size, NZ, 2, channels)
    net_d = tutorial_discriminator(size, 3, channels)
    net_g.load_state_dict(generator.main.state_dict())
    net_d.load_state_dict(discriminator.main.state_dict())
    latents = torch.ones(2, NZ, 1, 1)
    with torch.no_grad():
        images = net_g(latents)
        found, expected = net_d(images).flatten(), discriminator(images).sigmoid()
        torch.testing.assert_close(images, generator(latents), rtol=1e-4, atol=1e-5)
    assert images.shape == (2, channels, size, size)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=0)


# What is counted


def test_products_count_as_the_convolutions_they_replace(monkeypatch):
    counts = []
    for largest in (0, forms.IM2COL_SIDE):
        monkeypatch.setattr(forms, "IM2COL_SIDE", largest)
        step = steps.whole_step()
        counts.append(count_flops(step.run))
    assert counts[0] == counts[1] > 1e6


def test_flops_are_twice_the_multiplications():
    weight = torch.zeros(5, 3, 4, 4)
    images = torch.zeros(2, 3, 8, 8)
    found = count_flops(lambda: torch.conv2d(images, weight, stride=2, padding=1))
    assert found == 2 * (2 * 4 * 4) * (5 * 3 * 4 * 4)


def test_the_matrix_rate_is_that_of_the_product(monkeypatch):
    monkeypatch.setattr(profile_step, "SIDE", 64)
    assert 1e6 < matrix_rate("fp32", CPU) < 1e16


@pytest.fixture
def recorded():
    """An entrant, and what is done with it."""
    done: list[str] = []
    entrant = Entrant(
        lambda: done.append("step"), lambda: done.append("begin"), "fp32", 0, None, None
    )
    return entrant, done


def test_a_turn_has_its_steps_and_their_time(recorded):
    entrant, done = recorded
    turn = take_turn(entrant, 5, CpuClock(), CPU)
    assert done == ["begin", *["step"] * 5]
    assert turn.steps == 5
    assert 0 < turn.step_ms < 1000
    assert turn.cpu_ms >= 0


def test_the_fastest_is_named_with_its_ratios():
    one, faster, less_cpu = Spread(1, 1, 1), Spread(2, 2, 3), Spread(4, 2, 5)
    told = conclude({"tutorial": one, "graph": faster}, {"tutorial": one, "graph": less_cpu})
    assert told.startswith("graph is the fastest: 2.00× (2.00–3.00)")
    assert "4.00× (2.00–5.00) as many images" in told
    slower = Spread(0.5, 0.4, 0.6)
    assert "None is faster" in conclude({"tutorial": one, "graph": slower}, {})


def test_the_nets_stand_still_so_that_steps_are_alike():
    config = TrainConfig(
        shards="synthetic", batch_size=8, image_size=32, nz=NZ, ngf=8, ndf=8, lr=profile_step.LR
    )
    pixels = make_pixels(config, CPU)
    ways: Any = [
        build_tutorial(config, pixels, CPU),
        build_ours(config.replace(precision="fp32"), "eager", pixels, CPU),
    ]
    for _, step in ways:
        losses = [float(step()[0]) for _ in range(60)]
        assert losses[-10:] == pytest.approx(losses[:10], rel=0.2)


# For CUDA's sake, shown on a CPU


def test_the_hosts_time_is_that_of_some_launches(recorded):
    """The clock is read before anybody waits for the device."""
    entrant, done = recorded
    spent = iter([1.0, 1.5])
    clock: Any = SimpleNamespace(read=lambda: next(spent))
    assert launch_seconds(entrant, clock, CPU) == 0.5 / LAUNCHED
    assert done == ["begin", *["step"] * LAUNCHED]


def test_the_tutorials_step_has_cudnn_as_torch_does_and_ours_as_training(monkeypatch):
    seen: dict[str, bool] = {}

    def enter(name, precision, build, device):
        begin, _ = build()
        torch.backends.cudnn.benchmark = name == "tutorial"
        begin()
        seen[name] = torch.backends.cudnn.benchmark
        return name

    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    monkeypatch.setattr(profile_step, "_enter", enter)
    make_entrants(MeasuringStep(**TINY), CPU)
    assert seen == {"tutorial": False, "eager fp32": True, "eager auto": True}


# The command


def measured(folder, **changes):
    """Run the command; what it said and wrote."""
    words = flags(**(TINY | {"json": folder / "found.json"} | changes))
    result = CliRunner().invoke(app, ["step", *words], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    found = json.loads((folder / "found.json").read_text())
    return SimpleNamespace(said=result.output, found=found)


@pytest.fixture(scope="module")
def ran(alone, tmp_path_factory):
    place = tmp_path_factory.mktemp("step")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("dcgan.profiling.measuring.POLL_SECONDS", 0.01)
        patched.setattr(profile_step, "SIDE", 64)
        done = measured(place, plot=place / "found.png")
    with Image.open(place / "found.png") as picture:
        assert picture.format == "PNG"
    return done


def test_the_command_measures_all_that_is_here(ran):
    found = ran.found
    assert found["command"] == "step"
    assert list(found["turns"]) == list(found["entrants"]) == EAGER
    for name in EAGER:
        assert len(found["turns"][name]) == TINY["rounds"]
        assert all(turn["steps"] >= 3 and turn["step_ms"] > 0 for turn in found["turns"][name])
        assert found["entrants"][name]["calls"] > 100
        assert found["entrants"][name]["peak_bytes"] is None  # CUDA only
    assert 1e5 < found["flops_per_image"]["ours"] < found["flops_per_image"]["tutorial"]
    assert found["wall_ratios"]["tutorial"] == {"median": 1, "low": 1, "high": 1}
    for rates in found["matrix_flop_per_s"].values():
        assert len(rates) == TINY["rounds"]


def test_it_says_what_was_measured_and_what_was_not(ran):
    for words in (
        "cpu: ",
        "of 4, 32×32 pixels, 3 channels",
        "2 each, in turn",
        "GFLOP an image",
        "compiled: left out; --compiled includes it",
        "one graph: left out; --compiled includes it",
        "graph: not available here: it takes CUDA.",
        "graph untuned: not available here: it takes CUDA.",
    ):
        assert words in ran.said
    assert ran.found["left_out"] == ran.found["conclusions"][-4:]


def test_what_cannot_be_made_is_left_out_with_its_reason(monkeypatch):
    def fail(*arguments, **options):
        raise RuntimeError("no compiler")

    monkeypatch.setattr(torch, "compile", fail)
    config = TrainConfig(
        shards="synthetic", batch_size=4, image_size=32, nz=NZ, ngf=WIDTH, ndf=WIDTH
    )
    with pytest.raises(UnavailableError, match="no compiler"):
        build_ours(config.replace(precision="fp32"), "compiled", [], CPU)


def test_nets_of_a_size_that_cannot_be_are_refused():
    result = CliRunner().invoke(app, ["step", *flags(**(TINY | {"image_size": 50}))])
    assert isinstance(result.exception, UserError)
    assert_four_parts(result.exception, "--image-size")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_compiled_takes_part_where_it_is_asked_for(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(profile_step, "SIDE", 64)
    found = measured(tmp_path, compiled=True).found
    assert list(found["turns"]) == [*EAGER, "compiled", "one graph"]
    for name in ("compiled", "one graph"):
        assert found["entrants"][name]["calls"] is None
    assert len(found["left_out"]) == 2


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore")  # Inductor's own
def test_on_cuda_all_take_part(tmp_path):
    found = measured(tmp_path, device="cuda").found
    captured = ["graph", "one graph captured"]
    assert list(found["turns"]) == [*EAGER, "compiled", "one graph", *captured]
    assert all(each["peak_bytes"] > 0 for each in found["entrants"].values())
    for name in captured:
        assert found["entrants"][name]["calls"] < 10 < found["entrants"]["eager auto"]["calls"]
