"""Finds out which of several equal ways to compute a step is the fastest on this device.

First each product of each layer is timed in all its forms. Then whole steps race: the step so far
against one that differs by a single lever. A form or a lever is taken only if it was faster in
every round. A form's error, measured against float64, must also be at most four times that of the
library, and a lever's first steps must have the same outcome.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch

from dcgan.nets.forms import Forms, Product
from dcgan.step.graph import capture
from dcgan.step.tuning import COMPILER_OPTIONS, LayerSize, Tuning
from pipeline.errors import first_line

Call: TypeAlias = Callable[[], Any]
"""A product, or a whole step."""
Turn: TypeAlias = Callable[[], float]
"""Makes a call several times, and returns the seconds of one."""
Timer: TypeAlias = Callable[[str, Call], Turn]
"""Prepares a call to be timed. It is told what is called, for clocks that pretend."""

DTYPES = {"fp32": torch.float32, "tf32": torch.float32, "bf16": torch.bfloat16}
"""The types of maps and weights, by precision."""

ROUNDS = 7
"""Alternating rounds. A candidate that is no faster wins all seven with a probability of 1/128."""

COMPILING_SECONDS = 60.0
"""After so long no further lever is tried, because each is compiled anew."""

CHECKED_IMAGES = 2
"""Images on which a form is compared with float64."""

ERRORS = 4.0
"""How many times the library's error a form may have. Sums in another order, and overlaps that are
rounded as they grow, stay below twice; a wrong form is a hundred times off even in bfloat16."""

EXACT = 1e-13
"""Relative error that is always allowed, because the library's may be 0."""

AGREEMENT = {"fp32": 1e-2, "tf32": 5e-2, "bf16": 0.1}
"""Relative difference, by precision, between the outcomes of two equal steps."""


@dataclass(frozen=True)
class Trial:
    """A step on trial."""

    step: Call
    outcome: Callable[[], torch.Tensor]
    """Does some steps, and returns numbers in which a difference of the maths shows. Call it once,
    before the step."""


@dataclass(frozen=True)
class FormTimes:
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


@dataclass(frozen=True)
class Lever:
    """A step with one change, as it was found."""

    name: str
    seconds: tuple[float, ...]
    """Of a step, in each round; empty if it was left out."""
    without: tuple[float, ...]
    """Of a step without the change, in the same rounds."""
    taken: bool
    obstacle: str | None


@dataclass(frozen=True)
class Found:
    """What the tuner chose, and what it saw."""

    tuning: Tuning
    forms: list[FormTimes]
    levers: list[Lever]
    seconds: float
    """That it took, compiling included."""

    def describe(self) -> str:
        """Describe in a line what was chosen, and what it gained."""
        taken = [lever for lever in self.levers if lever.taken]
        if not taken:
            return "no change made the step faster"
        gains = (sum(lever.without) / sum(lever.seconds) for lever in taken)
        return f"{math.prod(gains):.2f} times as fast as untuned: {self.tuning.describe()}"

    def left_out(self) -> Iterator[str]:
        """Describe each form and each lever that cannot be taken here, in a line."""
        for row in self.forms:
            if row.obstacle is not None:
                yield f"{row.form} of {row.layers[0]}, {row.product}: {row.obstacle}"
        for lever in self.levers:
            if lever.obstacle is not None:
                yield f"{lever.name}: {lever.obstacle}"


def measure(
    make: Callable[[Tuning], Trial],
    layers: Mapping[str, LayerSize],
    images: int,
    precision: str,
    alone: bool,
    device: torch.device,
    timers: tuple[Timer, Timer],
    rounds: int = ROUNDS,
) -> Found:
    """Measure all forms and levers.

    Args:
        make: builds a step, always from the same state. It raises what makes the step impossible.
        layers: the sizes of the layers, by name.
        images: in a batch.
        precision: fp32, tf32 or bf16.
        alone: whether one process trains; several reduce gradients within the update.
        device: where to compute.
        timers: of a layer's product, and of a step.
        rounds: the number of turns of each form and lever.
    """
    began = time.perf_counter()
    of_layers, of_steps = timers
    forms = tune_layers(layers, images, DTYPES[precision], device, of_layers, rounds)
    changes = levers(choose_forms(forms, layers), alone, device)
    tuning, tried = tune_step(make, changes, precision, of_steps, rounds)
    return Found(tuning, forms, tried, time.perf_counter() - began)


