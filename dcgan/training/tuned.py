"""The tuning of a run: the one that it began with, a fixed one, or the fastest that was measured.

What was measured is kept in the user's cache folder, under all that it depends on: the first start
on a device measures, later ones read.
"""

from __future__ import annotations

import contextlib
import gc
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter, ValidationError

from dcgan.options import TrainConfig
from dcgan.step.adversarial import AdversarialStep
from dcgan.step.tuner import Found, Timer, Trial, Turn, measure, timers
from dcgan.step.tuning import UNTUNED, LayerSize, Tuning, for_cpu, library, measure_layers
from dcgan.training.previous import Log, Previous
from pipeline.errors import first_line
from pipeline.files import cache_folder, digest, write_whole
from pipeline.images.size import sides

VERSION = 1
"""Raise it when what is stored, or what a form does, changes."""

DEPENDS_ON = (
    "batch_size", "image_size", "channels", "nz", "ngf", "ndf", "precision", "mirror", "augment",
    "ranks",
)  # fmt: skip
"""Options on which the fastest way depends."""

SHORT = 20_000
"""Steps of a run that is too short to be timed: it would end sooner than the timing pays."""

CHOSEN_FOR = ("tune", "precision", "step", "deterministic", "ranks")
"""Options after whose change a run that resumes chooses anew."""


def kept_tuning(config: TrainConfig, previous: Previous | None) -> dict[str, Any] | None:
    """Return the tuning of the run that resumes; None for a new run, or if a new one is wanted.

    Args:
        config: the options, resolved.
        previous: the run that resumes, if any.
    """
    # Before the first step no result depends on the choice
    if previous is None or previous.state is None or previous.state.steps == 0:
        return None
    if previous.device_type != config.device.partition(":")[0]:
        return None
    before = previous.options
    if any(before.get(name, getattr(config, name)) != getattr(config, name) for name in CHOSEN_FOR):
        return None
    # A version that knew of no choice computed as an untuned step does. A killed process may have
    # left none, while it chose anew.
    kept: dict[str, Any] | None = before.get("tuning", UNTUNED.model_dump(mode="json"))
    return kept


def choose_tuning(
    config: TrainConfig,
    update: AdversarialStep,
    mode: str,
    make: Callable[[Tuning], Trial],
    log: Log,
    stop: Callable[[], bool] = lambda: False,
    steps: int = SHORT,
) -> tuple[Tuning, str]:
    """Choose how a run computes its steps.

    Args:
        config: the options, resolved; `tuning` is that of a run that resumes, which is kept.
        update: the step; its nets are on their device.
        mode: eager, compiled or graph.
        make: builds a step that is ready to run, for `measure`.
        log: called with a line about whatever takes long or is ignored.
        stop: returns whether to stop measuring.
        steps: of the whole run.

    Returns:
        The choice and its reason.
    """
    layers = _layers(config, update)
    if config.tuning is not None:
        kept = _read_choice(config.tuning, layers)
        if kept is not None:
            return kept, "as the run began"
        log("tuning   this version cannot read the run's choice; choosing again")
    device = next(update.generator.parameters()).device
    if device.type == "cpu":
        if config.tune == "off":
            return library(layers), "as asked for"
        if mode == "eager":
            return for_cpu(layers, config.precision), "from the table of this kind of CPU"
    if reason := _why_not(config, device, mode, steps):
        return UNTUNED, reason
    try:
        return stored_or_measured(config, update, make, log, stop=stop).tuning, "the fastest here"
    except KeyboardInterrupt:
        if not stop():
            raise
        return UNTUNED, "the timing was interrupted"
    except Exception as error:  # drivers and compilers raise anything; untuned it is only slower
        return UNTUNED, f"the timing failed: {first_line(error)}"


def _why_not(config: TrainConfig, device: torch.device, mode: str, steps: int) -> str | None:
    """Return why the step is not measured here, if it is not."""
    if device.type != "cuda" or mode != "graph":
        return "only a CUDA graph is tuned" if device.type == "cuda" else f"nothing for {mode} here"
    for name, value in (("tune", "off"), ("deterministic", True), ("dry_run", True)):
        if getattr(config, name) == value:
            return f"because of --{name.replace('_', '-')}"
    if steps < SHORT:
        return f"a run of fewer than {SHORT:,} steps is not timed"
    return None


def _read_choice(choice: dict[str, Any], layers: dict[str, LayerSize]) -> Tuning | None:
    """Read the choice of a run; None if it is not one for these layers."""
    with contextlib.suppress(ValidationError):
        tuning = Tuning(**choice)
        if tuning.fits(layers):
            return tuning
    return None


