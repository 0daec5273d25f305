"""dcgan-doctor --verify: the proofs hold on this machine, and each planted fault is caught."""

import contextlib
import shutil
import time

import pytest
import torch

from dcgan.checks import data, verify
from dcgan.checks.data import (
    BATCH,
    PICTURES,
    by_dali,
    cache_is_stream,
    compare_pixels,
    fill_is_next,
    loader_resumes,
    open_loader,
    work_set,
)
from dcgan.checks.findings import Finding, Verdict, examine
from dcgan.checks.verify import (
    capture_beside,
    forms_are_equal,
    joint_is_two,
    same_steps,
    small_step,
    why_no_compiler,
)
from dcgan.nets.batch_norm import BatchNorm2d
from dcgan.nets.forms import HALVING
from dcgan.step import train_step
from pipeline.loading.batches import Batches
from pipeline.loading.cache import ResidentCache
from pipeline.loading.decoders import ThreadDecoder
from pipeline.loading.loader import Loader
from pipeline.loading.options import LoaderOptions
from pipeline.shards.shard_set import ShardSet
from tests.needs import require

CPU = torch.device("cpu")
OK, FAIL, UNKNOWN = Verdict.OK, Verdict.FAIL, Verdict.NOT_CHECKED

ON_CUDA = ["GPU pixels = CPU pixels", "graph = eager", "capture, DALI idle", "capture, DALI busy"]


def quiet(line: str) -> None: ...


@pytest.fixture(scope="module")
def drawn():
    with work_set() as shards:
        yield shards


@pytest.fixture(autouse=True)
def packed_once(drawn, monkeypatch):
    monkeypatch.setattr(data, "work_set", lambda: contextlib.nullcontext(drawn))
    monkeypatch.setattr(verify, "keep_compiled_code", lambda: None)  # sets a variable
    torch.set_num_threads(1)  # several wait for each other wherever the machine is busy


# The data


@pytest.mark.parametrize(
    ("check", "found"),
    [
        (fill_is_next, "10 of 10 batches equal"),
        (cache_is_stream, "15 of 15 batches equal"),
        (loader_resumes, "10 of 10 batches equal"),
    ],
)
def test_the_data_path_is_in_order(check, found):
    finding = check(CPU)
    assert (finding.verdict, finding.found) == (OK, found)


def test_a_resume_that_starts_anew_is_caught(monkeypatch):
    monkeypatch.setattr(Loader, "load_state_dict", lambda self, state: None)
    assert loader_resumes(CPU).verdict is FAIL


def test_a_cache_that_gives_other_batches_is_caught(monkeypatch):
    gather = ResidentCache._gather

    def upside_down(self, out):
        images, places = gather(self, out)
        return images.flip(0), places

    monkeypatch.setattr(ResidentCache, "_gather", upside_down)
    finding = cache_is_stream(CPU)
    assert finding.verdict is FAIL
    assert finding.found == "5 of 15 batches equal; batch 5 differs first"


def test_a_buffer_that_is_filled_otherwise_is_caught(monkeypatch):
    fill = Batches.fill

    def one_level_off(self, buffer):
        fill(self, buffer)
        buffer[0, 0, 0, 0] += 1

    monkeypatch.setattr(Batches, "fill", one_level_off)
    assert fill_is_next(CPU).verdict is FAIL


def threads(shards: ShardSet) -> Loader:
    options = LoaderOptions(BATCH, 64, seed=1, dtype=torch.uint8, workers=1)
    return Loader(shards, options, ThreadDecoder(shards, options))


def test_pixels_of_two_decoders_are_alike(drawn):
    require("dali")
    one, other = open_loader(drawn, CPU), threads(drawn)
    assert [by_dali(one), by_dali(other)] == [True, False]
    with contextlib.closing(one), contextlib.closing(other):
        finding = compare_pixels(one, other)
    assert finding.verdict is OK
    assert finding.found.endswith(f"{PICTURES // BATCH * BATCH} images")


