"""Getting ready for a mode: warm-up without a trace, fallback aloud; each mode is the eager one."""

import copy
import os
import re
from contextlib import nullcontext
from unittest.mock import MagicMock

import pytest
import torch
import torch.distributed as dist

from dcgan.distributed import GradientReduction, Ranks
from dcgan.step import train_step
from dcgan.step.graph import WARM_UPS, capture
from dcgan.step.statistics import StepRows
from dcgan.step.train_step import choose_step
from tests.running import DCGAN_TRAIN, TINY, flags, run_command
from tests.steps import BATCH, pixel_batch, states, whole_step

# Getting ready


@pytest.mark.parametrize("done", [0, 1])
def test_a_warm_up_leaves_no_trace(done):
    step, other = whole_step(), whole_step()
    for each in (step, other):
        for k in range(done):
            each(pixel_batch(k))
    before = states(step)
    places = [tensor.data_ptr() for tensor in step.state()]
    with step.preserved_state():
        step(pixel_batch(7))
    *after, random = states(step)
    assert torch.equal(random, before[-1])
    assert all(weight.grad is None for weight in step.update.generator.parameters())
    if done:
        assert [tensor.data_ptr() for tensor in step.state()] == places
    else:  # Adam has made its state
        nets = step.update.generator, step.update.discriminator
        adams = 3 * sum(1 for net in nets for _ in net.parameters())
        assert len(after) - len(before[:-1]) == adams
    for k in range(2):
        assert torch.equal(step(pixel_batch(k)), other(pixel_batch(k)))
    assert all(map(torch.equal, states(step), states(other)))


def fail(*arguments, **options):
    raise RuntimeError("no such thing here\nin detail")


def test_what_cannot_be_had_is_told_and_replaced(monkeypatch):
    step = whole_step()
    said: list[str] = []
    parts = step.update.generate, step.update.discriminate
    monkeypatch.setattr(torch, "compile", lambda part, **options: fail)
    assert step.prepare("graph", said.append) == "eager"
    assert said == [
        "compiling the step: up to a minute, unless it was compiled here before",
        "torch.compile failed, continuing without it: RuntimeError: no such thing here in detail",
        *(
            f"capture of the CUDA graph failed, {which} attempt: {said[-1].split(': ', 1)[1]}"
            for which in ("first", "second")
        ),
    ]
    assert (step.update.generate, step.update.discriminate) == parts
    assert not step.rows.rows.any()
    assert torch.equal(step(pixel_batch(0)), whole_step()(pixel_batch(0)))


@pytest.mark.parametrize("failures", [1, 2])
def test_a_capture_is_tried_twice(monkeypatch, failures):
    step, tries = whole_step(), []
    said: list[str] = []

    def capture(body, random, preserved_state):
        tries.append(body)
        return fail() if len(tries) <= failures else body

    monkeypatch.setattr(torch, "compile", lambda part, **options: part)
    monkeypatch.setattr(train_step, "capture", capture)
    assert step.prepare("graph", said.append) == ("graph" if failures == 1 else "compiled")
    failed = [line for line in said if "failed" in line]
    assert (len(tries), len(failed)) == (2, failures)
    assert torch.equal(step(pixel_batch(0)), whole_step()(pixel_batch(0)))


def test_what_fails_on_another_rank_is_not_done_here_either(monkeypatch):
    step, asked = whole_step(), []
    said: list[str] = []

    def never(flag: bool) -> bool:
        asked.append(flag)
        return False

    parts, run = (step.update.generate, step.update.discriminate), step._run
    monkeypatch.setattr(torch, "compile", lambda part, **options: lambda *batch: part(*batch))
    monkeypatch.setattr(train_step, "capture", lambda body, random, preserved_state: body)
    assert step.prepare("graph", said.append, never) == "eager"
    assert asked == [True, True, True]
    failed = [line for line in said if "failed" in line]
    assert [line.rpartition(": ")[2] for line in failed] == ["on another rank"] * 3
    assert (step.update.generate, step.update.discriminate) == parts
    assert step._run == run


def test_a_warm_up_has_room_in_a_tick_of_one_step(monkeypatch):
    """The body runs, for once, on a CPU, where a row too many is an error."""
    pretended = {
        "Stream": MagicMock(),
        "current_stream": MagicMock(),
        "stream": lambda stream: nullcontext(),
        "CUDAGraph": MagicMock(),
        "graph": lambda graph, **options: nullcontext(),
    }
    for name, fake in pretended.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    monkeypatch.setattr(
        "dcgan.step.graph._drawing_again_after_a_failure", lambda random: nullcontext()
    )
    step, places = whole_step(), list[int]()
    step.rows = StepRows(1, torch.device("cpu"))

    def body() -> None:
        places.append(int(step.rows.place))
        step.body()

    capture(body, step.random, step.preserved_state)
    assert places == [0] * (WARM_UPS + 1)