def stored_or_measured(
    config: TrainConfig,
    update: AdversarialStep,
    make: Callable[[Tuning], Trial],
    log: Log,
    again: bool = False,
    stop: Callable[[], bool] = lambda: False,
) -> Found:
    """Read what was measured for these nets on this device, or measure it now.

    Args:
        config: the options, resolved.
        update: the step; its nets are on their device.
        make: builds a step that is ready to run, for `measure`.
        log: called with a line about whatever takes long or is ignored.
        again: whether to measure in any case.
        stop: returns whether to stop measuring.

    Raises:
        KeyboardInterrupt: `stop` has returned True.
    """
    key = _key(config, next(update.generator.parameters()).device)
    name = f"{digest(key.encode())[:32]}.json"
    found = None if again else _read(name, key, _layers(config, update), log)
    if found is None:
        log("tuning   timing the step on this device: minutes, once; --tune off skips it")
        found = measure_step(config, update, make, stop)
        for line in found.left_out():
            log(f"tuning   left out: {line}")
        log(f"tuning   {found.describe()}; in {found.seconds:.0f} s, compiling included")
        try:
            path = _folder() / name
            path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(path, json.dumps({"key": key}).encode() + b"\n" + _FOUND.dump_json(found))
        except (OSError, RuntimeError) as error:  # the latter where nobody knows a home
            log(f"tuning   could not be stored, the next start measures again: {error}")
    return found


def measure_step(
    config: TrainConfig,
    update: AdversarialStep,
    make: Callable[[Tuning], Trial],
    stop: Callable[[], bool] = lambda: False,
    **rounds: int,
) -> Found:
    """Measure a step; the arguments are those of `stored_or_measured`, and `measure`'s `rounds`."""
    device = next(update.generator.parameters()).device
    of_layers, of_steps = (_stopping(timer, stop) for timer in timers(device))
    images, alone = config.batch_size // config.ranks, config.ranks == 1
    # Events and graphs belong to the current device, which need not be that of the run
    here = torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()
    with here:
        found = measure(
            make, _layers(config, update), images, config.precision, alone, device,
            (of_layers, of_steps), **rounds,
        )  # fmt: skip
    if device.type == "cuda":  # the run compiles for itself, and needs the memory
        torch.compiler.reset()
        gc.collect()
        torch.cuda.empty_cache()
    return found


def _stopping(timer: Timer, stop: Callable[[], bool]) -> Timer:
    """Have a timer raise KeyboardInterrupt once `stop` returns True."""

    def prepare(name: str, call: Callable[[], object]) -> Turn:
        turn = timer(name, call)

        def heeding() -> float:
            if stop():
                raise KeyboardInterrupt
            return turn()

        return heeding

    return prepare


def _folder() -> Path:
    """Return the folder of what was measured.

    Raises:
        RuntimeError: nobody knows a home.
    """
    return cache_folder() / "tuning"


def _layers(config: TrainConfig, update: AdversarialStep) -> dict[str, LayerSize]:
    width, height = sides(config.image_size)
    return measure_layers(update, config.nz, (config.channels, height, width))


_FOUND = TypeAdapter(Found)


def _key(config: TrainConfig, device: torch.device) -> str:
    """Return all that a measurement depends on, as JSON."""
    options = {name: getattr(config, name) for name in DEPENDS_ON}
    machine = {
        "version": VERSION,
        "torch": torch.__version__,
        "cudnn": torch.backends.cudnn.version(),  # type: ignore[no-untyped-call]
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "average": bool(config.ema_nimg),
    }
    if config.labels is not None:
        machine["labels"] = [config.labels.kind, len(config.labels.names)]
    return json.dumps(machine | options, sort_keys=True)


def _read(name: str, key: str, layers: dict[str, LayerSize], log: Log) -> Found | None:
    """Read what is stored; None if there is nothing, or nothing that can be used."""
    try:
        head, _, body = (_folder() / name).read_bytes().partition(b"\n")
        if json.loads(head) != {"key": key}:
            raise ValueError("it is of another device or version")
        found = _FOUND.validate_json(body)
        if not found.tuning.fits(layers):
            raise ValueError("it has forms that this version has not")
    except FileNotFoundError:
        return None
    except (OSError, RuntimeError, ValueError) as error:  # RecursionError is a RuntimeError
        log(f"tuning   {name} cannot be used, measuring again: {first_line(error)}")
        return None
    return found
