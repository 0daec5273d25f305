"""What a run works with, old or new: options resolved, data opened, nets and step built."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import torch

from dcgan.building import build_nets, build_step
from dcgan.checkpoint import Checkpoints
from dcgan.determinism import compute_alike
from dcgan.distributed import ALONE, Ranks
from dcgan.environment import own_device, pick_device
from dcgan.gradients import SharedGradients
from dcgan.models import Generator, count_parameters
from dcgan.options import TrainConfig
from dcgan.precision import choose_precision
from dcgan.records import Plan
from dcgan.resume import go_on, look_back
from dcgan.room import check_disk
from dcgan.run import RunFolder
from dcgan.saved import require_fitting
from dcgan.speed import choose_step
from dcgan.state_file import save_weights
from dcgan.stats import StepRows
from pipeline.batches import Batches, default_workers
from pipeline.opening import open_loader

REFILL_SECONDS = 2.0
"""Between two lines on how far the cache is filled."""


class Parts:
    """The parts of a run, as they are before its first step or at its last checkpoint.

    Args:
        config: as asked for.
        say: told of what is passed over or changed on the way.
        ranks: that train together.

    Attributes:
        config: with every `auto` resolved.
        past: what the run's last process left; None for a new run.
        rollbacks: how often the run went back to a checkpoint.

    Raises:
        UserError: what is asked for cannot be done; nothing has been written then.
    """

    def __init__(
        self, config: TrainConfig, say: Callable[[str], object], ranks: Ranks = ALONE
    ) -> None:
        self._say, self._ranks = say, ranks
        self.run = RunFolder.at(config.run)
        self.checkpoints = Checkpoints(self.run.checkpoints, config.keep, say)
        self.past = look_back(self.run, self.checkpoints)
        self.state = None if self.past is None else self.past.state
        self.rollbacks = 0 if self.past is None else self.past.rollbacks
        self.config = self._resolved(config)
        if self.past is not None:
            self.past.check(self.config, say)
        if self.config.deterministic:
            compute_alike(0 if self.state is None else self.state["threads"])
        first = self.config
        if self.state is not None:  # which has the weights: files of first ones may be gone
            first = first.replace(netG=None, netD=None)
        self.generator, self.discriminator = build_nets(first, self.device)
        self.batches = self._open()
        self.plan = Plan(
            self.config.total_steps(self.batches.steps_per_epoch),
            self.batches.steps_per_epoch,
            self.config.batch_size,
        )
        self.step = build_step(
            self.config, self.generator, self.discriminator, self._rows(), self.rollbacks, ranks
        )
        if ranks.is_first:
            check_disk(self.run.path, self.step, config.keep)
        if self.state is not None:
            self._restore(self.state)

    def _resolved(self, config: TrainConfig) -> TrainConfig:
        if self.past is not None:
            config = self.past.settled(config)
        picked = pick_device(config.device)
        self.device = own_device(picked, self._ranks)
        self.precision = choose_precision(config.precision, self.device)
        self.mode = choose_step(config.step, self.device)
        return config.replace(
            run=str(self.run.path),
            device=str(picked),
            workers=config.workers or default_workers(self.device),
            precision=self.precision.name,
            step=self.mode.name,
            ranks=self._ranks.count,
        )

    def _open(self) -> Batches:
        config = self.config
        return open_loader(
            config.shards,
            self._ranks.share_of(config.batch_size),
            config.image_size,
            config.channels,
            self.device,
            config.seed,
            config.workers,
            torch.uint8,
            cache=config.cache,
            data_timeout=config.data_timeout,
            progress=_Refill(self._say),
            rank=self._ranks.rank,
            num_ranks=self._ranks.count,
        )

    def _rows(self) -> StepRows:
        # A tick that an earlier process began may have had another length
        begun = 0 if self.state is None else self.state["step"]["rows"].shape[1]
        tick = min(self.config.log_every, self.plan.total_steps)
        return StepRows(begun + tick, self.device)

    def _restore(self, state: dict[str, Any]) -> None:
        assert self.past is not None
        folder, same_random = self.run.checkpoints, state["rollbacks"] == self.rollbacks
        ranks = self._ranks
        if self.past.device_type != self.device.type:  # whose random numbers are of another kind
            state["step"]["random"] = self.step.random.get_state().expand(ranks.count, -1)
            same_random = False
        saved = require_fitting(state["step"], self.step, ranks.count, folder)
        for name in ("random", "rows"):  # copies: `set_state` reads from the storage's beginning
            saved[name] = saved[name][ranks.rank].clone()
        self.step.load_state_dict(saved, same_random)
        go_on(self.batches, state["batches"], self.config.allow_change, self._say, folder)

    def get_ready(self) -> None:
        """Make the step ready to run, and see that all ranks begin alike.

        Raises:
            UserError: one does not.
        """
        if self._ranks.count > 1:
            self._meet()
        # Before the first batch: a capture does not get on with DALI's work on the device
        taken = self.step.prepare(self.mode.name, self._say, self._ranks.all)
        if taken != self.mode.name:
            self._say(f"step     {taken}, since {self.mode.name} cannot be had")

    def _meet(self) -> None:
        ranks, step = self._ranks, self.step
        ranks.connect(self.device)
        seen = f"a folder that every machine sees as {self.run.path}"
        ranks.require_same("weights", step.digest, f"give --run {seen}")
        ranks.require_same("images", self._images, "give --shards the same set on every machine")
        step.update.share = SharedGradients(ranks, self.generator, self.discriminator)

    def _images(self) -> str:
        """What the ranks' batches are drawn from, and where they are in it."""
        state = self.batches.state_dict()
        return repr(state | {"identity": state["identity"] | {"rank": 0}})

    def of_each_rank(self) -> dict[str, torch.Tensor]:
        """What of the step's state differs between ranks: random numbers and rows, stacked.

        Raises:
            UserError: their weights differ, which must not be.
        """
        again = "give the same command with the same --run, to go on from the last checkpoint;"
        again += " if it comes again, suspect that rank's memory or device"
        self._ranks.require_same("weights", self.step.digest, again)
        own = {"random": self.step.random.get_state(), "rows": self.step.rows.untaken()}
        return {name: self._ranks.gather(tensor) for name, tensor in own.items()}

    def net_to_sample(self) -> Generator:
        """What pictures are drawn with, made ready for it: the moving average, if there is one."""
        average = self.step.average
        if average is None:
            return self.generator
        average.settle(self.config.nz)
        assert isinstance(average.net, Generator)
        return average.net

    def options(self) -> dict[str, Any]:
        """What `config.json` says: all options as resolved, and the set that `shards` led to."""
        return self.config.to_json() | {"shard_set": self.batches.identity["shard set"]}

    def describe(self, steps: int) -> Iterator[str]:
        """Lines for people, after so many steps."""
        yield f"run      {self.run.path}"
        if self.past is not None:
            yield f"resumed  after {steps:,} steps, {self.plan.nimg(steps):,} images"
        yield f"seed     {self.config.seed}"
        yield "options  " + ", ".join(f"{name} {value}" for name, value in self.options().items())
        if self._ranks.count > 1:
            images = self.batches.batch_size
            yield f"ranks    {self._ranks.count} processes, {images} images of each batch"
        yield f"loader   {self.batches.description}"
        if self.past is None:  # else they stand further up in the log
            for net in (self.generator, self.discriminator):
                yield f"{net}, {count_parameters(net):,} parameters"
        choices = (self.mode, self.precision)
        yield "step     " + "; ".join(f"{choice.name}, {choice.reason}" for choice in choices)

    def save_epoch(self, nimg: int) -> None:
        """Write the nets as they are after an epoch."""
        save_weights(self.generator, self.run.generator_at(nimg))
        save_weights(self.discriminator, self.run.discriminator_at(nimg))

    def save_best(self, nimg: int, swd: float) -> None:
        """Write the net that pictures are drawn with, and have its checkpoint stay."""
        self.checkpoints.judged(nimg, swd)
        save_weights(self.net_to_sample(), self.run.generator_best)

    def save_nets(self) -> None:
        """Write the nets as they are, as plain state dicts."""
        save_weights(self.generator, self.run.generator)
        save_weights(self.discriminator, self.run.discriminator)
        if self.step.average is not None:
            save_weights(self.net_to_sample(), self.run.generator_average)
        else:  # one from before a change of --ema-nimg is not this run's net any more
            self.run.generator_average.unlink(missing_ok=True)


class _Refill:
    """Says now and then how far the cache is: nearly all of it is read anew after a resume."""

    def __init__(self, say: Callable[[str], object]) -> None:
        self._say = say
        self._told: float | None = None

    def __call__(self, done: int, total: int) -> None:
        now = time.monotonic()
        if self._told is None:
            self._told = now
        if now - self._told >= REFILL_SECONDS:
            self._say(f"cache    {done:,} of {total:,} images read")
            self._told = now
