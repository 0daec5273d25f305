"""From options to a `Run`, which a `Trainer` then restores or begins.

The order is part of the meaning: determinism before any work on a GPU, weights before optimisers.
"""

from __future__ import annotations

import hashlib
import json
import time
from dataclasses import replace

import torch

from dcgan.distributed import ALONE, Ranks
from dcgan.nets.models import Discriminator, Generator, init_weights
from dcgan.nets.weights import load_weights
from dcgan.options import RunLabels, TrainConfig
from dcgan.rundir.environment import own_device, pick_device
from dcgan.rundir.folder import MAX_OBJECT_BYTES, RunFolder
from dcgan.sampling.labels import describe_labels, usual_labels
from dcgan.step.adversarial import AdversarialStep
from dcgan.step.determinism import set_determinism
from dcgan.step.ema import EMA
from dcgan.step.precision import Choice, choose_kernels, choose_precision, set_matrix_format
from dcgan.step.statistics import StepRows
from dcgan.step.train_step import Log, WholeStep, choose_step
from dcgan.training.capacity import check_disk
from dcgan.training.checkpoint import Checkpoints
from dcgan.training.previous import Previous, find
from dcgan.training.run import Plan, Run
from dcgan.training.state import State
from pipeline.errors import UserError
from pipeline.images.size import sides
from pipeline.loading.batches import Batches
from pipeline.loading.open import open_loader
from pipeline.loading.options import LoaderOptions, default_workers
from pipeline.remote.access import Access
from pipeline.shards.shard_set import ShardSet

AS_BEFORE = "as the run began"
"""Why a run that resumes takes what it takes, where the options leave it open."""

REFILL_SECONDS = 2.0
"""Seconds between two log lines about the filling of the cache."""


def build(
    config: TrainConfig,
    log: Log,
    ranks: Ranks = ALONE,
    shards: ShardSet | None = None,
    update: type[AdversarialStep] = AdversarialStep,
) -> Run:
    """Build a run, without writing anything in its folder; what is ignored or changed is logged.

    The set is opened here unless it is open; `update` is what a step computes.

    Raises:
        UserError: no run can be built from these options.
    """
    # What the folder already holds
    folder = RunFolder.at(config.run)
    checkpoints = Checkpoints(folder.checkpoints, config.keep, log)
    previous = find(folder, checkpoints)
    state = None if previous is None else previous.state
    rollbacks = 0 if previous is None else previous.rollbacks

    # The options, with every `auto` resolved
    config, device, mode, precision = _resolve(config, previous, folder, ranks)
    changed = previous is not None and previous.require_same(config, log)
    if config.deterministic:
        set_determinism(0 if state is None else state.threads)

    config = config.replace(tuning=None if previous is None else previous.tuning(config))

    # Data, nets, step
    batches = _open_batches(config, device, ranks, log, shards)
    config = config.replace(labels=_labels_of(batches))
    if previous is not None:
        previous.require_labels(config)
        changed |= previous.restore_batches(batches, config, log)
    first = config
    if state is not None:  # which has the weights; the files of the initial ones may be gone
        first = config.replace(netG=None, netD=None)
    generator, discriminator = build_nets(first, device)
    table = batches.label_table
    if table is not None:
        generator.usual_labels = usual_labels(table)
    plan = _plan(config, batches, state)
    # A tick that an earlier process began may have another length
    begun = 0 if state is None else state.step.rows.shape[1]
    rows = StepRows(begun + min(config.log_every, plan.total_steps), device)
    renewed = previous is not None and previous.has_other_generators(config)
    since = config.batch_size * state.steps if state is not None and renewed else 0
    noise = _noise(ranks.rank, rollbacks, since)
    step = build_step(config, generator, discriminator, rows, noise, ranks, table, update)
    if ranks.is_first:
        check_disk(folder.path, step, config.keep)

    return Run(
        config,
        folder,
        ranks,
        device,
        mode,
        precision,
        generator,
        discriminator,
        batches,
        plan,
        step,
        checkpoints,
        previous,
        changed,
    )


def _resolve(
    config: TrainConfig, previous: Previous | None, folder: RunFolder, ranks: Ranks
) -> tuple[TrainConfig, torch.device, Choice, Choice]:
    """Replace every `auto`: by the value of the run that resumes, or by what suits this machine."""
    given, config = config, config if previous is None else previous.resolve(config)
    picked = pick_device(config.device)
    device = own_device(picked, ranks)
    precision, mode = choose_precision(config.precision, device), choose_step(config.step, device)
    if given.precision != config.precision:
        precision = precision._replace(reason=AS_BEFORE)
    if given.step != config.step:
        mode = mode._replace(reason=AS_BEFORE)
    config = config.replace(
        run=str(folder.path),
        device=str(picked),
        workers=config.workers or default_workers(device),
        precision=precision.name,
        step=mode.name,
        ranks=ranks.count,
    )
    return config, device, mode, precision


