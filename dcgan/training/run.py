"""A run: its options, nets, data and step, and how it saves its nets."""

from __future__ import annotations

from collections.abc import Iterator
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
from dcgan.training.previous import Previous
from pipeline.loading.batches import Batches


@dataclass(frozen=True)
class Plan:
    """The length of a run; converts steps to images seen and to epochs."""

    total_steps: int
    steps_per_epoch: int
    batch_size: int
    ahead: int = 0
    """By how many steps the place in the epochs is ahead of the steps done. It is 0 until a run
    resumes with other batches: then an epoch breaks off, or the next ones have another length."""

    def nimg(self, steps: int) -> int:
        """Return the number of real images seen after `steps`."""
        return steps * self.batch_size

    def place(self, steps: int) -> tuple[int, int]:
        """Return the number of epochs completed after `steps`, and the steps done of the next."""
        return divmod(steps + self.ahead, self.steps_per_epoch)

    @property
    def epochs(self) -> int:
        """The number of epochs until the end, the last of which may be incomplete."""
        return -(-(self.total_steps + self.ahead) // self.steps_per_epoch)


@dataclass
class Run:
    """A run, as built before its first step or restored from its last checkpoint."""

    config: TrainConfig
    """The options, with every `auto` resolved."""
    folder: RunFolder
    ranks: Ranks
    device: torch.device
    """The device of this rank."""
    mode: Choice
    """How the step runs."""
    precision: Choice
    generator: Generator
    discriminator: Discriminator
    batches: Batches
    plan: Plan
    step: WholeStep
    checkpoints: Checkpoints
    previous: Previous | None
    """The run that the folder already held."""
    changed: bool
    """Whether its options differ from that run's."""

    @property
    def rollbacks(self) -> int:
        """How often the run was rolled back to a checkpoint."""
        return 0 if self.previous is None else self.previous.rollbacks

    def connect(self) -> None:
        """Check that all ranks have the same weights and images, and let them reduce gradients.

        Raises:
            UserError: a rank differs.
        """
        ranks = self.ranks
        if ranks.count == 1:
            return
        ranks.connect(self.device)
        seen = f"a folder that every machine can reach as {self.folder.path}"
        ranks.require_same("weights", self.step.digest, f"give --run {seen}")
        ranks.require_same("images", self._images, "give --shards the same set on every machine")
        nets = self.generator, self.discriminator
        self.step.update.reduce_gradients = GradientReduction(ranks, *nets)

    def _images(self) -> str:
        """Describe what the ranks' batches are drawn from, and their position."""
        state = self.batches.state_dict()
        return repr(state | {"identity": state["identity"] | {"rank": 0}})

    def net_to_sample(self) -> Generator:
        """Return the net to draw pictures with: the EMA, ready to draw, or else the generator."""
        ema = self.step.ema
        if ema is None:
            return self.generator
        ema.fit_batch_norm(self.config.nz, self.batches.label_table)
        assert isinstance(ema.net, Generator)
        return ema.net

    def save_nets(self) -> None:
        """Write the current nets as plain state dicts."""
        save_weights(self.generator, self.folder.generator)
        save_weights(self.discriminator, self.folder.discriminator)
        if self.step.ema is not None:
            save_weights(self.net_to_sample(), self.folder.generator_average)
        else:  # a file from before --ema-nimg was changed is out of date
            self.folder.generator_average.unlink(missing_ok=True)

    def save_epoch(self, nimg: int) -> None:
        """Write the nets at the end of an epoch."""
        save_weights(self.generator, self.folder.generator_at(nimg))
        save_weights(self.discriminator, self.folder.discriminator_at(nimg))

    def save_best(self, nimg: int, swd: float) -> None:
        """Write the net that draws pictures, and keep its checkpoint."""
        self.checkpoints.record_distance(nimg, swd)
        save_weights(self.net_to_sample(), self.folder.generator_best)

    def options(self) -> dict[str, Any]:
        """Return the content of `config.json`: all options, resolved, and the set's fingerprint."""
        return self.config.to_json() | {"shard_set": self.batches.identity["shard set"]}

    def describe(self, steps: int) -> Iterator[str]:
        """Describe the run for the log, after `steps` steps."""
        yield f"run      {self.folder.path}"
        if self.previous is not None:
            images = self.plan.nimg(steps)
            yield f"resumed  after {steps:,} step{'s'[: steps != 1]}, {images:,} images"
        yield f"seed     {self.config.seed}"
        options = self.options()
        del options["tuning"], options["labels"]
        given = (f"{name} {value}" for name, value in options.items() if value is not None)
        yield "options  " + ", ".join(given)
        if self.ranks.count > 1:
            images = self.batches.batch_size
            yield f"ranks    {self.ranks.count} processes, {images} images of each batch"
        yield f"loader   {self.batches.description}"
        if self.config.labels is not None:
            yield f"labels   {self.config.labels.describe()}"
        if self.previous is None:  # else the log has them already
            for net in (self.generator, self.discriminator):
                yield f"{net}, {count_parameters(net):,} parameters"
        choices = (self.mode, self.precision)
        yield "step     " + "; ".join(f"{choice.name}, {choice.reason}" for choice in choices)
