"""The tuning of a run: the one that it began with, a fixed one, or the fastest that was measured.

What was measured is kept in the user's cache folder, under all that it depends on: the first start
on a device measures, later ones read.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter, ValidationError

from dcgan.options import TrainConfig
from dcgan.step.adversarial import AdversarialStep
from dcgan.step.tuner import Call, Found, measure, timers
from dcgan.step.tuning import UNTUNED, LayerSize, Tuning, for_cpu, library, measure_layers
from dcgan.training.previous import Log, Previous
from pipeline.errors import first_line
from pipeline.files import cache_folder, digest, write_whole

VERSION = 1
"""Raise it when what is stored, or what a form does, changes."""

DEPENDS_ON = (
    "batch_size", "image_size", "channels", "nz", "ngf", "ndf", "precision", "mirror", "ranks",
)  # fmt: skip
"""Options on which the fastest way depends."""

CHOSEN_FOR = ("tune", "precision", "step", "deterministic")
"""Options after whose change a run that resumes chooses anew."""


def kept_tuning(config: TrainConfig, previous: Previous | None) -> dict[str, Any] | None:
    """Return the tuning of the run that resumes; None for a new run, or if a new one is wanted.

    Args:
        config: the options, resolved.
        previous: the run that resumes, if any.
    """
    if previous is None or previous.device_type != config.device.partition(":")[0]:
        return None
    before = previous.options
    if any(before.get(name, getattr(config, name)) != getattr(config, name) for name in CHOSEN_FOR):
        return None
    # A version that knew of no choice computed as an untuned step does
    untuned = None if previous.state is None else UNTUNED.model_dump(mode="json")
    kept: dict[str, Any] | None = before.get("tuning", untuned)
    return kept


def choose_tuning(
    config: TrainConfig,
    update: AdversarialStep,
    mode: str,
    make: Callable[[Tuning], Call],
    log: Log,
) -> tuple[Tuning, str]:
    """Choose how a run computes its steps.

    Args:
        config: the options, resolved; `tuning` is that of a run that resumes, which is kept.
        update: the step; its nets are on their device.
        mode: eager, compiled or graph.
        make: builds a step that is ready to run, for `measure`.
        log: called with a line about whatever takes long or is ignored.

    Returns:
        The choice and its reason.
    """
    layers = _layers(config, update)
    if config.tuning is not None:
        with contextlib.suppress(ValidationError):
            kept = Tuning(**config.tuning)
            if kept.fits(layers):
                return kept, "as the run began"
        log("tuning   this version cannot read the run's choice; choosing again")
    device = next(update.generator.parameters()).device
    if device.type == "cpu":
        if config.tune == "off":
            return library(layers), "as asked for"
        if mode == "eager":
            return for_cpu(layers, config.precision), "from the table of this kind of CPU"
    if device.type != "cuda" or mode != "graph":
        return UNTUNED, f"only graphs are tuned on {device.type}"
    for name, value in (("tune", "off"), ("deterministic", True), ("dry_run", True)):
        if getattr(config, name) == value:
            return UNTUNED, f"because of --{name.replace('_', '-')}"
    found = stored_or_measured(config, update, make, log)
    return found.tuning, "the fastest here"


def stored_or_measured(
    config: TrainConfig,
    update: AdversarialStep,
    make: Callable[[Tuning], Call],
    log: Log,
    again: bool = False,
) -> Found:
    """Read what was measured for these nets on this device, or measure it now.

    Args:
        config: the options, resolved.
        update: the step; its nets are on their device.
        make: builds a step that is ready to run, for `measure`.
        log: called with a line about whatever takes long or is ignored.
        again: whether to measure in any case.
    """
    device = next(update.generator.parameters()).device
    key = _key(config, device)
    path = cache_folder() / "tuning" / f"{digest(key.encode())[:32]}.json"
    found = None if again else _read(path, key, _layers(config, update), log)
    if found is None:
        log("tuning   timing the step on this device: minutes, once; --tune off skips it")
        found = measure_step(config, update, make)
        log(f"tuning   {found.describe()}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(path, json.dumps({"key": key}).encode() + b"\n" + _FOUND.dump_json(found))
        except OSError as error:
            log(f"tuning   could not be stored, the next start measures again: {error}")
    return found


def measure_step(
    config: TrainConfig,
    update: AdversarialStep,
    make: Callable[[Tuning], Call],
    **rounds: int,
) -> Found:
    """Measure a step; the arguments are those of `stored_or_measured`, and `measure`'s `rounds`."""
    device = next(update.generator.parameters()).device
    layers, both = _layers(config, update), timers(device)
    images, alone = config.batch_size // config.ranks, config.ranks == 1
    return measure(make, layers, images, config.precision, alone, device, both, **rounds)


def _layers(config: TrainConfig, update: AdversarialStep) -> dict[str, LayerSize]:
    image = config.channels, config.image_size, config.image_size
    return measure_layers(update, config.nz, image)


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
    return json.dumps(machine | options, sort_keys=True)


def _read(path: Path, key: str, layers: dict[str, LayerSize], log: Log) -> Found | None:
    """Read what is stored; None if there is nothing, or nothing that can be used."""
    try:
        head, _, body = path.read_bytes().partition(b"\n")
        if json.loads(head) != {"key": key}:
            raise ValueError("it is of another device or version")
        found = _FOUND.validate_json(body)
        if not found.tuning.fits(layers):
            raise ValueError("it has forms that this version has not")
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        log(f"tuning   {path.name} cannot be used, measuring again: {first_line(error)}")
        return None
    return found
