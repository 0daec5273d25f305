"""The tuner under clocks that pretend, and what becomes of its choice."""

import json
import random
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from dcgan.nets.forms import HALVING, Forms
from dcgan.options import TrainConfig
from dcgan.step import tuner
from dcgan.step.adversarial import AdversarialStep
from dcgan.step.statistics import StepRows
from dcgan.step.tuner import Trial, choose_forms, race_forms, race_steps
from dcgan.step.tuning import COMPILER_OPTIONS, LayerSize, Tuning, for_cpu, library, measure_layers
from dcgan.training import tuned
from dcgan.training.build import build_nets, build_step
from dcgan.training.previous import Previous
from dcgan.training.tuned import choose_tuning, stored_or_measured, trial_step
from tests.running import new_trainer, tiny, train_here
from tests.steps import NZ, whole_step

CPU = torch.device("cpu")
LAYERS = {"a": LayerSize((3, 8, 8), (4, 4, 4)), "b": LayerSize((8, 4, 4), (4, 1, 1))}


class Clock:
    """Says that whatever has one of the words in its name is the fastest, and a little noise."""

    def __init__(self, *fast: str) -> None:
        self.fast, self.noise = fast, random.Random(0)

    def __call__(self, name: str, call: Callable[[], object]) -> Callable[[], float]:
        call()

        def turn() -> float:
            mean = 1.0 if any(word in name for word in self.fast) else 2.0
            return mean + self.noise.random() / 10

        return turn


def raced(clock: tuner.Timer, dtype: torch.dtype = torch.float32) -> list[tuner.Race]:
    return race_forms(LAYERS, 2, dtype, CPU, clock, rounds=3)


def forms(clock: tuner.Timer) -> dict[str, Forms]:
    return choose_forms(raced(clock), LAYERS)


# Forms


def test_the_fastest_forms_are_taken_each_product_for_itself():
    found = forms(Clock("up blocks", "weights im2col"))
    assert found == {"a": Forms("library", "blocks", "im2col")}, "b stays a product"


def test_without_a_gain_in_every_round_the_librarys_stays():
    def noisy(name, call):
        seconds = iter([2.0, 2.0, 2.0] if name.endswith("library") else [1.0, 1.0, 3.0])
        return lambda: next(seconds)

    assert forms(noisy) == {}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_form_that_is_wrong_or_fails_is_left_out_with_the_reason(monkeypatch, dtype):
    def fails(*operands):
        raise RuntimeError("no room on this device")

    right = HALVING.down["blocks"]
    monkeypatch.setitem(HALVING.down, "blocks", lambda *of: 1.02 * right(*of))
    monkeypatch.setitem(HALVING.down, "im2col", fails)
    down = raced(Clock("down"), dtype)[0]
    found = {each.name: each for each in down.candidates}
    assert down.taken not in ("blocks", "im2col")
    assert not any(found[form].seconds for form in ("blocks", "im2col"))
    assert "wrong" in str(found["blocks"].obstacle)
    assert found["im2col"].obstacle == "no room on this device"


def test_a_form_that_fails_only_when_it_is_timed_is_left_out():
    def clock(name, call):
        if "blocks" in name:
            raise torch.OutOfMemoryError("at the full batch")
        return Clock("up im2col")(name, call)

    found = [each for race in raced(clock) for each in race.candidates if each.name == "blocks"]
    assert {each.obstacle for each in found} == {"at the full batch"}
    assert forms(clock)["a"].up == "im2col"


# Levers


def steps_of(statistics):
    """Make steps that return statistics by lever; an exception is raised."""

    def make(tuning):
        name = "one graph" if tuning.one_graph else "joint" if tuning.joint else "plain"
        found = statistics[name]
        if isinstance(found, Exception):
            raise found
        return Trial(lambda: None, lambda: torch.full((5,), found))

    return make


CHANGES = {"joint": {"joint": True}, "one graph": {"one_graph": True}}


