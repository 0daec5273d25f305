"""How a run computes its step: as it began, by a fixed table, or as was measured to be fastest.

What was measured is kept in the user's cache folder, under all that it depends on: the first start
on a device measures, later ones read.
"""

from __future__ import annotations

import contextlib
import gc
import json
import time
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter, ValidationError

from dcgan.nets.conditional import blank_labels
from dcgan.options import TrainConfig
from dcgan.rundir.folder import write_object
from dcgan.step.adversarial import AdversarialStep
from dcgan.step.statistics import StepRows
from dcgan.step.train_step import Log, WholeStep
from dcgan.step.tuner import (
    ROUNDS,
    Found,
    Stop,
    Trial,
    choose_forms,
    race_forms,
    race_steps,
    timers,
)
from dcgan.step.tuning import (
    COMPILER_OPTIONS,
    UNTUNED,
    LayerSize,
    Tuning,
    for_cpu,
    library,
    measure_layers,
)
from dcgan.training.build import build_nets, build_step, stream
from dcgan.training.run import Run
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

DTYPES = {"fp32": torch.float32, "tf32": torch.float32, "bf16": torch.bfloat16}
"""The types of maps and weights, by precision."""

TRIAL_STEPS = 3
"""Steps on trial, from whose outcome the tuner tells whether two ways compute the same."""


def prepare(run: Run, log: Log, stop: Stop) -> None:
    """Make a run's step ready, and check that all ranks have the same weights and images.

    Raises:
        UserError: a rank differs.
    """
    run.connect()
    ranks, mode = run.ranks, run.mode.name

    def choose() -> tuple[Tuning, str]:
        return choose_tuning(run.config, run.step.update, mode, log, stop, run.plan.total_steps)

    chosen = ranks.same(ranks.first(choose))
    assert chosen is not None  # the first rank's
    tuning, reason = chosen
    log(f"tuning   {tuning.describe()}; {reason}")
    run.config = run.config.replace(tuning=tuning.model_dump(mode="json"))
    ranks.first(lambda: write_object(run.folder.config, run.options()))
    # Before the first batch, because DALI's work on the device would disturb a capture
    taken = run.step.prepare(mode, log, ranks.all, tuning)
    if taken != mode:
        log(f"step     {taken}, because {mode} failed")


def choose_tuning(
    config: TrainConfig,
    update: AdversarialStep,
    mode: str,
    log: Log,
    stop: Stop = lambda: False,
    steps: int = SHORT,
) -> tuple[Tuning, str]:
    """Choose how a run computes its steps.

    Args:
        config: the options, resolved; `tuning` is that of a run that resumes, which is kept.
        update: the step; its nets are on their device.
        mode: eager, compiled or graph.
        log: called with a line about whatever takes long or is ignored.
        stop: returns whether to stop measuring.
        steps: of the whole run.

    Returns:
        The choice and its reason.
    """
    layers, device = _layers(config, update), _device(update)
    if config.tuning is not None:
        with contextlib.suppress(ValidationError):
            kept = Tuning(**config.tuning)
            if kept.fits(layers):
                return kept, "as the run began"
        log("tuning   this version cannot read the run's choice; choosing again")
    if device.type == "cpu":
        if config.tune == "off":
            return library(layers), "as asked for"
        if mode == "eager":
            return for_cpu(layers, config.precision), "from the table of this kind of CPU"
    if reason := _why_not(config, device, mode, steps):
        return UNTUNED, reason
    try:
        return stored_or_measured(config, update, log, stop=stop).tuning, "the fastest here"
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


# Measured once, and stored


def stored_or_measured(
    config: TrainConfig,
    update: AdversarialStep,
    log: Log,
    again: bool = False,
    stop: Stop = lambda: False,
) -> Found:
    """Read what was measured for these nets on this device, or if `again` is set, measure it now.

    The other arguments are those of `choose_tuning`.

    Raises:
        KeyboardInterrupt: `stop` has returned True.
    """
    key = _key(config, update)
    name = f"{digest(key.encode())[:32]}.json"
    found = None if again else _read(name, key, _layers(config, update), log)
    if found is None:
        log("tuning   timing the step on this device: minutes, once; --tune off skips it")
        found = measure_step(config, update, stop=stop)
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


def _folder() -> Path:
    """Return the folder of what was measured.

    Raises:
        RuntimeError: nobody knows a home.
    """
    return cache_folder() / "tuning"


_FOUND = TypeAdapter(Found)