def build_nets(config: TrainConfig, device: torch.device) -> tuple[Generator, Discriminator]:
    """Build both nets on their device, in channels_last, with their initial weights."""
    size, channels = config.image_size, config.channels
    labels = None if config.labels is None else config.labels.space
    generator = Generator(size, config.nz, config.ngf, channels, labels)
    discriminator = Discriminator(size, config.ndf, channels, labels)
    weights = stream(config.seed, "weights", torch.device("cpu"))
    init_weights(generator, weights)
    init_weights(discriminator, weights)
    if config.netG is not None:
        load_weights(generator, config.netG, "--netG")
    if config.netD is not None:
        load_weights(discriminator, config.netD, "--netD")
    for net in (generator, discriminator):
        net.to(device).to(memory_format=torch.channels_last)
    return generator, discriminator


def stream(seed: int, purpose: str, device: torch.device) -> torch.Generator:
    """Make a random generator for one purpose, so that noise and weights are independent."""
    digest = hashlib.sha256(f"{seed}/{purpose}".encode()).digest()
    generator = torch.Generator(device)
    generator.manual_seed(int.from_bytes(digest[:8]) >> 1)
    return generator


def build_step(
    config: TrainConfig,
    generator: Generator,
    discriminator: Discriminator,
    rows: StepRows,
    noise: str = "noise",
    ranks: Ranks = ALONE,
    label_table: torch.Tensor | None = None,
    update: type[AdversarialStep] = AdversarialStep,
) -> WholeStep:
    """Build the step from nets that are on their device.

    Args:
        config: the options, with `precision` and `seed` resolved.
        generator: the generator, on its device.
        discriminator: the discriminator, on the same device.
        rows: the table for the statistics.
        noise: the name of the random stream of noise, flips and augmentation.
        ranks: the processes that share each batch.
        label_table: the labels of the whole set, for conditional nets.
        update: what a step computes.
    """
    device = next(generator.parameters()).device
    set_matrix_format(config.precision, device)
    choose_kernels()
    ema = EMA(generator, config.batch_size, config.ema_nimg) if config.ema_nimg else None
    bf16 = config.precision == "bf16"
    images, (width, height) = ranks.share_of(config.batch_size), sides(config.image_size)
    return WholeStep(
        update(
            generator,
            discriminator,
            lr_d=config.lr_d or config.lr,
            lr_g=config.lr_g or config.lr,
            beta1=config.beta1,
            bf16=bf16,
            label_smoothing=config.label_smoothing,
            augmented=config.augment == "diff",
        ),
        (images, height, width, config.channels),
        config.nz,
        stream(config.seed, noise, device),
        rows,
        config.mirror,
        ema,
        label_table,
    )


def _plan(config: TrainConfig, batches: Batches, state: State | None) -> Plan:
    """Count epochs by the place of the batches, which need not follow from the steps done."""
    steps, ahead = batches.steps_per_epoch, 0
    if state is not None:
        ahead = batches.epoch * steps + batches.batch - state.steps
    return Plan(config.total_steps(steps, ahead), steps, config.batch_size, ahead)


def _noise(rank: int, rollbacks: int, since: int) -> str:
    """Name the random stream of a rank's noise, so that no noise comes twice in a run.

    `since` are the images seen when the run resumed with other random generators; 0 if it did not.
    """
    parts = f"/{rollbacks}" * (rollbacks > 0), f"/since {since}" * (since > 0)
    return "noise" + "".join(parts) + f"/rank {rank}" * (rank > 0)


def _open_batches(
    config: TrainConfig, device: torch.device, ranks: Ranks, log: Log, shards: ShardSet | None
) -> Batches:
    options = LoaderOptions(
        batch_size=ranks.share_of(config.batch_size),
        image_size=config.image_size,
        channels=config.channels,
        device=device,
        seed=config.seed,
        dtype=torch.uint8,
        workers=config.workers,
        cache=config.cache,
        data_timeout=config.data_timeout,
        rank=ranks.rank,
        num_ranks=ranks.count,
        local_ranks=ranks.local_ranks,
        access=access_of(config, ranks),
        labels=config.conditional,
        fit=config.fit,
    )
    return open_loader(shards or config.shards, options, _Refill(log))


def access_of(config: TrainConfig, ranks: Ranks) -> Access:
    """How this rank reaches the set: one process a machine fetches for all."""
    return replace(config.access, first=ranks.is_first_here)


def _labels_of(batches: Batches) -> RunLabels | None:
    """Return what the run keeps of the labels.

    Raises:
        UserError: their names are too long for `config.json`.
    """
    space, table = batches.label_space, batches.label_table
    if space is None or table is None:
        return None
    labels = describe_labels(space, table)
    size = len(json.dumps(labels.model_dump(mode="json"), indent=1))
    if size > MAX_OBJECT_BYTES // 2:
        raise UserError(
            "--conditional",
            f"{len(space.names):,} {space.kind}, whose names take {size / 1e6:.1f} MB",
            f"at most {MAX_OBJECT_BYTES / 2e6:.1f} MB, since config.json holds them",
            "pack the images with fewer labels, or shorter names",
        )
    return labels


class _Refill:
    """Logs how far the cache is filled: after a resume nearly the whole set is read again."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self._logged: float | None = None

    def __call__(self, done: int, total: int) -> None:
        now = time.monotonic()
        if self._logged is None:
            self._logged = now
        if now - self._logged >= REFILL_SECONDS:
            self._log(f"cache    {done:,} of {total:,} images read")
            self._logged = now