def test_a_resize_without_antialiasing_is_caught(drawn, monkeypatch):
    resized = torch.nn.functional.interpolate
    with monkeypatch.context() as patch, contextlib.closing(threads(drawn)) as loader:
        patch.setattr(
            "torch.nn.functional.interpolate",
            lambda images, *arguments, **options: resized(
                images, *arguments, **{**options, "antialias": False}
            ),
        )
        kept = _Kept([next(loader) for _ in range(loader.steps_per_epoch)])
    with contextlib.closing(threads(drawn)) as whole:
        finding = compare_pixels(kept, whole)
    assert finding.verdict is FAIL
    assert finding.remedy


class _Kept(Batches):
    """Batches that were taken before."""

    def __init__(self, taken: list[torch.Tensor]) -> None:
        super().__init__(BATCH, len(taken), torch.uint8, {}, "kept")
        self.taken = taken

    def take(self, out: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        return self.taken[self.batch], torch.arange(BATCH)

    def _close(self) -> None: ...


# The step


def test_forms_and_the_joint_pass_are_equal_here():
    for finding in (forms_are_equal(CPU), joint_is_two(CPU)):
        assert finding.verdict is OK, finding


def test_a_wrong_form_is_caught(monkeypatch):
    right = HALVING.up["subpixel"]
    monkeypatch.setitem(HALVING.up, "subpixel", lambda *of: right(*of) * (1 + 1e-12))
    finding = forms_are_equal(CPU)
    assert finding.verdict is FAIL
    assert "up: subpixel" in finding.found


def test_a_form_that_gives_no_numbers_is_caught(monkeypatch):
    right = HALVING.up["subpixel"]
    monkeypatch.setitem(HALVING.up, "subpixel", lambda *of: right(*of) * float("nan"))
    assert forms_are_equal(CPU).verdict is FAIL


def test_a_joint_pass_that_mixes_statistics_is_caught(monkeypatch):
    forward = BatchNorm2d.forward
    monkeypatch.setattr(BatchNorm2d, "forward", lambda self, maps, batches=1: forward(self, maps))
    assert joint_is_two(CPU).verdict is FAIL


def steps_beside(monkeypatch, change=lambda step: None) -> list[Finding]:
    """Compare two eager steps, of which the first is changed when it is prepared."""

    def prepare(self, mode, say, tuning):
        self.is_one_graph = tuning.one_graph
        change(self)
        return mode

    monkeypatch.setattr(train_step.WholeStep, "prepare", prepare)
    return list(same_steps("compiled", CPU, quiet))


def test_equal_steps_pass(monkeypatch):
    findings = steps_beside(monkeypatch)
    assert [finding.verdict for finding in findings] == [OK, OK, OK, OK]
    assert [finding.name.split(", ")[1] for finding in findings] == [
        "first step", "20 steps", "weights", "average",
    ]  # fmt: skip


def faster(step) -> None:
    for optimizer in (step.update.optimizer_d, step.update.optimizer_g):
        optimizer.param_groups[0]["lr"] *= 1.1


def other_loss(step) -> None:
    loss = step.update.loss_g
    step.update.loss_g = lambda logits: 1.01 * loss(logits)


def no_number(step) -> None:
    with torch.no_grad():
        next(step.update.generator.parameters()).fill_(float("nan"))


@pytest.mark.parametrize("change", [faster, other_loss, no_number])
def test_a_step_that_differs_is_caught(monkeypatch, change):
    assert FAIL in [finding.verdict for finding in steps_beside(monkeypatch, change)]


def test_an_average_that_is_not_moved_is_caught_by_the_weights(monkeypatch):
    def forgotten(step):
        monkeypatch.setattr(step.ema, "update", lambda updates: None)

    first, twenty, weights, _ = steps_beside(monkeypatch, forgotten)
    assert [first.verdict, twenty.verdict, weights.verdict] == [OK, OK, FAIL]


def test_a_rate_of_the_average_that_stays_as_it_was_captured_is_caught(monkeypatch):
    def repeated(step):
        update = step.ema.update
        monkeypatch.setattr(step.ema, "update", lambda updates: update(torch.tensor(4.0)))

    average = steps_beside(monkeypatch, repeated)[-1]
    assert (average.name.split(", ")[1], average.verdict) == ("average", FAIL)


def test_a_mode_that_cannot_be_had_is_a_fault_with_its_reason(monkeypatch):
    def refuse(part, **options):
        raise RuntimeError("no header file")

    monkeypatch.setattr(torch, "compile", refuse)
    (finding,) = same_steps("compiled", CPU, quiet)
    assert finding.verdict is FAIL
    assert "eager was taken" in finding.found
    assert "no header file" in finding.found


def test_parts_in_the_place_of_one_graph_are_a_fault_with_its_reason(monkeypatch):
    def refuse(body, tensors):
        raise RuntimeError("no way to trace it")

    monkeypatch.setattr(train_step, "compile_whole", refuse)
    monkeypatch.setattr(torch, "compile", lambda part, **options: part)
    (finding,) = same_steps("compiled", CPU, quiet, one_graph=True)
    assert (finding.verdict, finding.wanted) == (FAIL, "one graph = eager")
    assert "compiled in parts was taken: " in finding.found
    assert "no way to trace it" in finding.found


def test_without_a_compiler_nothing_is_claimed(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert "no C++ compiler" in str(why_no_compiler(CPU))
    checks = {check.name: check for check in verify.checks(CPU, quiet)}
    (finding,) = examine([checks["compiled = eager"]])
    assert (finding.verdict, finding.found) == (UNKNOWN, why_no_compiler(CPU))


def test_what_needs_cuda_is_not_checked_without_it():
    checks = {check.name: check for check in verify.checks(CPU, quiet)}
    findings = list(examine([checks[name] for name in ON_CUDA]))
    assert [finding.name for finding in findings] == ON_CUDA
    assert {finding.verdict for finding in findings} == {UNKNOWN}
    assert {finding.found for finding in findings} == {"no CUDA device"}


# Dynamo asks every tensor for its gradient, and hides the warning by means that "error" precedes
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.slow
@pytest.mark.parametrize("one_graph", [False, True])
def test_compiled_is_eager_on_this_machine(one_graph):
    said: list[str] = []
    findings = list(same_steps("compiled", CPU, said.append, one_graph))
    assert [finding.verdict for finding in findings] == [OK, OK, OK, OK], findings
    assert "up to a minute" in said[0]


# The capture, with a stand-in where there is no CUDA


@pytest.mark.parametrize(
    ("busy", "failures", "verdict"),
    [(False, 1, Verdict.WARNING), (False, 2, FAIL), (True, 0, OK), (True, 2, Verdict.WARNING)],
)
def test_captures_beside_a_loader(drawn, monkeypatch, busy, failures, verdict):
    tries = []

    def capture(body, random, preserved_state):
        tries.append(body)
        time.sleep(0.2)
        if len(tries) <= failures:
            raise RuntimeError("operation not permitted when stream is capturing")
        return body

    monkeypatch.setattr(torch, "compile", lambda part, **options: part)
    monkeypatch.setattr(train_step, "capture", capture)
    monkeypatch.setattr(verify, "SETTLING", 0.0)
    with contextlib.closing(open_loader(drawn, CPU)) as loader:
        finding = capture_beside(loader, CPU, quiet, busy)
    assert finding.verdict is verdict, finding
    assert len(tries) == min(failures + 1, 2)
    assert ("batches meanwhile" in finding.found) == (busy and not failures)


def test_a_loader_that_breaks_meanwhile_is_told(drawn, monkeypatch):
    def broken(self, buffer):
        raise RuntimeError("gone")

    monkeypatch.setattr(torch, "compile", lambda part, **options: part)
    monkeypatch.setattr(train_step, "capture", lambda body, random, preserved_state: body)
    monkeypatch.setattr(verify, "SETTLING", 0.0)
    monkeypatch.setattr(Batches, "fill", broken)
    loader = open_loader(drawn, CPU)
    with contextlib.closing(loader), pytest.raises(RuntimeError, match="gone"):
        capture_beside(loader, CPU, quiet, True)


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore")  # Inductor's own
def test_everything_on_a_gpu():
    findings = list(examine(verify.checks(torch.device("cuda"), quiet)))
    assert not [finding for finding in findings if finding.verdict is not OK]


def test_the_small_step_has_every_part():
    step = small_step(CPU)
    assert step.mirror
    assert step.ema is not None
