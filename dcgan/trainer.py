"""The loop: batches in, updates done, everything worth keeping in the run folder."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import asdict
from datetime import timedelta
from typing import Any

import torch

from dcgan.config import TrainConfig
from dcgan.environment import describe_environment
from dcgan.log import Log
from dcgan.parts import Parts
from dcgan.records import Records
from dcgan.resume import STATE
from dcgan.run import write_object
from dcgan.signals import StopRequest
from dcgan.state_file import save_weights
from dcgan.stats import Clock, Lap, Spent, TickRows
from dcgan.watch import MAX_ROLLBACKS, RollBack, Watch


class Trainer:
    """A run, or what is left of one, and what is written about it.

    Args:
        config: as asked for.
        log: takes every line that the run says.
        began: when the command did, by `time.monotonic`.

    Raises:
        UserError: what is asked for cannot be done; nothing has been written then.
    """

    def __init__(self, config: TrainConfig, log: Log, began: float | None = None) -> None:
        self.log = log
        self.began = time.monotonic() if began is None else began
        self.parts = parts = Parts(config, log)
        self.config, self.device, self.run = parts.config, parts.device, parts.run
        self.plan, self.batches, self.step = parts.plan, parts.batches, parts.step
        self.clock = Clock(self.device)
        self.untold: deque[tuple[TickRows, Lap]] = deque()
        self.records = Records(self.run, self.plan)
        self.watch = Watch(self.config, self.run, self.records, log, parts.rollbacks)
        self.steps_done = self.steps_told = 0
        self.steps_saved = -1
        self.seconds, self.spent = 0.0, Spent()
        if parts.state is not None:
            self._restore(parts.state)
        self.saved_at = time.monotonic()
        self.between_steps = True

    def _restore(self, state: dict[str, Any]) -> None:
        self.steps_done = self.steps_saved = state["steps"]
        self.records.history = state["history"].numpy()
        self.steps_told = len(self.records.history)
        self.watch.load_state_dict(state["watch"])
        self.seconds, self.spent = state["seconds"], Spent(**state["spent"])

    @property
    def nimg(self) -> int:
        """Real images seen so far."""
        return self.plan.nimg(self.steps_done)

    @property
    def is_done(self) -> bool:
        """Whether there is no step left to do."""
        return self.steps_done >= self.plan.total_steps

    def run_until(self, stop: StopRequest) -> None:
        """Train until all steps are done or a stop is asked for; leave nets and curves behind.

        Raises:
            RollBack: the run is to go on from an earlier checkpoint.
            UserError: the data failed, or trouble came that the run is to end at.
        """
        self.started = time.perf_counter()
        self.run.make()
        with self.run.locked():
            self._introduce()
            self._run_until(stop)
        self._conclude(stop)

    def _run_until(self, stop: StopRequest) -> None:
        try:
            self._train(stop)
            self._go_back_if_asked()
        except RollBack:
            raise
        except BaseException as error:
            reason = str(error) or type(error).__name__
            try:
                self.log(f"Training broke off: {reason}\nWhat it has so far is in {self.run.path}")
            finally:
                self._keep()
            raise
        else:
            self._keep()
        finally:
            self.batches.close()
            self.watch.close()

    def _train(self, stop: StopRequest) -> None:
        config = self.config
        self.log("Starting training" if not self.steps_done else "Going on with training")
        self.clock.restart(self.spent)
        with self.log.progress(self.plan.total_steps, self.steps_done) as advance:
            while True:
                ending = self.is_done or bool(stop) or self._time_is_up()

                # Judge what G draws; who asks for a stop does not want to wait for that
                if self._is_due(config.evaluate_every, self.is_done):
                    self._judge()

                # Keep all that it takes to go on; before a last tick that is not full is told
                if ending or self._checkpoint_is_due():
                    self._checkpoint()

                # Say how it goes
                if ending or self.steps_done % config.log_every == 0:
                    self._tick(last=ending)

                # Show what the fixed noise has become
                if self._is_due(config.sample_every, ending):
                    self._sample()

                # Keep the nets of each epoch
                if self._is_due(self.plan.steps_per_epoch, config.dry_run):
                    self._save_epoch()

                if ending or self.watch.trouble:
                    return

                # One update of D, one of G
                with self.clock.waiting():
                    self.batches.fill(self.step.pixels)
                if self.steps_done == 0:
                    self._show_evidence()
                self.between_steps = False
                self.step.run()
                self.steps_done += 1
                self.between_steps = True
                advance()

    def _is_due(self, every: int | None, anyhow: bool) -> bool:
        return (
            self.steps_done > 0 and every is not None and (anyhow or self.steps_done % every == 0)
        )

    def _checkpoint_is_due(self) -> bool:
        minutes = (time.monotonic() - self.saved_at) / 60
        return self.steps_done > 0 and minutes >= self.config.checkpoint_every

    def _time_is_up(self) -> bool:
        limit = self.config.max_time
        return limit is not None and time.monotonic() - self.began >= 60 * limit

    def _introduce(self) -> None:
        """Say and record what this run is, and drop what was written of steps still to be done."""
        log, run = self.log, self.run
        # Before all else: without it, what a killed process leaves is nobody's run
        write_object(run.config, self.config.to_json())
        log.write_to(run.log)
        log(f"run      {run.path}")
        if self.parts.past is not None:
            log(f"resumed  after {self.steps_done:,} steps, {self.nimg:,} images")
        for line in self.parts.describe():
            log(line)
        run.forget_after(self.nimg)
        self.records.begin(self.nimg)
        write_object(run.environment, describe_environment(self.device))
        self.watch.begin(self.steps_told)
        # Before the first batch: a capture does not get on with DALI's work on the device
        taken = self.step.prepare(self.config.step, log)
        if taken != self.config.step:
            log(f"step     {taken}, since {self.config.step} cannot be had")

    def _conclude(self, stop: StopRequest) -> None:
        """Say how it ended, and where things are.

        Raises:
            UserError: it ended in trouble.
        """
        log, run = self.log, self.run
        total = timedelta(seconds=round(self.seconds + time.perf_counter() - self.started))
        end = "Training finished"
        if not self.is_done:
            end = "Time is up" if stop.signal is None else f"Stopped by {stop.signal.name}"
        if self.watch.trouble is not None:
            end = "Stopped at trouble"
        log(f"{end}: {self.steps_done:,} steps, {self.nimg:,} images, total time {total}")
        if self.steps_done:
            log(f"samples  {run.fakes(self.nimg)}")
            log(f"curves   {run.losses_png}")
        nets = [run.generator, run.discriminator]
        nets += [run.generator_average] if self.step.average is not None else []
        log("nets     " + ", ".join(map(str, nets)))
        if self.watch.trouble is not None:
            raise self.watch.trouble.as_error(run)
        if not self.is_done:
            log(f"saved; the same command with --run {run.path} goes on from here")

    def _show_evidence(self) -> None:
        """Save what D will see and what G begins with: a wrong colour is seen in ten seconds."""
        with self.clock.paused():
            self.watch.show_evidence(self.step.pixels, self.parts.generator)

    def _tick(self, last: bool) -> None:
        """Tell how the steps since the last tick went; on CUDA one tick late, so nobody waits."""
        steps = self.steps_done - self.steps_told
        if steps:
            lap = self.clock.lap()
            self.untold.append((self.step.rows.take(steps), lap))
            self.steps_told = self.steps_done
        self._tell(late=1 if self.device.type == "cuda" and not last else 0)

    def _tell(self, late: int) -> None:
        with self.clock.paused():
            while len(self.untold) > late:
                rows, lap = self.untold.popleft()
                numbers = rows.read()
                self.watch.tick(numbers, lap.pace(len(numbers), self.config.batch_size))

    def _sample(self) -> None:
        with self.clock.paused():
            self.watch.sample(self.parts.net_to_sample(), self.steps_done)

    def _judge(self) -> None:
        checkpoints = self.parts.checkpoints
        with self.clock.paused():
            if not self.step.is_finite():  # the next tick tells of it
                return
            net, best = self.parts.net_to_sample(), checkpoints.best()
            swd = self.watch.judge(net, self.steps_done)
        if swd is not None and (best is None or swd < best):
            self._checkpoint()
            with self.clock.paused():
                checkpoints.judged(self.nimg, swd)
                save_weights(net, self.run.generator_best)

    def _save_epoch(self) -> None:
        with self.clock.paused():
            save_weights(self.parts.generator, self.run.generator_at(self.nimg))
            save_weights(self.parts.discriminator, self.run.discriminator_at(self.nimg))

    def _checkpoint(self) -> None:
        """Save what going on takes, and the nets beside it."""
        if self.steps_saved == self.steps_done:
            return
        self._tell(late=0)
        spent = self.clock.so_far()
        with self.clock.paused():
            if not self.step.is_finite():
                self.log("no checkpoint: the nets hold NaN or infinity; the last one stays")
                self.watch.nets_not_finite(self.steps_done)
                return
            try:
                self.parts.checkpoints.save(self.nimg, self._state(spent))
            finally:
                self.parts.save_nets()
            self.steps_saved, self.saved_at = self.steps_done, time.monotonic()

    def _state(self, spent: Spent) -> dict[str, Any]:
        return {
            "version": STATE,
            "options": self.config.to_json(),
            "steps": self.steps_done,
            "rollbacks": self.parts.rollbacks,
            "seconds": self.seconds + time.perf_counter() - self.started,
            "spent": asdict(spent),
            "step": self.step.state_dict(),
            "batches": self.batches.state_dict(),
            "history": torch.from_numpy(self.records.history),
            "watch": self.watch.state_dict(),
        }

    def _keep(self) -> None:
        """Write what there is at the end, whichever end it is; the nets first, they cost most."""
        if self.between_steps:
            self._checkpoint()
        if not self.run.generator.exists() or not self.between_steps:
            self.parts.save_nets()
        self._tick(last=True)
        self.watch.finish()

    def _go_back_if_asked(self) -> None:
        """Have the run begin again where there was no trouble yet.

        Raises:
            RollBack: if that is asked for.
        """
        trouble, times = self.watch.trouble, self.parts.rollbacks + 1
        if trouble is not None and trouble.action == "rollback":
            self.parts.checkpoints.forget_after(self.plan.nimg(trouble.alarm.began - 1))
            raise RollBack(f"Going back, {times} of {MAX_ROLLBACKS} times: other random numbers")
