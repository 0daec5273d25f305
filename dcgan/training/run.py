"""A run: what it works with, and what it leaves in its folder."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from dcgan.distributed import GradientReduction, Ranks
from dcgan.nets.models import Discriminator, Generator, count_parameters
from dcgan.nets.weights import save_weights
from dcgan.options import TrainConfig
from dcgan.rundir.folder import RunFolder
from dcgan.step.precision import Choice
from dcgan.step.train_step import WholeStep
from dcgan.training.checkpoint import Checkpoints
from dcgan.training.state import State, StepState
from dcgan.training.stats import Plan
from pipeline.loading.batches import Batches

Log = Callable[[str], object]


@dataclass
class Run:
    """What a run works with, before its first step or at its last checkpoint."""

    config: TrainConfig
    """With every `auto` resolved."""
    folder: RunFolder
    ranks: Ranks
    device: torch.device
    """Of this rank."""
    mode: Choice
    """How the step runs."""
    precision: Choice
    generator: Generator
    discriminator: Discriminator
    batches: Batches
    plan: Plan
    step: WholeStep
    checkpoints: Checkpoints
    resumed: bool
    """Whether the folder holds a run already."""
    changed: bool
    """Whether its options or images are other ones than those of its last checkpoint."""
    state: State | None
    """The checkpoint that it continues from."""
    rollbacks: int
    """How often the run went back to a checkpoint."""

    def prepare(self, log: Log) -> None:
        """Make the step ready to run, and see that all ranks begin alike.

        Raises:
            UserError: one does not.
        """
        if self.ranks.count > 1:
            self._connect()
        # Before the first batch: a capture does not get on with DALI's work on the device
        taken = self.step.prepare(self.mode.name, log, self.ranks.all)
        if taken != self.mode.name:
            log(f"step     {taken}, since {self.mode.name} cannot be had")

    def _connect(self) -> None:
        ranks = self.ranks
        ranks.connect(self.device)
        seen = f"a folder that every machine sees as {self.folder.path}"
        ranks.require_same("weights", self.step.digest, f"give --run {seen}")
        ranks.require_same("images", self._images, "give --shards the same set on every machine")
        nets = self.generator, self.discriminator
        self.step.update.reduce_gradients = GradientReduction(ranks, *nets)

    def _images(self) -> str:
        """What the ranks' batches are drawn from, and where they are in it."""
        state = self.batches.state_dict()
        return repr(state | {"identity": state["identity"] | {"rank": 0}})

    def step_state(self) -> StepState:
        """The step's state, with what differs between ranks gathered from all of them.

        Raises:
            UserError: their weights differ, which must not be.
        """
        again = "give the same command with the same --run, to go on from the last checkpoint;"
        again += " if it comes again, suspect that rank's memory or device"
        self.ranks.require_same("weights", self.step.digest, again)
        own = self.step.state_dict()
        gathered = {name: self.ranks.gather(own[name]) for name in ("random", "rows")}
        return StepState(**(own | gathered))

    def net_to_sample(self) -> Generator:
        """What pictures are drawn with, made ready for it: the moving average, if there is one."""
        ema = self.step.ema
        if ema is None:
            return self.generator
        ema.settle(self.config.nz)
        assert isinstance(ema.net, Generator)
        return ema.net

    def save_nets(self) -> None:
        """Write the nets as they are, as plain state dicts."""
        save_weights(self.generator, self.folder.generator)
        save_weights(self.discriminator, self.folder.discriminator)
        if self.step.ema is not None:
            save_weights(self.net_to_sample(), self.folder.generator_average)
        else:  # one from before a change of --ema-nimg is not this run's net any more
            self.folder.generator_average.unlink(missing_ok=True)

    def save_epoch(self, nimg: int) -> None:
        """Write the nets as they are after an epoch."""
        save_weights(self.generator, self.folder.generator_at(nimg))
        save_weights(self.discriminator, self.folder.discriminator_at(nimg))

    def save_best(self, nimg: int, swd: float) -> None:
        """Write the net that pictures are drawn with, and have its checkpoint stay."""
        self.checkpoints.judged(nimg, swd)
        save_weights(self.net_to_sample(), self.folder.generator_best)

    def options(self) -> dict[str, Any]:
        """What `config.json` says: all options as resolved, and the set that `shards` led to."""
        return self.config.to_json() | {"shard_set": self.batches.identity["shard set"]}

    def describe(self, steps: int) -> Iterator[str]:
        """Lines for people, after so many steps."""
        yield f"run      {self.folder.path}"
        if self.resumed:
            yield f"resumed  after {steps:,} steps, {self.plan.nimg(steps):,} images"
        yield f"seed     {self.config.seed}"
        yield "options  " + ", ".join(f"{name} {value}" for name, value in self.options().items())
        if self.ranks.count > 1:
            images = self.batches.batch_size
            yield f"ranks    {self.ranks.count} processes, {images} images of each batch"
        yield f"loader   {self.batches.description}"
        if not self.resumed:  # else they stand further up in the log
            for net in (self.generator, self.discriminator):
                yield f"{net}, {count_parameters(net):,} parameters"
        choices = (self.mode, self.precision)
        yield "step     " + "; ".join(f"{choice.name}, {choice.reason}" for choice in choices)
