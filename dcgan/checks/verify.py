"""What `dcgan-doctor --verify` proves on the user's device, on nets and pictures of its own.

Another GPU, driver or version may behave otherwise than those that we have seen: whoever has one
gets figures instead of our word.
"""

from __future__ import annotations

import importlib.util
import math
import os
import shutil
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial

import torch
from torch import nn

from dcgan.checks.data import (
    BATCH,
    LEVELS,
    SIZE,
    by_dali,
    cache_is_stream,
    fill_is_next,
    gpu_pixels,
    loader_resumes,
    open_loaders,
)
from dcgan.checks.findings import Check, Finding, fail, not_checked, ok, warning
from dcgan.options import RunLabels, TrainConfig
from dcgan.step.augment import DRAWS
from dcgan.step.statistics import StepRows
from dcgan.step.train_step import Log, WholeStep, keep_compiled_code
from dcgan.step.tuner import operands
from dcgan.step.tuning import LayerSize, Tuning
from dcgan.training.build import build_nets, build_step
from pipeline.loading.batches import Batches

STEPS = 20

FIRST_STEP = 1e-5
"""Relative difference of the first step's statistics: the two add in another order, no more."""

LATER_STEPS = 1e-2
"""The same, over all steps: Adam's first updates are as large for the smallest gradient as
for the largest, so that a rounding error that turns a sign moves its weight by a whole step."""

WEIGHTS = 0.1
"""Distance between the weights at the end, as a share of the way that they went; for the same
reason. Compiled on a CPU it was 0.03; a learning rate higher by a tenth gives 0.19, and a `beta1`
of 0.6 instead of 0.5 gives 0.11."""

AVERAGE = 0.5
"""Distance between the two ways from the average to its net, as a share of the eager step's. A rate
that a graph repeats as it was captured gives 1 or more; weights that just pass as alike, 0.2."""

EXACT = 1e-14
"""Difference of sums of the same float64 products in another order, of the largest number."""

JOINT = 1e-11
"""Relative difference of gradients that went through several layers, in float64."""

LABELS = "0", "1", "2"
"""Classes: the step is a conditional one, which computes all that another does, and more."""

SETTLING = 1.0
"""Seconds in which a loader fills its queues, and then waits."""

REPORT = "do not train in this mode; send this report: dcgan-doctor --verify --json report.json"


def checks(device: torch.device, log: Log) -> list[Check]:
    """All checks; the one that may leave the device in disorder comes last."""
    keep_compiled_code()
    no_cuda = None if device.type == "cuda" else "no CUDA device"
    same, near = "all, bit for bit", f"mean of at most {LEVELS:g} level"
    captured = "captured at the first attempt"
    compiled, graph = (partial(same_steps, mode, device, log) for mode in ("compiled", "graph"))
    no_float64 = "the device has no float64" if device.type == "mps" else None
    best = "compiled" if no_cuda else "graph"
    one_graph = partial(same_steps, best, device, log, one_graph=True)
    idle, busy = (partial(capture_beside_dali, device, log, busy) for busy in (False, True))
    return [
        Check("fill = next", partial(fill_is_next, device), same),
        Check("cache = stream", partial(cache_is_stream, device), same),
        Check("loader resumes", partial(loader_resumes, device), same),
        Check("GPU pixels = CPU pixels", partial(gpu_pixels, device), near, no_cuda),
        Check("step resumes", partial(step_resumes, device)),
        Check("forms = library", partial(forms_are_equal, device), obstacle=no_float64),
        Check("joint pass = two passes", partial(joint_is_two, device), obstacle=no_float64),
        Check("compiled = eager", compiled, obstacle=why_no_compiler(device)),
        Check("one graph = eager", one_graph, obstacle=why_no_compiler(device)),
        Check("graph = eager", graph, obstacle=no_cuda),
        Check("capture, DALI idle", idle, captured, no_cuda),
        Check("capture, DALI busy", busy, captured, no_cuda),
    ]


# The step


