"""From options to a `Run`: a new one, or one that resumes from its newest checkpoint.

The order is part of the meaning: determinism before any work on a GPU, weights before optimisers
are captured, the state before the step is prepared.
"""

from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dcgan.distributed import ALONE, Ranks
from dcgan.nets.models import Discriminator, Generator, init_weights
from dcgan.nets.weights import load_weights
from dcgan.options import TrainConfig
from dcgan.rundir.environment import own_device, pick_device
from dcgan.rundir.folder import RunFolder, read_lines
from dcgan.step.adversarial import AdversarialStep
from dcgan.step.determinism import set_determinism
from dcgan.step.ema import EMA
from dcgan.step.precision import Choice, choose_kernels, choose_precision, set_matrix_format
from dcgan.step.statistics import StepRows
from dcgan.step.train_step import WholeStep, choose_step
from dcgan.training.capacity import check_disk
from dcgan.training.checkpoint import Checkpoints
from dcgan.training.run import Log, Run
from dcgan.training.state import Position, State, unfit
from dcgan.training.stats import Plan
from pipeline.errors import UserError
from pipeline.loading.batches import Batches
from pipeline.loading.open import open_loader
from pipeline.loading.options import LoaderOptions, default_workers

REFILL_SECONDS = 2.0
"""Seconds between two log lines about the filling of the cache."""

AUTO = ("device", "precision", "step")
"""Options whose `auto` is resolved once, by the run's first process, and reused when it resumes."""

NETS = ("netG", "netD")
"""Options whose files are read before a run's first step, and are not needed after that."""


def build(config: TrainConfig, log: Log, ranks: Ranks = ALONE) -> Run:
    """Build a run, without writing anything.

    Args:
        config: the options as given.
        log: called with a line about whatever is ignored or changed.
        ranks: the processes that train together.

    Raises:
        UserError: no run can be built from these options.
    """
    # What the folder already holds
    folder = RunFolder.at(config.run)
    checkpoints = Checkpoints(folder.checkpoints, config.keep, log)
    previous = _find(folder, checkpoints)
    state = None if previous is None else previous.state
    rollbacks = 0 if previous is None else previous.rollbacks

    # The options, with every `auto` resolved
    config, device, mode, precision = _resolve(config, previous, folder, ranks)
    changed = previous is not None and previous.require_same(config, log)
    if config.deterministic:
        set_determinism(0 if state is None else state.threads)

    # Nets, data, step
    first = config
    if state is not None:  # it has the weights; the files of the initial ones may be gone
        first = config.replace(netG=None, netD=None)
    generator, discriminator = build_nets(first, device)
    batches = _open_batches(config, device, ranks, log)
    steps = batches.steps_per_epoch
    plan = Plan(config.total_steps(steps), steps, config.batch_size)
    # A tick that an earlier process began may have another length
    begun = 0 if state is None else state.step.rows.shape[1]
    rows = StepRows(begun + min(config.log_every, plan.total_steps), device)
    step = build_step(config, generator, discriminator, rows, rollbacks, ranks)
    if ranks.is_first:
        check_disk(folder.path, step, config.keep)

    # The state of the checkpoint
    if previous is not None and state is not None:
        _restore_step(step, state, previous, ranks)
        changed |= _restore_batches(batches, state.batches, previous, config.allow_change, log)
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
        previous is not None,
        changed,
        state,
        rollbacks,
    )