def _key(config: TrainConfig, update: AdversarialStep) -> str:
    """Return all that a measurement depends on, as JSON."""
    device = _device(update)
    options = {name: getattr(config, name) for name in DEPENDS_ON}
    machine = {
        "version": VERSION,
        "torch": torch.__version__,
        "cudnn": torch.backends.cudnn.version(),  # type: ignore[no-untyped-call]
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "average": bool(config.ema_nimg),
        "update": type(update).__qualname__,
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


# The measurement


def measure_step(
    config: TrainConfig,
    update: AdversarialStep,
    rounds: int = ROUNDS,
    stop: Stop = lambda: False,
) -> Found:
    """Measure all forms of the layers, and then all changes of the step.

    The arguments are those of `choose_tuning`, and the number of turns of each candidate.
    """
    began = time.perf_counter()
    device, layers = _device(update), _layers(config, update)
    of_products, of_steps = timers(device)
    images, dtype = config.batch_size // config.ranks, DTYPES[config.precision]
    cuda = device.type == "cuda"
    # Events and graphs belong to the current device, which need not be that of the run
    with torch.cuda.device(device) if cuda else contextlib.nullcontext():
        forms = race_forms(layers, images, dtype, device, of_products, rounds, stop)
        changes: dict[str, dict[str, Any]] = {}
        if cuda and config.ranks == 1:  # several reduce gradients within the update
            changes["the update as one graph"] = {"one_graph": True}
        changes["forms of the layers"] = {"layers": choose_forms(forms, layers)}
        changes["real and generated images in one batch"] = {"joint": True}
        if cuda:  # elsewhere the steps on trial are not compiled
            changes |= {option: {"compiler": (option,)} for option in COMPILER_OPTIONS}

        def make(tuning: Tuning) -> Trial:
            return trial_step(config, device, tuning, type(update))

        tuning, levers = race_steps(make, changes, config.precision, of_steps, rounds, stop)
    if cuda:  # the run compiles for itself, and needs the memory
        torch.compiler.reset()
        gc.collect()
        torch.cuda.empty_cache()
    return Found(tuning, forms, levers, time.perf_counter() - began)


def trial_step(
    config: TrainConfig,
    device: torch.device,
    tuning: Tuning,
    update: type[AdversarialStep] = AdversarialStep,
) -> Trial:
    """Build a step for the tuner, captured on CUDA, always from the same state.

    Raises:
        RuntimeError: it cannot be captured, or not with this tuning.
    """
    if device.type == "cuda":
        torch.compiler.reset()  # else code that was compiled with other options is taken again
        gc.collect()  # earlier steps, whose graphs hold memory
    # Without the files of a run's nets, and at a rate at which a wrong update shows
    own: dict[str, Any] = {"netG": None, "netD": None, "lr": 2e-4, "lr_d": None, "lr_g": None}
    config = config.replace(batch_size=config.batch_size // config.ranks, tuning=None, **own)
    nets, rows = build_nets(config, device), StepRows(1, device)
    space = None if config.labels is None else config.labels.space
    (table,) = blank_labels(space, 1, device) or (None,)
    step = build_step(config, *nets, rows, label_table=table, update=update)
    step.pixels.random_(0, 256, generator=stream(0, "pixels", device))
    began = _flat(step)
    logged: list[str] = []
    mode = "graph" if device.type == "cuda" else "eager"
    taken = step.prepare(mode, logged.append, tuning=tuning)
    if taken != mode or step.is_one_graph != tuning.one_graph:
        raise RuntimeError("; ".join(line for line in logged if "compiling" not in line))

    def run() -> torch.Tensor:
        step.rows.place.zero_()  # nobody reads them
        return step.run()

    def outcome() -> torch.Tensor:
        statistics = run().clone()
        for _ in range(TRIAL_STEPS - 1):
            run()
        # How far all has moved: later statistics depend on signs of gradients near zero
        ways = [(now - then).norm() for now, then in zip(_flat(step), began, strict=True)]
        return torch.cat((statistics, torch.stack(ways)))

    return Trial(run, outcome)


def _flat(step: WholeStep) -> list[torch.Tensor]:
    """Copy the weights, and BatchNorm's statistics, of G, D and the average, each as one vector."""
    lists = [tensors for net in step.nets for tensors in ([*net.parameters()], [*net.buffers()])]
    return [
        torch.cat([each.detach().flatten() for each in tensors if each.is_floating_point()])
        for tensors in lists
    ]


def _device(update: AdversarialStep) -> torch.device:
    return next(update.generator.parameters()).device


def _layers(config: TrainConfig, update: AdversarialStep) -> dict[str, LayerSize]:
    width, height = sides(config.image_size)
    return measure_layers(update, config.nz, (config.channels, height, width))
