"""Finds out which of several equal ways to compute a step is the fastest on this device.

First each product of each layer is timed in all its forms. Then whole steps race: the step so far
against one that differs by a single lever. A form or a lever is taken only if it was faster in
every round, and only if its results are as near to the truth as the library's.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch

from dcgan.nets.forms import Forms, Product
from dcgan.step.tuning import COMPILER_OPTIONS, Layer, Tuning
from pipeline.errors import first_line

Act: TypeAlias = Callable[[], Any]
"""A product, or a whole step."""
Timer: TypeAlias = Callable[[str, Act], float]
"""Returns the seconds of a call. It is told what is called, for clocks that pretend."""

ROUNDS = 7
"""In which candidates alternate. One that is no faster wins all of them once in 128 times."""

COMPILING_SECONDS = 120.0
"""After so long no further lever is tried, because each is compiled anew."""

CHECKED_IMAGES = 2
"""Images on which a form is compared with float64."""

ERRORS = 4.0
"""How many times the library's error a form may have. Sums in another order, and overlaps that are
rounded as they grow, stay below twice; a wrong form is a hundred times off even in bfloat16."""

EXACT = 1e-13
"""Relative error that anybody may have, for the library may be exact."""

AGREEMENT = {"fp32": 1e-3, "tf32": 2e-2, "bf16": 5e-2}
"""Relative difference, by precision, of the first step's statistics between two equal steps."""


@dataclass(frozen=True)
class Row:
    """One form of one product of a layer, as it was found."""

    layers: tuple[str, ...]
    """The names of all layers of this size."""
    product: str
    form: str
    seconds: tuple[float, ...]
    """Of a call, in each round; empty if it was left out."""
    flops: int
    taken: bool
    obstacle: str | None
    """Why it was left out."""


# Layers


def tune_layers(
    layers: Mapping[str, Layer],
    batch: int,
    dtype: torch.dtype,
    device: torch.device,
    timer: Timer,
    rounds: int = ROUNDS,
) -> list[Row]:
    """Time every form of every product.

    Args:
        layers: the sizes, by name.
        batch: images in a call.
        dtype: the type of maps and weights.
        device: where to compute.
        timer: times a call.
        rounds: the number of turns of each form.
    """
    names: dict[Layer, list[str]] = {}
    for name, layer in layers.items():
        names.setdefault(layer, []).append(name)
    rows = []
    for layer, same in names.items():
        for product, forms in layer.forms().items():
            given = operands(layer, product, batch, dtype, device)
            few = operands(layer, product, CHECKED_IMAGES, dtype, device)
            obstacles = {form: obstacle(forms, form, few) for form in forms}
            acts = {
                form: _act(forms[form], given, device)
                for form, found in obstacles.items()
                if found is None
            }
            times = race(acts, timer, rounds, f"{same[0]} {product}")
            taken = pick(times, "library")
            _, height, width = layer.small
            flops = 2 * batch * height * width * layer.small[0] * layer.big[0] * 16
            rows += [
                Row(
                    tuple(same), product, form, tuple(times.get(form, ())), flops,
                    form == taken, obstacles[form],
                )
                for form in forms
            ]  # fmt: skip
    return rows


def choose_forms(rows: list[Row]) -> dict[str, Forms]:
    """Return the forms that were taken, by the layer's name."""
    chosen: dict[str, dict[str, str]] = {}
    for row in rows:
        if row.taken:
            for name in row.layers:
                chosen.setdefault(name, {})[row.product] = row.form
    return {name: Forms(**products) for name, products in chosen.items()}


def obstacle(
    forms: Mapping[str, Product], form: str, operands: tuple[torch.Tensor, torch.Tensor]
) -> str | None:
    """Return why a form cannot be taken here: it fails, or computes something else."""
    try:
        truth = forms["library"](*(each.double() for each in operands))
        errors = [
            float((forms[each](*operands).double() - truth).norm() / truth.norm())
            for each in (form, "library")
        ]
    except Exception as error:  # a library can raise anything; without the form we are only slower
        return first_line(error)
    if not errors[0] <= ERRORS * errors[1] + EXACT:
        return f"wrong here: an error of {errors[0]:.1e}, {errors[1]:.1e} the library's"
    return None