def _resolve(
    config: TrainConfig, previous: _Previous | None, folder: RunFolder, ranks: Ranks
) -> tuple[TrainConfig, torch.device, Choice, Choice]:
    """Replace every `auto`: by the value of the run that resumes, or by what suits this machine."""
    config = config if previous is None else previous.settle(config)
    picked = pick_device(config.device)
    device = own_device(picked, ranks)
    precision, mode = choose_precision(config.precision, device), choose_step(config.step, device)
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
    generator = Generator(config.image_size, config.nz, config.ngf, config.channels)
    discriminator = Discriminator(config.image_size, config.ndf, config.channels)
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
    rollbacks: int = 0,
    ranks: Ranks = ALONE,
) -> WholeStep:
    """Build the step from nets that are on their device.

    Args:
        config: the options, with `precision` and `seed` resolved.
        generator: the generator, on its device.
        discriminator: the discriminator, on the same device.
        rows: the table for the statistics.
        rollbacks: how often the run was rolled back; each time it draws other random numbers.
        ranks: the processes that share each batch; each draws its own random numbers.
    """
    device = next(generator.parameters()).device
    set_matrix_format(config.precision, device)
    choose_kernels()
    ema = EMA(generator, config.batch_size, config.ema_nimg) if config.ema_nimg else None
    bf16 = config.precision == "bf16"
    images = ranks.share_of(config.batch_size)
    return WholeStep(
        AdversarialStep(
            generator,
            discriminator,
            config.lr_d or config.lr,
            config.lr_g or config.lr,
            config.beta1,
            bf16,
            config.label_smoothing,
        ),
        (images, config.image_size, config.image_size, config.channels),
        config.nz,
        stream(config.seed, _noise(rollbacks, ranks.rank), device),
        rows,
        config.mirror,
        ema,
    )


def _noise(rollbacks: int, rank: int) -> str:
    """Name the random stream of a rank's noise, after a number of rollbacks."""
    attempt = f"noise/{rollbacks}" if rollbacks else "noise"
    return f"{attempt}/rank {rank}" if rank else attempt


def _open_batches(config: TrainConfig, device: torch.device, ranks: Ranks, log: Log) -> Batches:
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
    )
    return open_loader(config.shards, options, _Refill(log))


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


def _restore_step(step: WholeStep, state: State, previous: _Previous, ranks: Ranks) -> None:
    same_random = state.rollbacks == previous.rollbacks
    if previous.device_type != step.random.device.type:  # its generators have another state
        state.step.random = step.random.get_state().expand(ranks.count, -1)
        same_random = False
    state.require_fit(step, ranks.count, previous.path)
    # Copies, because `set_state` reads from the beginning of the storage
    own = {name: getattr(state.step, name)[ranks.rank].clone() for name in ("random", "rows")}
    step.load_state_dict(dict(state.step) | own, same_random)


def _restore_batches(
    batches: Batches, position: Position, previous: _Previous, allow_change: bool, log: Log
) -> bool:
    """Move the batches to the run's position; different batches, if allowed, begin a new epoch.

    Returns:
        Whether the batches differ from the run's.

    Raises:
        UserError: the batches differ and may not, or the position is not valid for them.
    """
    saved, changed = position.model_dump(), False
    # The first rank saved its own position; the others have the same position in their shares
    saved["identity"] |= {"rank": batches.identity["rank"]}
    try:
        batches.load_state_dict(saved)
    except UserError as error:
        if not allow_change:
            raise UserError(
                f"--run {previous.path.parents[1]}",
                f"a run whose last checkpoint is of {error.found}, and now it is {error.wanted}",
                "the same images in the same order",
                "give the checkpoint's values, and the present path of its set to --shards, or"
                " give --allow-change to begin a new epoch with these",
            ) from None
        changed = True
        log(f"changed  {error.wanted} (was {error.found}); a new epoch begins")
        batches.load_state_dict(
            {"epoch": position.epoch + 1, "batch": 0, "identity": batches.identity}
        )
    if batches.batch >= batches.steps_per_epoch:  # the next epoch would never begin
        epoch = f"an epoch of {batches.steps_per_epoch:,}"
        raise unfit(f"batch {batches.batch:,} of {epoch}", previous.path)
    return changed