@pytest.mark.parametrize(("device", "mode"), [("cuda", "graph"), ("cpu", "eager")])
def test_auto_is_a_table(device, mode):
    assert choose_step("auto", torch.device(device)).name == mode
    assert choose_step("compiled", torch.device(device)).name == "compiled"


def test_compiled_code_is_kept_where_the_next_run_finds_it(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "chosen")
    train_step.keep_compiled_code()
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == "chosen"
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR")
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file/none"))
    train_step.keep_compiled_code()  # goes where torch puts it
    assert "TORCHINDUCTOR_CACHE_DIR" not in os.environ
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    train_step.keep_compiled_code()
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(tmp_path / "dcgan-shards/inductor")


# Each mode is the eager one


def compare_over_20_steps(mode_step, eager, rows):
    for k in range(20):
        mode_step(pixel_batch(k))
        eager(pixel_batch(k))
    found, wanted = mode_step.rows.take(20)(), eager.rows.take(20)()
    assert found[:rows] == pytest.approx(wanted[:rows], rel=1e-5)
    assert found == pytest.approx(wanted, rel=0.01)


# Dynamo asks every tensor for its gradient, and hides the warning by means that "error" precedes
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_compiled_is_eager_and_compiles_once():
    torch._dynamo.reset()  # of what earlier tests of this process compiled
    counters = torch._dynamo.utils.counters["stats"]
    counters.clear()
    step, eager = whole_step(), whole_step()
    said: list[str] = []
    assert step.prepare("compiled", said.append) == "compiled"
    assert [line.partition(" ")[0] for line in said] == ["compiling", "compiled"]
    # G, D on images, D with frozen weights on G's images, and two losses
    assert counters["unique_graphs"] == 5
    compare_over_20_steps(step, eager, rows=1)
    assert counters["unique_graphs"] == 5
    assert copy.deepcopy(step.update.generator)(step.noise).shape == (BATCH, 3, 32, 32)


@pytest.mark.gpu
def test_graph_is_eager():
    step, eager = whole_step(device="cuda"), whole_step(device="cuda")
    said: list[str] = []
    assert step.prepare("graph", said.append) == "graph", said
    compare_over_20_steps(step, eager, rows=1)


@pytest.mark.gpu
def test_a_graph_with_meetings_in_it_is_eager():
    """Of one rank, whose mean is its own: what several do takes as many GPUs."""
    store = dist.HashStore()  # type: ignore[attr-defined]
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        step, eager = whole_step(device="cuda"), whole_step(device="cuda")
        ranks = Ranks()
        met: list[object] = []
        ranks.connect(torch.device("cuda"))
        shared = GradientReduction(ranks, step.update.generator, step.update.discriminator)

        def share(net: torch.nn.Module) -> None:
            shared(net)
            met.append(net)

        step.update.reduce_gradients = share
        said: list[str] = []
        assert step.prepare("graph", said.append, ranks.all) == "graph", said
        compare_over_20_steps(step, eager, rows=1)
        assert len(met) == 2, "once while it was captured, and never by the host again"
    finally:
        dist.destroy_process_group()


@pytest.mark.gpu
def test_draws_advance_between_replays():
    step, noises = whole_step(device="cuda"), []
    said: list[str] = []
    assert step.prepare("graph", said.append) == "graph", said
    for _ in range(3):
        step(pixel_batch(0))
        noises.append(step.noise.cpu())
    eager = torch.Generator("cuda").manual_seed(5)
    expected = torch.zeros_like(step.noise).normal_(generator=eager).cpu()
    assert torch.equal(noises[0], expected)
    assert not torch.equal(noises[0], noises[1])
    assert not torch.equal(noises[1], noises[2])


@pytest.mark.gpu
def test_a_step_that_reads_a_value_is_not_captured_and_goes_on(monkeypatch):
    step = whole_step(device="cuda")
    said: list[str] = []
    monkeypatch.setattr(step.update, "loss_g", lambda logits: logits.mean() * logits.sum().item())
    assert step.prepare("graph", said.append) in ("compiled", "eager")
    assert sum("capture of the CUDA graph failed" in line for line in said) == 2
    assert step(pixel_batch(0)).isfinite().all()


@pytest.mark.slow
def test_a_second_start_compiles_nothing(tmp_path, monkeypatch):
    """Through the command, whose cache must be a folder that lasts."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    seconds = []
    for name in ("first", "second"):
        options = {**TINY, "shards": "synthetic", "run": name, "step": "compiled", "dry_run": True}
        done = run_command(DCGAN_TRAIN, *flags(**options), cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        seconds += re.findall(r"compiled in ([\d.]+) s", done.stdout)
    first, second = map(float, seconds)
    assert second < first / 3
    assert list((tmp_path / "cache/dcgan-shards/inductor").iterdir())
