"""A run as its last process left it: its options, and its newest checkpoint."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

from dcgan.options import TrainConfig
from dcgan.rundir.environment import pick_device
from dcgan.rundir.folder import RunFolder, read_lines
from dcgan.step.train_step import Log
from dcgan.step.tuning import UNTUNED
from dcgan.training.checkpoint import Checkpoints
from dcgan.training.state import State, unfit
from pipeline.errors import UserError
from pipeline.loading.batches import Batches

AUTO = ("device", "precision", "step")
"""Options whose `auto` is resolved once, by the run's first process, and reused when it resumes."""

NETS = ("netG", "netD")
"""Options whose files are read before a run's first step, and are not needed after that."""

TUNED = ("tune", "precision", "step", "deterministic", "ranks")
"""Options after whose change a run that resumes chooses anew how its steps are computed."""


@dataclass
class Previous:
    """A run as its last process left it."""

    options: dict[str, Any]
    """Its options by name, as `config.json` has them."""
    path: Path
    """The newest checkpoint, or the folder of checkpoints if there is none."""
    state: State | None
    """What it holds until the trainer has restored it; None if the run has no checkpoint."""
    rollbacks: int

    @property
    def device_type(self) -> str:
        """The type of the device that it ran on."""
        return str(self.options.get("device")).partition(":")[0]

    @property
    def ranks(self) -> int:
        """The number of processes that wrote its checkpoint or, if it has none, began it."""
        return int(self.options.get("ranks", 1)) if self.state is None else self.state.ranks

    def has_other_generators(self, config: TrainConfig) -> bool:
        """Whether its random generators cannot go on: of other ranks, or of another device."""
        return (self.ranks, self.device_type) != (config.ranks, config.device.partition(":")[0])

    def resolve(self, config: TrainConfig) -> TrainConfig:
        """Fill in what each `auto` was resolved to, and the files of the initial weights.

        If the run's device no longer exists, `auto` chooses again.
        """
        kept = {name: self.options[name] for name in AUTO if name in self.options}
        resolved = {name: value for name, value in kept.items() if getattr(config, name) == "auto"}
        if "device" in resolved:
            try:
                pick_device(str(resolved["device"]))
            except UserError:
                del resolved["device"]
        for name in NETS:
            before, now = self.options.get(name), getattr(config, name)
            if isinstance(before, str) and (now is None or _same_place(now, before)):
                resolved[name] = before
        return config.replace(**resolved)

    def tuning(self, config: TrainConfig) -> dict[str, Any] | None:
        """Return how its steps are computed; None if that is to be chosen anew."""
        # Before the first step no result depends on the choice
        if self.state is None or self.state.steps == 0:
            return None
        if self.device_type != config.device.partition(":")[0]:
            return None
        before = self.options
        if any(before.get(name, getattr(config, name)) != getattr(config, name) for name in TUNED):
            return None
        # A version that knew of no choice computed as an untuned step does. A killed process may
        # have left none, while it chose anew.
        kept: dict[str, Any] | None = before.get("tuning", UNTUNED.model_dump(mode="json"))
        return kept

    def require_same(self, config: TrainConfig, log: Log) -> bool:
        """Compare the options, after `resolve`, with those that the run began with.

        Returns:
            Whether any differ.

        Raises:
            UserError: an option differs that may not.
        """
        self._require_ranks(config)
        other_ranks = self.ranks != config.ranks
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
        if other_ranks:
            now = _processes(config.ranks)
            log(f"changed  {now} (was {self.ranks}): {_of_other_ranks(config)}")
        return bool(differing) or other_ranks

    def require_labels(self, config: TrainConfig) -> None:
        """Compare the set's labels with those that the run began with.

        Raises:
            UserError: they have other names, or another order.
        """
        before, now = self.options.get("labels"), config.to_json()["labels"]
        if before is None or now is None:
            return
        names = zip_longest(before["names"], now["names"])
        place = next((place for place, (one, other) in enumerate(names) if one != other), 0)
        found, wanted = (_describe_label(labels, place) for labels in (now, before))
        if found != wanted:
            raise UserError(
                f"--shards {config.shards}",
                f"other labels: {found}",
                f"those that the run began with: {wanted}",
                "name the set that the run began with, or begin a new run with another --run",
            )

    def restore_batches(self, batches: Batches, config: TrainConfig, log: Log) -> bool:
        """Move the batches to the run's position; other batches, if allowed, begin a new epoch.

        Returns:
            Whether the batches differ from the run's.

        Raises:
            UserError: the batches differ and may not, or the position is not valid for them.
        """
        if self.state is None:
            return False
        position, changed = self.state.batches, self.ranks != config.ranks
        # The first rank saved its own position; the others have the same position in their shares.
        # Another number of ranks, and so of each one's images of a batch, was allowed before
        ours = ("rank", "ranks", "--batch-size") if changed else ("rank",)
        own = {name: batches.identity[name] for name in ours}
        saved = position.model_dump() | {"identity": position.identity | own}
        try:
            batches.load_state_dict(saved)
        except UserError as error:
            if not config.allow_change:
                raise UserError(
                    f"--run {self.path.parents[1]}",
                    f"a run whose last checkpoint is of {error.found}, and now it is"
                    f" {error.wanted}",
                    "the same images in the same order",
                    "give the checkpoint's values, and the present path of its set to --shards, or"
                    " give --allow-change to begin a new epoch with these",
                ) from None
            changed = True
            log(f"batches  {error.wanted} (was {error.found}): a new epoch begins")
        if changed:
            epoch = position.epoch + (position.batch > 0)
            batches.load_state_dict({"epoch": epoch, "batch": 0, "identity": batches.identity})
        if batches.batch >= batches.steps_per_epoch:  # the next epoch would never begin
            length = f"an epoch of {batches.steps_per_epoch:,}"
            raise unfit(f"batch {batches.batch:,} of {length}", self.path)
        return changed

    def _require_ranks(self, config: TrainConfig) -> None:
        before, now = self.ranks, config.ranks
        if before == now:
            return
        found = f"a run of {_processes(before)}, and now there {'is' if now == 1 else 'are'} {now}"
        if not config.allow_change:
            many = f"torchrun, {before!s:.20} processes in all"
            raise UserError(
                f"--run {config.run}",
                found,
                "the same number: each has its own share of the set, its own noise, and its own"
                " part of each batch for BatchNorm",
                f"resume with {'dcgan-train' if before == 1 else many}, or give --allow-change to"
                " begin a new epoch with other shares and other noise",
            )
        if config.batch_size % now:
            raise UserError(
                f"--run {config.run}",
                f"{found}, for batches of {config.batch_size}",
                "a number of processes that divides the run's batches evenly",
                f"start {_divisors(config.batch_size)} processes, or begin a new run",
            )