@dataclass(frozen=True)
class _Previous:
    """A run as its last process left it."""

    config: Path
    """The file with its options."""
    options: dict[str, Any]
    path: Path
    """The newest checkpoint, or the folder of checkpoints if there is none."""
    state: State | None
    """The state in that checkpoint; None if the run ended before its first one."""
    rollbacks: int

    @property
    def device_type(self) -> str:
        """The type of the device that it ran on."""
        return str(self.options.get("device")).partition(":")[0]

    def settle(self, config: TrainConfig) -> TrainConfig:
        """Fill in what each `auto` was resolved to, and the files of the initial weights.

        If the run's device no longer exists, `auto` chooses again.

        Raises:
            UserError: a value in the run's options is invalid.
        """
        kept = {name: self.options[name] for name in AUTO if name in self.options}
        settled = {name: value for name, value in kept.items() if getattr(config, name) == "auto"}
        if "device" in settled:
            try:
                pick_device(str(settled["device"]))
            except UserError:
                del settled["device"]
        for name in NETS:
            before, now = self.options.get(name), getattr(config, name)
            if isinstance(before, str) and (now is None or _same_place(now, before)):
                settled[name] = before
        try:
            return config.replace(**settled)
        except UserError as error:
            raise UserError(
                f"{self.config}: {error.where}",
                error.found,
                error.wanted,
                "restore the file, or begin a new run with another --run",
            ) from None

    def require_same(self, config: TrainConfig, log: Log) -> bool:
        """Compare the options, after `settle`, with those that the run began with.

        Returns:
            Whether any differ.

        Raises:
            UserError: an option differs that may not.
        """
        self._require_ranks(config)
        differing = config.differences(self.options)
        never = [each for name, each in differing.items() if config.on_resume(name) == "fixed"]
        if never:
            raise UserError(
                f"--run {config.run}",
                f"a run that began with other options: {', '.join(never)}",
                "the same nets and batches as in its checkpoints",
                "give the old values, or begin a new run with another --run",
            )
        if self.state is not None and (nets := [name for name in NETS if name in differing]):
            flags = " and ".join(f"--{name}" for name in nets)
            raise UserError(
                f"--run {config.run}",
                f"a run with trained weights, and {', '.join(differing[net] for net in nets)}",
                "files of initial weights for a new run only",
                f"leave {flags} out to resume, or begin a new run with another --run",
            )
        if differing and not config.allow_change:
            raise UserError(
                f"--run {config.run}",
                f"a run that began with other options: {', '.join(differing.values())}",
                "the same options",
                "give the old values, or --allow-change to resume with the new ones",
            )
        for each in differing.values():
            log(f"changed  {each}")
        return bool(differing)

    def _require_ranks(self, config: TrainConfig) -> None:
        before = self.options.get("ranks", 1)
        if before == config.ranks:
            return
        many = f"torchrun, {before!s:.20} processes in all"
        raise UserError(
            f"--run {config.run}",
            f"a run of {before!s:.20} processes, and now there are {config.ranks}",
            "the same number: each has its own share of the set, its own noise, and its own part"
            " of each batch for BatchNorm",
            f"resume with {'dcgan-train' if before == 1 else many}, or begin a new run",
        )


def _same_place(one: str, other: str) -> bool:
    return Path(one).absolute() == Path(other).absolute()


def _find(run: RunFolder, checkpoints: Checkpoints) -> _Previous | None:
    """Read the run that a folder holds; None if it has not begun.

    Raises:
        UserError: all its checkpoints are gone or damaged.
    """
    if not run.config.exists():
        return None
    found = checkpoints.newest()
    if found is None and run.generator.exists():
        raise UserError(
            f"--run {run.path}",
            "a run with nets, but without checkpoints",
            "a run that can be resumed, or a new folder",
            "choose another --run; to begin it with these nets, add"
            f" --netG {run.generator} --netD {run.discriminator}",
        )
    path, saved = found or (checkpoints.folder, None)
    state = None if saved is None else State.read(saved, path)
    rollbacks = sum(alarm.get("action") == "rollback" for alarm in read_lines(run.alarms))
    return _Previous(run.config, run.options(), path, state, rollbacks)