def operands(
    layer: Layer, product: str, batch: int, dtype: torch.dtype, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw the operands of a product, in channels_last."""
    shapes = {
        "big": (batch, *layer.big),
        "small": (batch, *layer.small),
        "weights": (layer.small[0], layer.big[0], 4, 4),
    }
    taken = {"down": ("big", "weights"), "up": ("small", "weights"), "weights": ("big", "small")}
    random = torch.Generator(device).manual_seed(0)
    first, second = (
        torch.randn(shapes[name], generator=random, device=device)
        .to(dtype)
        .contiguous(memory_format=torch.channels_last)
        for name in taken[product]
    )
    return first, second


def _act(
    compute: Product, operands: tuple[torch.Tensor, torch.Tensor], device: torch.device
) -> Act:
    """Make a call as a step makes it: on CUDA, compiled."""
    if device.type == "cuda":
        torch.compiler.reset()  # else the shapes of all layers would be too many for one function
        compute = torch.compile(compute, dynamic=False)
    return lambda: compute(*operands)


# Whole steps


@dataclass(frozen=True)
class Lever:
    """A whole step with one change, as it was found."""

    name: str
    seconds: tuple[float, ...]
    """Of a step, in each round; empty if it was left out."""
    before: tuple[float, ...]
    """Of a step without the change, in the same rounds."""
    taken: bool
    obstacle: str | None


def levers(
    forms: Mapping[str, Forms], alone: bool, device: torch.device
) -> dict[str, dict[str, Any]]:
    """Return the changes to try, in this order, as updates of a `Tuning`.

    Args:
        forms: the chosen forms of the layers.
        alone: whether one process trains; several reduce gradients within the update.
        device: where the steps run. Only CUDA's are compiled.
    """
    in_all_modes: dict[str, dict[str, Any]] = {
        "forms of the layers": {"layers": dict(forms)},
        "real and generated images in one batch": {"joint": True},
    }
    if device.type != "cuda":
        return in_all_modes
    whole = {"the update as one graph": {"one_graph": True}} if alone else {}
    compiler = {option: {"compiler": (option,)} for option in COMPILER_OPTIONS}
    return whole | in_all_modes | compiler | {"all of cuDNN's kernels": {"cudnn_trials": 0}}


def tune_step(
    make: Callable[[Tuning], Act],
    changes: Mapping[str, Mapping[str, Any]],
    precision: str,
    timer: Timer,
    rounds: int = ROUNDS,
    compiling_seconds: float = COMPILING_SECONDS,
) -> tuple[Tuning, list[Lever]]:
    """Try one change after another, and keep those that make the step faster.

    Args:
        make: builds a step, always from the same state, whose calls return (5,) statistics.
            It raises what makes the step impossible.
        changes: the result of `levers`.
        precision: fp32, tf32 or bf16.
        timer: times a step.
        rounds: the number of turns of each step.
        compiling_seconds: after so long no further change is tried.
    """
    began = time.monotonic()
    tuning = Tuning()
    step = make(tuning)
    wanted, found = step().clone(), list[Lever]()
    for name, change in changes.items():
        merged = dict(change)
        if "compiler" in change:
            merged["compiler"] = (*tuning.compiler, *change["compiler"])
        changed = tuning.model_copy(update=merged)
        if changed == tuning:
            continue
        why: str | None = None
        times: dict[str, list[float]] = {"before": [], name: []}
        if time.monotonic() - began > compiling_seconds:
            why = f"not tried: the others took {compiling_seconds:.0f} s"
        else:
            try:
                candidate = make(changed)
                why = _disagreement(candidate(), wanted, AGREEMENT[precision])
                if why is None:
                    times = race({"before": step, name: candidate}, timer, rounds, "step")
            except Exception as error:  # compilers and drivers can raise anything
                why = first_line(error)
        taken = why is None and pick(times, "before") == name
        found.append(Lever(name, tuple(times[name]), tuple(times["before"]), taken, why))
        if taken:
            tuning, step = changed, candidate
    return tuning, found


def _disagreement(found: torch.Tensor, wanted: torch.Tensor, most: float) -> str | None:
    apart = float(((found - wanted).abs() / wanted.abs().clamp_min(1e-3)).max())
    return None if apart <= most else f"wrong here: statistics differ by {apart:.1e}"


# Timing


def race(
    acts: Mapping[str, Act], timer: Timer, rounds: int, label: str = ""
) -> dict[str, list[float]]:
    """Return the seconds of each act's calls, in alternating rounds."""
    times: dict[str, list[float]] = {name: [] for name in acts}
    for _ in range(rounds):
        for name, act in acts.items():
            times[name].append(timer(f"{label} {name}", act))
    return times


def pick(times: Mapping[str, list[float]], reference: str) -> str:
    """Return the fastest of those that beat the reference in every round, or the reference."""
    against = times.get(reference)
    if against is None:  # the library itself fails here
        return min(times, key=lambda name: statistics.median(times[name]), default=reference)
    better = [
        name
        for name, each in times.items()
        if all(mine < theirs for mine, theirs in zip(each, against, strict=True))
    ]
    return min(better, key=lambda name: statistics.median(times[name]), default=reference)


class CpuTimer:
    """Times calls by the CPU seconds of the process, which other processes disturb less."""

    LEAST = 0.05
    """Seconds of a turn, because threads that wait for each other spin for up to some ms."""

    def __init__(self) -> None:
        self._repeats: dict[str, int] = {}

    def __call__(self, name: str, act: Act) -> float:
        if name not in self._repeats:
            act()
            self._repeats[name] = math.ceil(self.LEAST / max(self._seconds(act, 1), 1e-6))
        return self._seconds(act, self._repeats[name]) / self._repeats[name]

    def _seconds(self, act: Act, times: int) -> float:
        began = time.process_time()
        for _ in range(times):
            act()
        return time.process_time() - began


class CudaTimer:
    """Times calls by events around several, on the current stream.

    See docs.pytorch.org/docs/stable/notes/cuda.html, "Asynchronous execution".

    Args:
        capture: whether to capture the calls in a CUDA graph, as a step does; a step is one.
    """

    REPEATS = 24
    """Calls between two events, so that launches from the host are lost among them."""

    def __init__(self, capture: bool) -> None:
        self._capture = capture
        self._repeated: dict[str, Act] = {}

    def __call__(self, name: str, act: Act) -> float:
        if name not in self._repeated:
            self._repeated[name] = self._captured(act) if self._capture else _repeat(act)
        began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        began.record()
        self._repeated[name]()
        ended.record()
        ended.synchronize()
        seconds: float = began.elapsed_time(ended) / 1e3
        return seconds / self.REPEATS

    def _captured(self, act: Act) -> Act:
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):  # compiles, and lets cuDNN try its kernels
                act()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            _repeat(act)()
        return graph.replay


def _repeat(act: Act) -> Act:
    def repeated() -> None:
        for _ in range(CudaTimer.REPEATS):
            act()

    return repeated
