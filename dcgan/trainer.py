"""The loop: batches in, updates done, everything worth keeping in the run folder."""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from typing import Any

import torch

from dcgan.building import build_nets, build_step
from dcgan.config import TrainConfig
from dcgan.environment import describe_environment, pick_device
from dcgan.generate import FIXED_SEEDS, generate, latents
from dcgan.log import Log
from dcgan.models import (
    count_parameters,
    save_weights,
)
from dcgan.pictures import save_grid, save_losses
from dcgan.precision import choose_precision
from dcgan.records import Plan, Records
from dcgan.run import RunFolder
from dcgan.signals import StopRequest
from dcgan.speed import choose_step, keep_compiled_code
from dcgan.stats import Clock, Lap, StepRows, TickRows
from pipeline.batches import default_workers
from pipeline.errors import UserError
from pipeline.files import write_whole
from pipeline.opening import open_loader


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
    keep_compiled_code()
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
        self.device = torch.device(config.device)
        self.precision = choose_precision(config.precision, self.device)
        self.mode = choose_step(config.step, self.device)
        config = replace(config, precision=self.precision.name, step=self.mode.name)
        self.config, self.log = config, log
        self.generator, self.discriminator = build_nets(config, self.device)
        self.fixed_noise = latents(FIXED_SEEDS, config.nz)
        self.batches = open_loader(
            config.shards,
            config.batch_size,
            config.image_size,
            config.channels,
            self.device,
            config.seed,
            config.workers,
            torch.uint8,
            cache=config.cache,
            data_timeout=config.data_timeout,
        )
        steps_per_epoch = self.batches.steps_per_epoch
        self.plan = Plan(config.total_steps(steps_per_epoch), steps_per_epoch, config.batch_size)
        self.steps_done = 0
        rows = StepRows(min(config.log_every, self.plan.total_steps), self.device)
        self.step = build_step(config, self.generator, self.discriminator, rows)
        self.clock = Clock(self.device)
        self.steps_told = 0
        self.untold: deque[tuple[TickRows, Lap]] = deque()
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
        config = self.config
        self.log("Starting training")
        self.clock.restart()
        with self.log.progress(self.plan.total_steps) as advance:
            while True:
                done = self.steps_done == self.plan.total_steps or bool(stop)

                # Say how it goes
                if done or self.steps_done % config.log_every == 0:
                    self._tick(last=done)

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
                    self.batches.fill(self.step.pixels)
                if self.steps_done == 0:
                    self._show_evidence()
                self.step.run()
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
        choices = (self.mode, self.precision)
        log("step     " + "; ".join(f"{choice.name}, {choice.reason}" for choice in choices))
        # Before the first batch: a capture does not get on with DALI's work on the device
        taken = self.step.prepare(self.mode.name, log)
        if taken != self.mode.name:
            log(f"step     {taken}, since {self.mode.name} cannot be had")

    def _show_evidence(self) -> None:
        """Save what D will see and what G begins with: a wrong colour is seen in ten seconds."""
        with self.clock.paused():
            save_grid(self.step.pixels[: len(FIXED_SEEDS)].cpu(), self.run.reals)
            save_grid(generate(self.generator, self.fixed_noise), self.run.fakes_init)

    def _tick(self, last: bool) -> None:
        """Tell how the steps since the last tick went; on CUDA one tick late, so nobody waits."""
        steps = self.steps_done - self.steps_told
        if steps:
            lap = self.clock.lap()
            self.untold.append((self.step.rows.take(steps), lap))
            self.steps_told = self.steps_done
        late = 1 if self.device.type == "cuda" and not last else 0
        with self.clock.paused():
            while len(self.untold) > late:
                rows, lap = self.untold.popleft()
                numbers = rows.read()
                pace = lap.pace(len(numbers), self.config.batch_size)
                self.log(self.records.add_tick(numbers, pace))

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
        if self.step.average is not None:
            save_weights(self.step.average.net, self.run.generator_average)
        self._tick(last=True)
        self._plot()

    def _plot(self) -> None:
        if len(self.records.history):
            save_losses(self.records.history[:, :2], self.run.losses_png)


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
