"""Going on with a run: what it was, which options may differ by now, and what it goes on from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dcgan.checkpoint import Checkpoints
from dcgan.config import TrainConfig
from dcgan.environment import pick_device
from dcgan.run import RunFolder, read_lines
from dcgan.saved import require_whole, require_within
from pipeline.batches import Batches
from pipeline.errors import UserError

STATE = 2
"""Version of what a checkpoint holds."""

AUTO = ("device", "precision", "step")
"""Resolved once, by the run's first process; a later one takes what stands in its options."""

NETS = ("netG", "netD")
"""Files that are read before a run's first step, and need not be there or be named after that."""


@dataclass(frozen=True)
class Past:
    """A run as its last process left it."""

    options: dict[str, Any]
    """As in `config.json`."""
    state: dict[str, Any] | None
    """Of the newest checkpoint; None if the run ended before its first one."""
    rollbacks: int
    """How often it went back to a checkpoint."""

    @property
    def device_type(self) -> str:
        """Of the device that it ran on."""
        return str(self.options.get("device")).partition(":")[0]

    def settled(self, config: TrainConfig) -> TrainConfig:
        """Put what each `auto` came to the first time, and where the first weights came from.

        A device that is gone is chosen anew.
        """
        kept = {name: self.options[name] for name in AUTO if name in self.options}
        asked = {name: value for name, value in kept.items() if getattr(config, name) == "auto"}
        if "device" in asked:
            try:
                pick_device(str(asked["device"]))
            except UserError:
                del asked["device"]
        for name in NETS:
            before, now = self.options.get(name), getattr(config, name)
            if isinstance(before, str) and (now is None or _same_place(now, before)):
                asked[name] = before
        return replace(config, **asked)

    def check(self, config: TrainConfig, say: Callable[[str], object]) -> None:
        """Compare the options, which must be settled, with those that the run began with.

        Raises:
            UserError: some differ that may not.
        """
        self._require_ranks(config)
        differing = config.differences(self.options)
        never = [told for name, told in differing.items() if name in TrainConfig.FIXED]
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
                f"a run with weights of its own, and {', '.join(differing[net] for net in nets)}",
                "first weights for a new run, or none",
                f"leave {flags} out to go on, or begin a new run with another --run",
            )
        if differing and not config.allow_change:
            raise UserError(
                f"--run {config.run}",
                f"a run that began with other options: {', '.join(differing.values())}",
                "the same options",
                "give the old values, or --allow-change to go on with the new ones",
            )
        for told in differing.values():
            say(f"changed  {told}")

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
            f"go on with {'dcgan-train' if before == 1 else many}, or begin a new run",
        )


def _same_place(one: str, other: str) -> bool:
    return Path(one).absolute() == Path(other).absolute()


def look_back(run: RunFolder, checkpoints: Checkpoints) -> Past | None:
    """What there is of a run in its folder; None if it has not begun.

    Raises:
        UserError: its checkpoints are gone or damaged, all of them.
    """
    if not run.config.exists():
        return None
    state = checkpoints.newest()
    if state is None and run.generator.exists():
        raise UserError(
            f"--run {run.path}",
            "a run with nets, but without checkpoints",
            "a run that can go on, or a new folder",
            f"choose another --run; --netG {run.generator} --netD {run.discriminator} begin there",
        )
    version = STATE if state is None else state.get("version")
    if type(version) is not int or version != STATE:  # what else it is may take for ever to print
        raise UserError(
            run.checkpoints,
            f"a checkpoint of version {version if type(version) is int else 'unknown'}",
            f"version {STATE}",
            "go on with the version of this package that wrote it, or begin a new run",
        )
    if state is not None:
        state = require_whole(state, run.checkpoints)
    rollbacks = sum(alarm.get("action") == "rollback" for alarm in read_lines(run.alarms))
    return Past(run.options(), state, rollbacks)


def go_on(
    batches: Batches,
    saved: dict[str, Any],
    anew: bool,
    say: Callable[[str], object],
    folder: Path,
) -> None:
    """Put the batches where a run was.

    Args:
        batches: of which none was taken.
        saved: their `state_dict`.
        anew: with batches that are other ones, begin the next epoch instead of refusing.
        say: told of that.
        folder: of the checkpoint, for the error.

    Raises:
        UserError: they are other batches than the run's, or it is no place of theirs.
    """
    # The first rank saved its own; the others are at the same place of other shares
    saved = saved | {"identity": saved["identity"] | {"rank": batches.identity["rank"]}}
    try:
        batches.load_state_dict(saved)
    except UserError as error:
        if not anew:
            raise UserError(
                f"--run {folder.parent}",
                f"a run whose last checkpoint is of {error.found}, and now it is {error.wanted}",
                "the same images in the same order",
                "give --shards the checkpoint's set, wherever it lies by now, or"
                " --allow-change to begin a new epoch with this one",
            ) from None
        say(f"changed  {error.wanted} (was {error.found}); a new epoch begins")
        batches.load_state_dict(
            {"epoch": saved["epoch"] + 1, "batch": 0, "identity": batches.identity}
        )
    require_within(batches, folder)
