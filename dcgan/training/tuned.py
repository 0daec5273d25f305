"""The tuning of a run: the one that it began with, a fixed one, or the fastest that was measured.

What was measured is kept in the user's cache folder, under all that it depends on: the first start
on a device measures, later ones read.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from pydantic import TypeAdapter, ValidationError

from dcgan.options import TrainConfig
from dcgan.step.adversarial import AdversarialStep
from dcgan.step.tuner import (
    ROUNDS,
    Act,
    CpuTimer,
    CudaTimer,
    Lever,
    Row,
    Timer,
    choose_forms,
    levers,
    tune_layers,
    tune_step,
)
from dcgan.step.tuning import UNTUNED, Tuning, for_cpu, library, measure_layers
from pipeline.errors import first_line
from pipeline.files import cache_folder, digest, write_whole

VERSION = 1
"""Of what is stored, and of what the forms do."""

SIZES = ("batch_size", "image_size", "channels", "nz", "ngf", "ndf", "precision", "mirror", "ranks")
"""Options on which the fastest way depends."""

DTYPES = {"fp32": torch.float32, "tf32": torch.float32, "bf16": torch.bfloat16}

Log = Callable[[str], object]


@dataclass(frozen=True)
class Found:
    """What the tuner chose, and what it saw."""

    tuning: Tuning
    rows: list[Row]
    levers: list[Lever]
    seconds: float
    """That it took, compiling included."""


def choose_tuning(
    config: TrainConfig,
    update: AdversarialStep,
    mode: str,
    make: Callable[[Tuning], Act],
    log: Log,
) -> Tuning:
    """Choose how a run computes its steps.

    Args:
        config: the options, resolved; `tuning` is that of a run that resumes, which is kept.
        update: the step; its nets are on their device.
        mode: eager, compiled or graph.
        make: builds a step that is ready to run, for `tune_step`.
        log: called with a line about whatever takes long or is ignored.
    """
    if config.tuning is not None:
        with contextlib.suppress(ValidationError):
            return Tuning(**config.tuning)
        log("tuning   that of the run is of another version; choosing anew")
    device = next(update.generator.parameters()).device
    image = config.channels, config.image_size, config.image_size
    layers = measure_layers(update, config.nz, image)
    if config.tune == "off":
        return library(layers)
    if device.type == "cpu":
        return for_cpu(layers, config.precision)
    if device.type != "cuda" or mode != "graph" or config.deterministic or config.dry_run:
        return UNTUNED
    return stored_or_measured(config, update, make, log).tuning


def stored_or_measured(
    config: TrainConfig,
    update: AdversarialStep,
    make: Callable[[Tuning], Act],
    log: Log,
    again: bool = False,
) -> Found:
    """Read what was measured for these nets on this device, or measure it now.

    Args:
        config: the options, resolved.
        update: the step; its nets are on their device.
        make: builds a step that is ready to run, for `tune_step`.
        log: called with a line about whatever takes long or is ignored.
        again: whether to measure in any case.
    """
    device = next(update.generator.parameters()).device
    key = _key(config, device)
    path = cache_folder() / "tuning" / f"{digest(key.encode())[:32]}.json"
    found = None if again else _read(path, key, log)
    if found is None:
        log("tuning   the first start with these nets here: minutes; --tune off does without")
        found = measure(config, update, make, timers(device))
        log(f"tuning   {describe(found)}")
        with contextlib.suppress(OSError):  # a full disk or a locked home costs time, nothing else
            path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(path, json.dumps({"key": key}).encode() + b"\n" + _FOUND.dump_json(found))
    return found


def timers(device: torch.device) -> tuple[Timer, Timer]:
    """Return the timers of products and of steps."""
    if device.type == "cuda":
        return CudaTimer(capture=True), CudaTimer(capture=False)
    return CpuTimer(), CpuTimer()


def measure(
    config: TrainConfig,
    update: AdversarialStep,
    make: Callable[[Tuning], Act],
    timers: tuple[Timer, Timer],
    rounds: int = ROUNDS,
) -> Found:
    """Measure all forms and levers.

    Args:
        config: the options, resolved.
        update: the step; its nets are on their device.
        make: builds a step that is ready to run, for `tune_step`.
        timers: of a layer's product, and of a step.
        rounds: the number of turns of each form and lever.
    """
    began = time.perf_counter()
    of_layers, of_steps = timers
    device = next(update.generator.parameters()).device
    layers = measure_layers(
        update, config.nz, (config.channels, config.image_size, config.image_size)
    )
    images, dtype = config.batch_size // config.ranks, DTYPES[config.precision]
    rows = tune_layers(layers, images, dtype, device, of_layers, rounds)
    changes = levers(choose_forms(rows), config.ranks == 1, device)
    tuning, tried = tune_step(make, changes, config.precision, of_steps, rounds)
    return Found(tuning, rows, tried, time.perf_counter() - began)


def describe(found: Found) -> str:
    """Describe in a line what was chosen, and what it gained."""
    taken = [lever for lever in found.levers if lever.taken]
    gains = [sum(lever.before) / sum(lever.seconds) for lever in taken]
    factor = torch.tensor(gains).prod().item() if gains else 1.0
    return f"{factor:.2f} times as fast as untuned: {found.tuning.describe()}"


_FOUND = TypeAdapter(Found)


def _key(config: TrainConfig, device: torch.device) -> str:
    """Return all that a measurement depends on, as JSON."""
    sizes = {name: getattr(config, name) for name in SIZES}
    versions = {
        "version": VERSION,
        "torch": torch.__version__,
        "cudnn": torch.backends.cudnn.version(),  # type: ignore[no-untyped-call]
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "average": bool(config.ema_nimg),
    }
    return json.dumps(versions | sizes, sort_keys=True)


def _read(path: Path, key: str, log: Log) -> Found | None:
    """Read what is stored; None if there is nothing, or nothing that can be used."""
    try:
        head, _, body = path.read_bytes().partition(b"\n")
        if json.loads(head) != {"key": key}:
            raise ValueError("it is of another device or version")
        return _FOUND.validate_json(body)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        log(f"tuning   {path.name} in the cache cannot be used ({first_line(error)})")
        return None