def step_resumes(device: torch.device) -> Finding:
    """Twenty steps against ten, a checkpoint's state, and ten by another step that loads it."""
    whole, first, second = (small_step(device) for _ in range(3))
    began = _weights(whole)
    for seed in range(STEPS):
        batch = _batch(seed, whole)
        if seed == STEPS // 2:
            second.load_state_dict(first.state_dict(), same_random=True)
        whole(*batch)
        (first if seed < STEPS // 2 else second)(*batch)
    share = _apart(_weights(second), _weights(whole), began)
    if share == 0:
        return ok("equal to the bit", f"at most {WEIGHTS:.0e} of the way they went")
    return _below("", share, WEIGHTS, "of the way they went")


def forms_are_equal(device: torch.device) -> Finding:
    """Compare every form of every product with the library's, on small odd shapes."""
    farthest: dict[str, float] = {}
    for channels, features, side in ((3, 8, 8), (16, 5, 12), (7, 3, 4)):
        for layer in (
            LayerSize((channels, side, side), (features, side // 2, side // 2)),
            LayerSize((channels, 4, 4), (features, 1, 1)),
        ):
            for product, forms in layer.forms().items():
                given = operands(layer, product, 3, torch.float64, device)
                truth = forms["library"](*given)
                for name, form in forms.items():
                    apart = float((form(*given) - truth).abs().max() / truth.abs().max())
                    known = f"{product}: {name}"
                    apart = math.inf if math.isnan(apart) else apart
                    farthest[known] = max(apart, farthest.get(known, 0.0))
    name = max(farthest, key=farthest.__getitem__)
    return _below("", farthest[name], EXACT, f"by {name}, of {len(farthest)} forms")


def joint_is_two(device: torch.device) -> Finding:
    """Compare D's gradients of real and generated images in one batch with those in two."""
    gradients = []
    for joint in (False, True):
        update = small_step(device).update
        update.joint = joint
        for net in (update.generator, update.discriminator):
            net.double()
        draw = torch.Generator(device).manual_seed(0)
        shape = (BATCH, 3, 32, 32)
        real = torch.rand(shape, generator=draw, device=device, dtype=torch.float64) * 2 - 1
        noise = torch.randn(BATCH, 16, 1, 1, generator=draw, device=device, dtype=torch.float64)
        draws = torch.rand(3, DRAWS, BATCH, generator=draw, device=device)
        labels_x, labels_gz = torch.randint(len(LABELS), (2, BATCH), generator=draw, device=device)
        update(real, noise, draws, labels_x, labels_gz)
        found = [each.grad for each in update.discriminator.parameters()]
        gradients.append(torch.cat([each.flatten() for each in found if each is not None]))
    two, one = gradients
    return _below("", float((one - two).norm() / two.norm()), JOINT, "of the gradients")


def same_steps(
    mode: str, device: torch.device, log: Log, one_graph: bool = False
) -> Iterator[Finding]:
    """Compare a mode with eager steps: both begin alike, and see the same pixels and noise."""
    name, logged = f"{'one graph' if one_graph else mode} = eager", list[str]()
    fast, eager = small_step(device), small_step(device)
    began = _weights(eager)
    taken = fast.prepare(mode, _noting(logged, log), tuning=Tuning(one_graph=one_graph))
    if (taken, fast.is_one_graph) != (mode, one_graph):
        reason = "; ".join(line for line in logged if "failed" in line) or "no reason given"
        form = " in parts" if one_graph else ""
        instead = "--tune off" if one_graph else f"--step {taken}"
        yield fail(f"{taken}{form} was taken: {reason}", f"train with {instead}", name)
        return
    for seed in range(STEPS):
        batch = _batch(seed, fast)
        fast(*batch)
        eager(*batch)
    rows, wanted = (step.rows.take(STEPS)() for step in (fast, eager))
    apart = abs(rows - wanted) / abs(wanted).clip(1e-6)
    yield _below(f"{name}, first step", float(apart[0].max()), FIRST_STEP, "relative")
    yield _below(f"{name}, {STEPS} steps", float(apart.max()), LATER_STEPS, "relative")
    share = _apart(_weights(fast), _weights(eager), began)
    yield _below(f"{name}, weights", share, WEIGHTS, "of the way they went")
    share = _apart(_behind(fast), _behind(eager))
    yield _below(f"{name}, average", share, AVERAGE, "of its distance from the net")


def small_step(device: torch.device) -> WholeStep:
    """A step as the trainer builds it, always the same one, with everything that it can do."""
    config = TrainConfig(
        shards="none", batch_size=BATCH, image_size=32, nz=16, ngf=8, ndf=8,
        precision="fp32", mirror=True, augment="diff", ema_nimg=100, conditional=True,
        labels=RunLabels(kind="classes", names=LABELS),
    )  # fmt: skip
    table = torch.arange(len(LABELS), device=device)
    rows = StepRows(STEPS, device)
    return build_step(config, *build_nets(config, device), rows, label_table=table)


def why_no_compiler(device: torch.device) -> str | None:
    """What torch.compile lacks on this machine, or None."""
    if device.type == "cuda" and importlib.util.find_spec("triton") is None:
        return "triton is not installed, which torch.compile needs"
    names = (os.environ.get("CXX"), "g++", "clang++", "gcc", "cc")
    if not any(name and shutil.which(name) for name in names):
        return "no C++ compiler, which torch.compile needs"
    return None


def _noting(logged: list[str], log: Log) -> Log:
    """Log a line, and keep it for the report."""

    def note(line: str) -> None:
        logged.append(line)
        log(line)

    return note


def _weights(step: WholeStep) -> torch.Tensor:
    """All of both nets' parameters and of the average's, in one vector on the host."""
    return torch.cat([_flat(net) for net in step.nets])


def _flat(net: nn.Module) -> torch.Tensor:
    return torch.cat([each.detach().flatten().double().cpu() for each in net.parameters()])


def _behind(step: WholeStep) -> torch.Tensor:
    """How far G's weights are from their average's, in one vector on the host."""
    assert step.ema is not None
    net, average = (_flat(each) for each in (step.update.generator, step.ema.net))
    return net - average


def _apart(found: torch.Tensor, wanted: torch.Tensor, began: float | torch.Tensor = 0.0) -> float:
    """The distance of two vectors as a share of the way to the wanted one; 0/0 is no number."""
    return float((found - wanted).norm() / (wanted - began).norm())


def _batch(seed: int, step: WholeStep) -> list[torch.Tensor]:
    """Draw what a step takes: pixels and labels, on its device."""
    draw = torch.Generator().manual_seed(seed)
    pixels, labels = step.inputs
    drawn = [
        torch.randint(0, 256, tuple(pixels.shape), generator=draw, dtype=torch.uint8),
        torch.randint(len(LABELS), tuple(labels.shape), generator=draw),
    ]
    return [each.to(step.pixels.device) for each in drawn]


def _below(name: str, figure: float, threshold: float, unit: str) -> Finding:
    """Hold a figure against its threshold; one that is not a number fails."""
    found, wanted = f"{figure:.1e} {unit}", f"at most {threshold:.0e}"
    return ok(found, wanted, name) if figure <= threshold else fail(found, REPORT, wanted, name)


# The capture


def capture_beside_dali(device: torch.device, log: Log, busy: bool) -> Finding:
    """Capture a step in a process in which DALI has worked, or is at work.

    The trainer captures before its first batch, which is easier than either.
    """
    with open_loaders(device) as (loader,):
        if not by_dali(loader):
            return not_checked(loader.description)
        return capture_beside(loader, device, log, busy)


def capture_beside(loader: Batches, device: torch.device, log: Log, busy: bool) -> Finding:
    """Capture while a loader waits with its queues full, or while somebody empties them."""
    step, logged = small_step(device), list[str]()
    next(loader)
    time.sleep(SETTLING)
    with _taking(loader, device) if busy else nullcontext([0]) as taken:
        mode = step.prepare("graph", _noting(logged, log))
        meanwhile = len(taken)
    failures = [line for line in logged if "capture of the CUDA graph failed" in line]
    if mode != "graph" and busy:
        remedy = "nothing: the trainer captures before its first batch; but do send this report"
        return warning(failures[-1], remedy)
    if mode != "graph":
        return fail(failures[-1], "train with --step compiled, and send this report")
    if busy and not meanwhile:
        return not_checked("the loader gave no batch during the capture")
    statistics = step(*_batch(0, step))
    if not bool(statistics.isfinite().all()):
        return fail("a replay gives no numbers", REPORT)
    if failures:
        return warning(f"at the second attempt; {failures[0]}", "nothing: it works")
    return ok(f"captured, {meanwhile} batches meanwhile" if busy else "captured")


@contextmanager
def _taking(loader: Batches, device: torch.device) -> Iterator[list[int]]:
    """Have a thread take batches for as long as this lasts, and count them."""
    taken, stop = list[int](), threading.Event()
    buffer = torch.empty(BATCH, SIZE, SIZE, 3, dtype=torch.uint8, device=device)

    def take() -> None:
        with _stream_of_its_own(device):
            while not stop.is_set():
                loader.fill(buffer)
                taken.append(len(taken))

    with ThreadPoolExecutor(1) as pool:
        taker = pool.submit(take)
        try:
            yield taken
        finally:
            stop.set()
        taker.result()  # raises what the thread raised


def _stream_of_its_own(device: torch.device) -> AbstractContextManager[object]:
    """A stream for the thread alone: the default one waits for others."""
    if device.type != "cuda":
        return nullcontext()
    return torch.cuda.stream(torch.cuda.Stream(device))  # type: ignore[no-untyped-call]
