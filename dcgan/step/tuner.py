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
from functools import partial
from typing import Any, TypeAlias

import torch

from dcgan.nets.forms import Forms, Product
from dcgan.step.graph import capture
from dcgan.step.tuning import LayerSize, Tuning
from pipeline.errors import first_line

Call: TypeAlias = Callable[[], Any]
"""A product, or a whole step."""
Turn: TypeAlias = Callable[[], float]
"""Makes a call several times, and returns the seconds of one."""
Timer: TypeAlias = Callable[[str, Call], Turn]
"""Prepares a call to be timed. It is told what is called, for clocks that pretend."""
Operands: TypeAlias = tuple[torch.Tensor, torch.Tensor]
Stop: TypeAlias = Callable[[], bool]
"""Returns whether to stop measuring."""

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

WITHOUT = "without"
"""The name of the step without a change, in its race with the changed one."""

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
class Candidate:
    """A form of a product, or a step with or without a change, as it was found."""

    name: str
    seconds: tuple[float, ...]
    """Of a call, in each round; empty if it was left out."""
    obstacle: str | None
    """Why it was left out."""


@dataclass(frozen=True)
class Race:
    """Equal ways to compute the same, timed in the same rounds; the first is the reference."""

    candidates: list[Candidate]
    taken: str
    layers: tuple[str, ...] = ()
    """Of a product: the names of all layers of this size."""
    product: str = ""
    flops: int = 0
    """Of a product."""


@dataclass(frozen=True)
class Found:
    """What the tuner chose, and what it saw."""

    tuning: Tuning
    forms: list[Race]
    levers: list[Race]
    seconds: float
    """That it took, compiling included."""

    def describe(self) -> str:
        """Describe in a line what was chosen, and what it gained."""
        pairs = [race.candidates for race in self.levers if race.taken != WITHOUT]
        if not pairs:
            return "no change made the step faster"
        gains = (sum(without.seconds) / sum(lever.seconds) for without, lever in pairs)
        return f"{math.prod(gains):.2f} times as fast as untuned: {self.tuning.describe()}"

    def left_out(self) -> Iterator[str]:
        """Describe each form and each lever that cannot be taken here, in a line."""
        for race in (*self.forms, *self.levers):
            of = f" of {race.layers[0]}, {race.product}" if race.layers else ""
            for each in race.candidates:
                if each.obstacle is not None:
                    yield f"{each.name}{of}: {each.obstacle}"


# Layers


def race_forms(
    layers: Mapping[str, LayerSize],
    images: int,
    dtype: torch.dtype,
    device: torch.device,
    timer: Timer,
    rounds: int = ROUNDS,
    stop: Stop = lambda: False,
) -> list[Race]:
    """Time every form of every product of each size of layer, by name.

    The maps are of `images` images and, like the weights, of `dtype`.

    Raises:
        KeyboardInterrupt: `stop` has returned True.
    """
    names: dict[LayerSize, list[str]] = {}
    for name, layer in layers.items():
        names.setdefault(layer, []).append(name)

    def prepare(layer: LayerSize, product: str, form: str, label: str) -> Turn:
        forms = layer.forms()[product]
        few = operands(layer, product, CHECKED_IMAGES, dtype, device)
        require_right(forms[form], forms["library"], few)
        given = operands(layer, product, images, dtype, device)
        return timer(label, lambda: forms[form](*given))

    found = []
    for layer, same in names.items():
        flops = 2 * images * math.prod(layer.small[1:]) * math.prod(layer.weights)
        for product, forms in layer.forms().items():
            turns = {
                form: partial(prepare, layer, product, form, f"{same[0]} {product} {form}")
                for form in forms
            }
            found.append(Race(*race(turns, rounds, stop), tuple(same), product, flops))
    return found


def choose_forms(found: list[Race], layers: Mapping[str, LayerSize]) -> dict[str, Forms]:
    """Return the forms that were taken, by the name of each layer that is not all the library's.

    Layers between one pixel and one patch stay products, which compiled code needs.
    """
    chosen: dict[str, dict[str, str]] = {}
    for each in found:
        for name in each.layers:
            if not layers[name].is_one_patch:
                chosen.setdefault(name, {})[each.product] = each.taken
    forms = {name: Forms(**products) for name, products in chosen.items()}
    return {name: each for name, each in forms.items() if each != Forms()}


def require_right(compute: Product, library: Product, given: Operands) -> None:
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
) -> Operands:
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


# Whole steps


def race_steps(
    make: Callable[[Tuning], Trial],
    changes: Mapping[str, Mapping[str, Any]],
    precision: str,
    timer: Timer,
    rounds: int = ROUNDS,
    stop: Stop = lambda: False,
) -> tuple[Tuning, list[Race]]:
    """Try one change after another, and keep those that make the step faster.

    Args:
        make: builds a step, always from the same state. It raises what makes the step impossible.
        changes: updates of a `Tuning`, by name.
        precision: fp32, tf32 or bf16.
        timer: of a step.
        rounds: the number of turns of each step.
        stop: ends it by a KeyboardInterrupt.
    """
    tuning, found = Tuning(), list[Race]()
    trials = {WITHOUT: make(tuning)}
    wanted = trials[WITHOUT].outcome()
    began = time.monotonic()

    def prepare(name: str, changed: Tuning) -> Turn:
        if time.monotonic() - began > COMPILING_SECONDS:
            raise TimeoutError(f"not tried: the others took {COMPILING_SECONDS:.0f} s")
        trial = trials[name] = make(changed)
        require_agreement(trial.outcome(), wanted, AGREEMENT[precision])
        return timer(f"step {name}", trial.step)

    for name, change in changes.items():
        compiler = (*tuning.compiler, *change.get("compiler", ()))
        changed = tuning.model_copy(update={**change, "compiler": compiler})
        if changed == tuning:
            continue
        without = partial(timer, f"step {WITHOUT}", trials[WITHOUT].step)
        pair = {WITHOUT: without, name: partial(prepare, name, changed)}
        found.append(Race(*race(pair, rounds, stop)))
        if found[-1].taken == name:
            tuning, trials[WITHOUT] = changed, trials[name]
        trials.pop(name, None)  # its memory is needed
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


def race(
    candidates: Mapping[str, Callable[[], Turn]], rounds: int, stop: Stop
) -> tuple[list[Candidate], str]:
    """Prepare candidates, of which the first is the reference, and time them in alternating rounds.

    Returns:
        All of them, with what each took or why it is left out; and the name of the one to take.
        That is the fastest of those that beat the reference in every round, or the reference.
        Where the reference itself fails, it is the fastest of all.

    Raises:
        KeyboardInterrupt: `stop` has returned True.
    """
    turns, obstacles = dict[str, Turn](), dict[str, str]()
    for name, prepare in candidates.items():
        try:
            turns[name] = prepare()
        except Exception as error:  # libraries raise anything; without it we are only slower
            obstacles[name] = first_line(error)
    times: dict[str, list[float]] = {name: [] for name in turns}
    for _ in range(rounds):
        for name, turn in turns.items():
            if stop():
                raise KeyboardInterrupt
            times[name].append(turn())
    reference = next(iter(candidates))
    against = times.get(reference, [math.inf] * rounds)
    better = [
        name
        for name, each in times.items()
        if all(mine < other for mine, other in zip(each, against, strict=True))
    ]
    taken = min(better, key=lambda name: statistics.median(times[name]), default=reference)
    return [
        Candidate(name, tuple(times.get(name, ())), obstacles.get(name)) for name in candidates
    ], taken


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