# Layers


def tune_layers(
    layers: Mapping[str, LayerSize],
    images: int,
    dtype: torch.dtype,
    device: torch.device,
    timer: Timer,
    rounds: int = ROUNDS,
) -> list[FormTimes]:
    """Time every form of every product; the arguments are those of `measure`."""
    names: dict[LayerSize, list[str]] = {}
    for name, layer in layers.items():
        names.setdefault(layer, []).append(name)
    found = []
    for layer, same in names.items():
        for product, forms in layer.forms().items():
            label, turns, obstacles = f"{same[0]} {product}", dict[str, Turn](), dict[str, str]()
            few = operands(layer, product, CHECKED_IMAGES, dtype, device)
            given = operands(layer, product, images, dtype, device)
            for form, compute in forms.items():
                try:
                    require_right(compute, forms["library"], few)
                    turns[form] = timer(f"{label} {form}", _call(compute, given))
                except (
                    Exception
                ) as error:  # libraries raise anything; without it we are only slower
                    obstacles[form] = first_line(error)
            times = race(turns, rounds)
            taken = pick(times, "library")
            flops = 2 * images * math.prod(layer.small[1:]) * math.prod(layer.weights)
            found += [
                FormTimes(
                    tuple(same), product, form, tuple(times.get(form, ())), flops,
                    form == taken, obstacles.get(form),
                )
                for form in forms
            ]  # fmt: skip
    return found


def choose_forms(found: list[FormTimes], layers: Mapping[str, LayerSize]) -> dict[str, Forms]:
    """Return the forms that were taken, by the name of each layer that is not all the library's.

    Layers between one pixel and one patch stay products, which compiled code needs.
    """
    chosen: dict[str, dict[str, str]] = {}
    for row in found:
        for name in row.layers:
            if row.taken and not layers[name].is_one_patch:
                chosen.setdefault(name, {})[row.product] = row.form
    forms = {name: Forms(**products) for name, products in chosen.items()}
    return {name: each for name, each in forms.items() if each != Forms()}


def require_right(
    compute: Product, library: Product, given: tuple[torch.Tensor, torch.Tensor]
) -> None:
    """Compare a form with float64 on this device.

    Raises:
        ValueError: it computes something else.
        Exception: anything that a library raises.
    """
    truth = library(*(each.double() for each in given))
    error, librarys = (
        float((form(*given).double() - truth).norm() / truth.norm()) for form in (compute, library)
    )
    if not error <= ERRORS * librarys + EXACT:
        raise ValueError(f"wrong: an error of {error:.1e}, and the library's is {librarys:.1e}")


