"""The loop: batches in, updates done, everything worth keeping in the run folder."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from itertools import chain
from typing import Any

import torch

from dcgan.config import TrainConfig
from dcgan.environment import describe_environment, pick_device
from dcgan.log import Log
from dcgan.models import (
    Discriminator,
    Generator,
    count_parameters,
    init_weights,
    load_weights,
    save_weights,
)
from dcgan.pictures import save_grid, save_losses
from dcgan.records import Plan, Records
from dcgan.run import RunFolder
from dcgan.sample import FIXED_SEEDS, generate, latents
from dcgan.signals import StopRequest
from dcgan.stats import Clock, StepRows
from dcgan.step import AdversarialStep
from pipeline.batches import default_workers
from pipeline.errors import UserError
from pipeline.files import write_whole
from pipeline.opening import open_loader
from pipeline.pixels import to_uint8


def train(config: TrainConfig) -> int:
    """Train as `config` says, from the first weights to the last picture.

    Returns:
        The exit status: 0, or 128 + the signal that asked the run to stop.

    Raises:
        UserError: options, data or a machine that the run cannot work with.
    """
    device = pick_device(config.device)
    workers = config.workers or default_workers()
    config = replace(config, device=str(device), workers=workers)
    log = Log()
    try:
        with StopRequest() as stop, _shortage_named(config):
            Trainer(config, log).run_until(stop)
    finally:
        log.close()
    return 128 + stop.signal if stop.signal is not None else 0


class Trainer:
    """A run: data, nets and step, and what is written about them.

    Args:
        config: with `device` and `workers` resolved.
        log: takes every line that the run says.

    Raises:
        UserError: what is asked for cannot be done; nothing has been written then.
    """

    def __init__(self, config: TrainConfig, log: Log) -> None:
        self.config, self.log = config, log
        self.device = torch.device(config.device)
        self.generator, self.discriminator = build_nets(config, self.device)
        self.step = AdversarialStep(self.generator, self.discriminator, config.lr, config.beta1)
        self.noise = _stream(config.seed, "noise", self.device)
        self.fixed_noise = latents(FIXED_SEEDS, config.nz)
        self.batches = open_loader(
            config.shards,
            config.batch_size,
            config.image_size,
            config.channels,
            self.device,
            config.seed,
            config.workers,
            cache=config.cache,
            data_timeout=config.data_timeout,
        )
        steps_per_epoch = self.batches.steps_per_epoch
        self.plan = Plan(config.total_steps(steps_per_epoch), steps_per_epoch, config.batch_size)
        self.steps_done = 0
        self.rows = StepRows(min(config.log_every, self.plan.total_steps), self.device)
        self.clock = Clock(self.device)
        self.run = RunFolder.create(config.run)
        self.records = Records(self.run, self.plan)

    @property
    def nimg(self) -> int:
        """Real images seen so far."""
        return self.plan.nimg(self.steps_done)

    def run_until(self, stop: StopRequest) -> None:
        """Train until all steps are done or a stop is asked for; leave nets and curves behind."""
        started = time.perf_counter()
        self._introduce()
        try:
            self._train(stop)
        except BaseException as error:
            reason = str(error) or type(error).__name__
            self.log(f"Training broke off: {reason}\nWhat it has so far is in {self.run.path}")
            raise
        finally:
            self._keep()
            self.batches.close()
        total = timedelta(seconds=round(time.perf_counter() - started))
        end = "Training finished" if stop.signal is None else f"Stopped by {stop.signal.name}"
        self.log(f"{end}: {self.steps_done:,} steps, {self.nimg:,} images, total time {total}")
        if self.steps_done:
            self.log(f"samples  {self.run.fakes(self.nimg)}")
            self.log(f"curves   {self.run.losses_png}")
        self.log(f"nets     {self.run.generator}, {self.run.discriminator}")

    def _train(self, stop: StopRequest) -> None:
        first = next(self.batches)
        self._show_evidence(first)
        batches = chain([first], self.batches)
        config = self.config
        self.log("Starting training")
        self.clock.restart()
        with self.log.progress(self.plan.total_steps) as advance:
            while True:
                done = self.steps_done == self.plan.total_steps or bool(stop)

                # Say how it goes
                if done or self.steps_done % config.log_every == 0:
                    self._tick()

                # Show what the fixed noise has become
                if self.steps_done and (done or self.steps_done % config.sample_every == 0):
                    self._sample()

                # Keep the nets of each epoch
                epoch_ended = self.steps_done % self.plan.steps_per_epoch == 0 or config.dry_run
                if self.steps_done and epoch_ended:
                    self._save_epoch()

                if done:
                    return

                # One update of D, one of G
                with self.clock.waiting():
                    real = next(batches)  # (B, C, S, S) in [-1, 1], channels_last
                self.rows.append(self.step(real, self._draw_noise()))
                self.clock.step_ended()
                self.steps_done += 1
                advance()

    def _introduce(self) -> None:
        """Say and record what this run is."""
        config, log = self.config, self.log
        options = config.to_json()
        log.write_to(self.run.log)
        log(f"run      {self.run.path}")
        log(f"seed     {config.seed}")
        log("options  " + ", ".join(f"{name} {value}" for name, value in options.items()))
        log(f"loader   {self.batches.description}")
        for net in (self.generator, self.discriminator):
            log(f"{net}, {count_parameters(net):,} parameters")
        write_whole(self.run.config, _json_bytes(options))
        write_whole(self.run.environment, _json_bytes(describe_environment(self.device)))

    def _show_evidence(self, real: torch.Tensor) -> None:
        """Save what D will see and what G begins with: a wrong colour is seen in ten seconds."""
        save_grid(to_uint8(real[: len(FIXED_SEEDS)]).cpu(), self.run.reals)
        save_grid(generate(self.generator, self.fixed_noise), self.run.fakes_init)

    def _draw_noise(self) -> torch.Tensor:
        shape = (self.config.batch_size, self.config.nz, 1, 1)
        return torch.randn(shape, generator=self.noise, device=self.device)

    def _tick(self) -> None:
        if self.rows.count:
            rows = self.rows.take()
            pace = self.clock.read(len(rows), self.config.batch_size)
            self.log(self.records.add_tick(rows, pace))
            self.clock.restart()

    def _sample(self) -> None:
        with self.clock.paused():
            save_grid(generate(self.generator, self.fixed_noise), self.run.fakes(self.nimg))
            self._plot()

    def _save_epoch(self) -> None:
        with self.clock.paused():
            save_weights(self.generator, self.run.generator_at(self.nimg))
            save_weights(self.discriminator, self.run.discriminator_at(self.nimg))

    def _keep(self) -> None:
        """Write what there is at the end, whichever end it is; the nets first, they cost most."""
        save_weights(self.generator, self.run.generator)
        save_weights(self.discriminator, self.run.discriminator)
        self._tick()
        self._plot()

    def _plot(self) -> None:
        if len(self.records.history):
            save_losses(self.records.history[:, :2], self.run.losses_png)


def build_nets(config: TrainConfig, device: torch.device) -> tuple[Generator, Discriminator]:
    """Both nets on their device, in channels_last, with their first weights."""
    generator = Generator(config.image_size, config.nz, config.ngf, config.channels)
    discriminator = Discriminator(config.image_size, config.ndf, config.channels)
    weights = _stream(config.seed, "weights", torch.device("cpu"))
    init_weights(generator, weights)
    init_weights(discriminator, weights)
    if config.netG is not None:
        load_weights(generator, config.netG, "--netG")
    if config.netD is not None:
        load_weights(discriminator, config.netD, "--netD")
    for net in (generator, discriminator):
        net.to(device).to(memory_format=torch.channels_last)
    return generator, discriminator


def _stream(seed: int, purpose: str, device: torch.device) -> torch.Generator:
    """A random stream of its own for each purpose, so that the noise is not the weights again."""
    digest = hashlib.sha256(f"{seed}/{purpose}".encode()).digest()
    generator = torch.Generator(device)
    generator.manual_seed(int.from_bytes(digest[:8]) >> 1)
    return generator


def _json_bytes(values: dict[str, Any]) -> bytes:
    return json.dumps(values, indent=1).encode() + b"\n"


_SHORTAGES = ("out of memory", "can't allocate memory", "Storage size calculation overflowed")
"""How torch says so where it raises a bare `RuntimeError`, as on the CPU."""


@contextmanager
def _shortage_named(config: TrainConfig) -> Iterator[None]:
    """Tell a lack of memory in terms of the options that use it."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        text = str(error) or type(error).__name__
        known = isinstance(error, MemoryError | torch.OutOfMemoryError)
        if not known and not any(sign in text for sign in _SHORTAGES):
            raise
        raise UserError(
            f"--batch-size {config.batch_size}",
            f"not enough memory on {config.device} ({text.splitlines()[0][:160]})",
            "a step that fits",
            f"try --batch-size {max(1, config.batch_size // 2)}, or smaller --ngf and --ndf",
        ) from error