def test_a_lever_that_gains_is_kept_for_the_next():
    steps = steps_of({"plain": 1.0, "joint": 1.0001, "one graph": 1.0})
    tuning, levers = race_steps(steps, CHANGES, "fp32", Clock("joint", "one graph"), 3)
    assert tuning == Tuning(joint=True, one_graph=True)
    assert [lever.taken for lever in levers] == ["joint", "one graph"]


def test_a_lever_that_fails_or_computes_something_else_is_left_out():
    steps = steps_of({"plain": 1.0, "joint": 1.02, "one graph": RuntimeError("out of memory")})
    tuning, levers = race_steps(steps, CHANGES, "fp32", Clock("joint", "one graph"), 3)
    assert tuning == Tuning()
    assert "wrong" in str(levers[0].candidates[1].obstacle)
    assert levers[1].candidates[1].obstacle == "out of memory"


def test_a_lever_is_measured_against_the_step_with_the_ones_before():
    """The second is faster than the untuned step, but not than the one with the first."""
    costs = {"plain": 10.0, "joint": 8.0, "one graph": 9.0}
    of = dict[object, float]()

    def make(tuning):
        name = "one graph" if tuning.one_graph else "joint" if tuning.joint else "plain"
        step = lambda: None  # noqa: E731
        of[step] = costs[name]
        return Trial(step, lambda: torch.ones(5))

    tuning, levers = race_steps(make, CHANGES, "fp32", lambda name, call: lambda: of[call], 3)
    assert [lever.taken for lever in levers] == ["joint", tuner.WITHOUT]
    assert tuning == Tuning(joint=True)


@pytest.mark.parametrize("part", ["optimizer_g", "optimizer_d", "average", "batch_norm"])
def test_a_step_that_leaves_out_an_update_has_another_outcome(monkeypatch, part):
    """Whatever rate the run has: the losses of its first step are those of the whole."""
    config = TrainConfig(
        shards="synthetic", image_size=32, batch_size=4, nz=4, ngf=2, ndf=2, precision="fp32",
        lr=1e-12, ema_nimg=8,
    )  # fmt: skip
    wanted = trial_step(config, CPU, Tuning()).outcome()
    again = trial_step(config, CPU, Tuning(joint=True)).outcome()
    tuner.require_agreement(again, wanted, tuner.AGREEMENT["fp32"])
    build = build_step

    def lacking(*arguments, **more):
        step = build(*arguments, **more)
        if part == "batch_norm":
            for module in step.update.generator.modules():
                if isinstance(module, torch.nn.BatchNorm2d):
                    module.momentum = 0.0
        elif part == "average":
            monkeypatch.setattr(step.ema, "update", lambda updates: None)
        else:
            monkeypatch.setattr(getattr(step.update, part), "step", lambda: None)
            monkeypatch.setattr(step.update, "updates_of_g", lambda: torch.tensor(1.0))
        return step

    monkeypatch.setattr(tuned, "build_step", lacking)
    found = trial_step(config, CPU, Tuning()).outcome()
    with pytest.raises(ValueError, match="wrong"):
        tuner.require_agreement(found, wanted, tuner.AGREEMENT["bf16"])


def test_levers_end_when_compiling_has_taken_long_enough(monkeypatch):
    monkeypatch.setattr(tuner, "COMPILING_SECONDS", -1.0)
    steps = steps_of({"plain": 1.0, "joint": 1.0, "one graph": 1.0})
    _, levers = race_steps(steps, CHANGES, "fp32", Clock("joint"), 3)
    assert all("not tried" in str(lever.candidates[1].obstacle) for lever in levers)


def test_a_cpus_turn_lasts_long_enough():
    calls = []
    turn = tuner.on_cpu("a product", lambda: calls.append(sum(range(1000))))
    before = len(calls)
    assert 0 < turn() < 1e-3
    assert len(calls) - before > 100