def operands(
    layer: LayerSize, product: str, images: int, dtype: torch.dtype, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw the operands of a product, in channels_last."""
    shapes = {
        "big": (images, *layer.big),
        "small": (images, *layer.small),
        "weights": layer.weights,
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


def _call(compute: Product, given: tuple[torch.Tensor, torch.Tensor]) -> Call:
    return lambda: compute(*given)


# Whole steps


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
    return whole | in_all_modes | {option: {"compiler": (option,)} for option in COMPILER_OPTIONS}


def tune_step(
    make: Callable[[Tuning], Trial],
    changes: Mapping[str, Mapping[str, Any]],
    precision: str,
    timer: Timer,
    rounds: int = ROUNDS,
) -> tuple[Tuning, list[Lever]]:
    """Try one change after another, and keep those that make the step faster.

    Args:
        make: as for `measure`.
        changes: the result of `levers`.
        precision: fp32, tf32 or bf16.
        timer: times a step.
        rounds: the number of turns of each step.
    """
    tuning, found = Tuning(), list[Lever]()
    best = make(tuning)
    wanted = best.outcome()
    began = time.monotonic()
    for name, change in changes.items():
        compiler = (*tuning.compiler, *change.get("compiler", ()))
        changed = tuning.model_copy(update={**change, "compiler": compiler})
        if changed == tuning:
            continue
        times: dict[str, list[float]] = {}
        obstacle = None
        try:
            if time.monotonic() - began > COMPILING_SECONDS:
                raise TimeoutError(f"not tried: the others took {COMPILING_SECONDS:.0f} s")
            candidate = make(changed)
            require_agreement(candidate.outcome(), wanted, AGREEMENT[precision])
            steps = {"without": best.step, name: candidate.step}
            times = race({which: timer(f"step {which}", steps[which]) for which in steps}, rounds)
        except Exception as error:  # compilers and drivers raise anything
            obstacle = first_line(error)
        taken = pick(times, "without") == name
        seconds, without = (tuple(times.get(each, ())) for each in (name, "without"))
        found.append(Lever(name, seconds, without, taken, obstacle))
        if taken:
            tuning, best = changed, candidate
    return tuning, found


def require_agreement(found: torch.Tensor, wanted: torch.Tensor, most: float) -> None:
    """Compare the outcomes of two steps.

    Raises:
        ValueError: they differ.
    """
    apart = float(((found - wanted).abs() / wanted.abs().clamp_min(1e-3)).max())
    if not apart <= most:
        raise ValueError(f"wrong: the outcome differs by {apart:.1e}")


# Timing


def race(turns: Mapping[str, Turn], rounds: int) -> dict[str, list[float]]:
    """Return the seconds of each candidate, in alternating rounds."""
    times: dict[str, list[float]] = {name: [] for name in turns}
    for _ in range(rounds):
        for name, turn in turns.items():
            times[name].append(turn())
    return times


def pick(times: Mapping[str, list[float]], reference: str) -> str:
    """Return the fastest of those that beat the reference in every round, or the reference.

    Where the reference itself fails, it is the fastest of all.
    """
    against = times.get(reference)
    better = [
        name
        for name, each in times.items()
        if against is None or all(mine < other for mine, other in zip(each, against, strict=True))
    ]
    return min(better, key=lambda name: statistics.median(times[name]), default=reference)


def timers(device: torch.device) -> tuple[Timer, Timer]:
    """Return the timers of products and of steps."""
    if device.type == "cuda":
        return captured_on_cuda, on_cuda
    return on_cpu, on_cpu


LEAST_SECONDS = 0.05
"""How long a turn on a CPU lasts, so that spinning threads do not matter."""


def on_cpu(name: str, call: Call) -> Turn:
    """Time by the CPU seconds of the process, which other processes disturb less."""

    def seconds(times: int) -> float:
        began = time.process_time()
        for _ in range(times):
            call()
        return time.process_time() - began

    call()
    times = 1
    while seconds(times) < LEAST_SECONDS:
        times *= 2
    return lambda: seconds(times) / times


REPEATS = 24
"""Calls between two events on CUDA, so that the host's launch time does not show."""


def on_cuda(name: str, call: Call) -> Turn:
    """Time by events on the current stream.

    See docs.pytorch.org/docs/stable/notes/cuda.html, "Asynchronous execution".
    """
    return _between_events(lambda: [call() for _ in range(REPEATS)])


def captured_on_cuda(name: str, call: Call) -> Turn:
    """Time likewise a CUDA graph of the calls, which is how a step makes them."""

    def repeated() -> None:
        for _ in range(REPEATS):
            call()

    # Products draw nothing and change nothing
    return _between_events(capture(repeated, torch.Generator("cuda"), nullcontext))


def _between_events(repeated: Call) -> Turn:
    def seconds() -> float:
        began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        began.record()
        repeated()
        ended.record()
        ended.synchronize()
        milliseconds: float = began.elapsed_time(ended)
        return milliseconds / 1e3 / REPEATS

    repeated()
    return seconds