def _processes(count: int) -> str:
    return f"{count!s:.20} process{'es'[: 2 * (count != 1)]}"


def _divisors(batch_size: int) -> str:
    *most, last = [str(n) for n in range(1, batch_size + 1) if batch_size % n == 0]
    return f"{', '.join(most)} or {last}" if most else last


def _of_other_ranks(config: TrainConfig) -> str:
    """Describe what is no longer as it was, and what is."""
    images = config.batch_size // config.ranks
    return (
        "a new epoch begins, with other shares of the set; other noise is drawn; BatchNorm takes"
        f" {images} images at a time; the forms of the layers are chosen anew. Nets, optimisers,"
        " average, counters and history go on"
    )


def _describe_label(labels: dict[str, Any], place: int) -> str:
    names = labels["names"]
    name = f"number {place} is {names[place]}" if place < len(names) else f"no number {place}"
    return f"{len(names):,} {labels['kind']}, {name}"


def _same_place(one: str, other: str) -> bool:
    return Path(one).absolute() == Path(other).absolute()


def find(run: RunFolder, checkpoints: Checkpoints) -> Previous | None:
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
    return Previous(_read_options(run), path, state, rollbacks)


def _read_options(run: RunFolder) -> dict[str, Any]:
    """Read the options of a run, as far as its file names any of today's.

    Raises:
        UserError: a value that the option cannot have.
    """
    found = run.options()
    known = {name: found[name] for name in TrainConfig.model_fields if name in found}
    try:
        checked = TrainConfig(**{"shards": "synthetic"} | known).to_json()
    except UserError as error:
        raise UserError(
            f"{run.config}: {error.where}",
            error.found,
            error.wanted,
            "restore the file, or begin a new run with another --run",
        ) from None
    # Versions without these options computed as they are by default
    later = {name: checked[name] for name in ("tune", "augment", "fit", "conditional")}
    return later | {name: checked[name] for name in known}