def test_on_cuda_each_turn_calls_what_it_was_prepared_for(monkeypatch):
    """With pretended events, whose time is the number of calls."""
    calls = list[str]()

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            self.at: int = len(calls)

        def synchronize(self) -> None: ...

        def elapsed_time(self, end: "Event") -> int:
            return end.at - self.at

    monkeypatch.setattr(torch.cuda, "Event", Event)
    one, other = (tuner.on_cuda("the same name", partial(calls.append, name)) for name in "ab")
    calls.clear()
    assert (one(), other()) == (1e-3, 1e-3), "milliseconds a call"
    assert calls == ["a"] * tuner.REPEATS + ["b"] * tuner.REPEATS


# What is stored


@pytest.fixture
def stored(monkeypatch, tmp_path):
    """Calls `stored_or_measured` under a clock; gives the tuning and the log."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    config = TrainConfig(
        shards="synthetic", image_size=32, batch_size=2, nz=4, ngf=2, ndf=2, precision="fp32"
    )
    update = build_step(config, *build_nets(config, CPU), StepRows(1, CPU)).update

    def call(clock, **options):
        monkeypatch.setattr(tuned, "timers", lambda device: (clock, clock))
        log: list[str] = []
        return stored_or_measured(config, update, log.append, **options).tuning, log

    return call


def unusable(name, call):
    raise AssertionError("measured again")


def test_the_first_start_measures_and_the_next_reads(stored, monkeypatch):
    monkeypatch.setitem(HALVING.down, "padded", lambda *of: torch.zeros(()))
    tuning, log = stored(Clock("up blocks", "forms"))
    assert any("left out: padded of G.main.9, down: wrong" in line for line in log)
    assert tuning.layers["D.main.2"] == Forms(up="blocks")
    assert "timing the step" in log[0]
    again, log = stored(unusable)
    assert again == tuning
    assert log == []


@pytest.mark.parametrize("harm", ["cut", "other form", "other key"])
def test_a_choice_that_cannot_be_used_is_measured_anew_and_said(stored, tmp_path, harm):
    stored(Clock("up blocks", "forms"))
    (path,) = tmp_path.rglob("*.json")
    text = path.read_text()
    harmed = {
        "cut": text[: len(text) // 2],
        "other form": text.replace('"blocks"', '"triangles"'),
        "other key": text.replace("torch", "tvrch", 1),
    }
    path.write_text(harmed[harm])
    tuning, log = stored(Clock("up im2col", "forms"))
    assert tuning.layers["D.main.2"].up == "im2col"
    assert "cannot be used" in log[0]
    assert stored(unusable)[0] == tuning


def test_an_interrupted_tuner_leaves_nothing_behind(stored, tmp_path):
    def interrupt(name, call):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stored(interrupt)
    assert not [*tmp_path.rglob("*.json*")]


def test_a_request_to_stop_ends_the_tuner(stored, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        stored(Clock(), stop=lambda: True)
    assert not [*tmp_path.rglob("*.json*")]


class Apart(AdversarialStep):
    """An update that takes no joint batches, as a penalty on gradients takes none."""

    def objective_d(self, *batches):
        if self.joint:
            raise RuntimeError("one batch at a time")
        return super().objective_d(*batches)


def test_an_update_of_ones_own_is_what_is_tried(monkeypatch):
    monkeypatch.setattr(tuned, "timers", lambda device: (Clock(), Clock("in one batch")))
    config = TrainConfig(shards="none", image_size=32, nz=NZ, ngf=8, ndf=8, precision="fp32")
    found = tuned.measure_step(config, whole_step(update=Apart).update, 1)
    assert [line for line in found.left_out() if "one batch at a time" in line]
    assert not found.tuning.joint


def test_what_is_stored_depends_on_the_precision_and_the_update():
    one, other = (TrainConfig(shards="none", precision=each) for each in ("fp32", "bf16"))
    update, own = whole_step().update, whole_step(update=Apart).update
    assert len({tuned._key(one, update), tuned._key(other, update), tuned._key(one, own)}) == 3


def test_compilers_options_add_up_and_hold_while_it_compiles():
    from torch._inductor import config

    changes: dict[str, Any] = {name: {"compiler": (name,)} for name in COMPILER_OPTIONS[:2]}
    make = lambda tuning: Trial(lambda: None, lambda: torch.ones(5))  # noqa: E731
    tuning, _ = race_steps(make, changes, "fp32", Clock(*changes), 3)
    assert tuning.compiler == COMPILER_OPTIONS[:2]
    assert not config.combo_kernels
    with tuning.compiling():
        assert config.combo_kernels
    assert not config.combo_kernels
    with Tuning(compiler=COMPILER_OPTIONS).compiling():
        pass


# A run's choice


def test_a_run_keeps_its_choice_to_the_bit(tmp_path, monkeypatch):
    """Under a clock that preferred odd forms: the run that resumes asks no clock."""

    def odd(layers, precision):
        clock = Clock("down blocks", "up subpixel", "weights im2col")
        found = race_forms(layers, 2, torch.float32, CPU, clock, 1)
        return Tuning(layers=choose_forms(found, layers))

    with monkeypatch.context() as patched:
        patched.setattr(tuned, "for_cpu", odd)
        train_here(tiny(tmp_path / "whole", max_steps=6))
        train_here(tiny(tmp_path / "parts", max_steps=3))
    train_here(tiny(tmp_path / "plain", max_steps=6))
    train_here(tiny(tmp_path / "parts", max_steps=6))
    nets = {
        name: (tmp_path / name / "netG.pt").read_bytes() for name in ("whole", "parts", "plain")
    }
    assert nets["parts"] == nets["whole"] != nets["plain"]
    chosen = json.loads((tmp_path / "parts" / "config.json").read_text())["tuning"]["layers"]
    assert chosen["D.main.2"] == ["blocks", "subpixel", "im2col"]


def stored_tuning(run):
    return Tuning(**json.loads((run / "config.json").read_text())["tuning"])


@pytest.mark.parametrize(
    ("error", "reason"),
    [(RuntimeError("no such kernel"), "no such kernel"), (KeyboardInterrupt(), "interrupted")],
)
def test_a_timing_that_fails_or_is_stopped_leaves_a_run_untuned(monkeypatch, error, reason):
    def fail(*arguments, **options):
        raise error

    monkeypatch.setattr(tuned, "_why_not", lambda *arguments: None)  # as on CUDA
    monkeypatch.setattr(tuned, "stored_or_measured", fail)
    config = TrainConfig(shards="synthetic", image_size=32, nz=NZ)
    given = config, whole_step().update, "graph", print
    tuning, why = choose_tuning(*given, stop=lambda: True)
    assert tuning == Tuning()
    assert reason in why
    if isinstance(error, KeyboardInterrupt):
        with pytest.raises(KeyboardInterrupt):
            choose_tuning(*given)


@pytest.mark.parametrize("option", [{"tune": "off"}, {"deterministic": True}, {"dry_run": True}])
def test_what_is_not_measured_on_cuda(option):
    cuda, usual = torch.device("cuda"), TrainConfig(shards="synthetic")
    config = TrainConfig(shards="synthetic", **option)
    assert tuned._why_not(config, cuda, "graph", 20_000) is not None
    assert tuned._why_not(usual, cuda, "graph", 20_000) is None
    assert tuned._why_not(usual, cuda, "graph", 2_480) is not None, "it ends sooner than it pays"
    assert tuned._why_not(usual, cuda, "compiled", 20_000) is not None


CHOSEN = {"layers": {}, "joint": True}


@pytest.mark.parametrize(
    ("steps", "saved", "now", "kept"),
    [
        (3, {"tuning": CHOSEN}, {}, CHOSEN),
        (0, {"tuning": CHOSEN}, {}, None),  # stopped while it was timed
        (3, {"tuning": None}, {}, None),  # killed while it chose anew
        (3, {}, {}, Tuning().model_dump(mode="json")),  # begun by an older version
        (3, {"tuning": CHOSEN}, {"precision": "bf16"}, None),
        (3, {"tuning": CHOSEN}, {"deterministic": True}, None),
        (3, {"tuning": CHOSEN, "device": "cuda:0"}, {}, None),
        (3, {"tuning": CHOSEN, "ranks": 2}, {}, None),  # a batch is shared otherwise
    ],
)
def test_what_a_run_that_resumes_keeps(steps, saved, now, kept):
    config = tiny(Path("run"))
    options = {name: value for name, value in config.to_json().items() if name != "tuning"}
    state: Any = SimpleNamespace(steps=steps)
    previous = Previous(options | saved, Path("run"), state, 0)
    assert previous.tuning(config.replace(**now)) == kept


def test_until_a_run_that_resumes_has_begun_its_file_keeps_the_choice(tmp_path, monkeypatch):
    """A kill before the first step may not lose it."""
    run = tmp_path / "run"
    monkeypatch.setattr(tuned, "for_cpu", lambda layers, precision: Tuning(joint=True))
    train_here(tiny(run, max_steps=1))
    trainer = new_trainer(tiny(run, max_steps=2))
    assert Tuning(**trainer.run.options()["tuning"]) == Tuning(joint=True)


def test_with_another_tune_a_run_that_resumes_chooses_anew(tmp_path, monkeypatch):
    run = tmp_path / "run"
    monkeypatch.setattr(tuned, "for_cpu", lambda layers, precision: Tuning(joint=True))
    train_here(tiny(run, max_steps=1))
    assert stored_tuning(run) == Tuning(joint=True)
    train_here(tiny(run, max_steps=2, tune="off", allow_change=True))
    assert set(stored_tuning(run).layers.values()) == {Forms()}


def test_a_run_of_a_version_without_a_choice_goes_on_untuned(tmp_path, monkeypatch):
    run = tmp_path / "run"
    monkeypatch.setattr(tuned, "for_cpu", lambda layers, precision: Tuning(joint=True))
    train_here(tiny(run, max_steps=1))
    options = json.loads((run / "config.json").read_text())
    del options["tuning"], options["tune"]
    (run / "config.json").write_text(json.dumps(options))
    train_here(tiny(run, max_steps=2))
    assert stored_tuning(run) == Tuning()


def choice(**options):
    config = TrainConfig(shards="synthetic", precision="fp32", image_size=32, nz=NZ, **options)
    log: list[str] = []
    return choose_tuning(config, whole_step().update, "eager", log.append)[0], log


def test_off_takes_the_librarys_forms_where_they_can_be_compiled():
    tuning, _ = choice(tune="off")
    layers = measure_layers(whole_step().update, NZ, (3, 32, 32))
    assert tuning == library(layers)
    assert set(tuning.layers.values()) == {Forms()}
    assert "G.main.0" not in tuning.layers


def test_a_runs_choice_of_another_version_is_replaced_and_said():
    for layers in (
        {"D.main.0": ["spiral", "library", "library"]},
        {"D.main.8": ["blocks", "library", "library"]},  # which has one patch
        {"D.main.99": ["library", "library", "library"]},
        {"D.main.0": "library"},
    ):
        tuning, log = choice(tuning={"layers": layers})
        assert tuning == choice()[0]
        assert "cannot read" in log[0]


def test_a_cpus_choice_is_a_table_without_a_clock():
    layers = measure_layers(whole_step().update, NZ, (3, 32, 32))
    assert for_cpu(layers, "fp32") == for_cpu(layers, "fp32")
    assert for_cpu(layers, "no such precision") == Tuning()


@pytest.mark.gpu
def test_on_a_gpu_it_chooses_a_step_that_runs(monkeypatch):
    monkeypatch.setattr(tuner, "COMPILING_SECONDS", 10.0)
    device = torch.device("cuda")
    config = TrainConfig(
        shards="synthetic", image_size=32, batch_size=8, nz=4, ngf=8, ndf=8, precision="bf16"
    )
    update = build_step(config, *build_nets(config, device), StepRows(1, device)).update
    found = tuned.measure_step(config, update, rounds=3)
    library = {race.product: race.candidates[0] for race in found.forms}
    assert all(min(each.seconds) > 0 for each in library.values())
    assert library.keys() == {"down", "up", "weights"}
    assert trial_step(config, device, found.tuning).outcome().isfinite().all()
