"""The loop: batches in, updates done, everything worth keeping in the run folder.

All ranks go through it in step. What only the first one does, it does in `Ranks.first`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict
from functools import partial
from typing import Any

import torch

from dcgan.distributed import ALONE, Ranks
from dcgan.environment import describe_environment
from dcgan.log import Log
from dcgan.options import TrainConfig
from dcgan.parts import Parts
from dcgan.records import Records
from dcgan.resume import STATE
from dcgan.run import write_object
from dcgan.signals import StopRequest
from dcgan.stats import Spent
from dcgan.ticks import Ticks
from dcgan.watch import MAX_ROLLBACKS, RollBack, TroubleError, Watch


class Trainer:
    """A run, or what is left of one, and what is written about it.

    Args:
        config: as asked for.
        log: takes every line that the run says.
        ranks: that train together.
        began: when the command did, by `time.monotonic`.

    Raises:
        UserError: what is asked for cannot be done; nothing has been written then.
    """

    def __init__(
        self, config: TrainConfig, log: Log, ranks: Ranks = ALONE, began: float | None = None
    ) -> None:
        self.log, self.ranks = log, ranks
        self.began = time.monotonic() if began is None else began
        self.parts = parts = Parts(config, log, ranks)
        self.config, self.device, self.run = parts.config, parts.device, parts.run
        self.plan, self.batches, self.step = parts.plan, parts.batches, parts.step
        self.ticks = Ticks(self.step.rows, self.config.batch_size, self.device, ranks)
        self.clock = self.ticks.clock
        self.records = Records(self.run, self.plan)
        self.watch = Watch(self.config, self.run, self.records, log, parts.rollbacks)
        self.steps_done, self.steps_saved = 0, -1
        self.seconds, self.spent = 0.0, Spent()
        if parts.state is not None:
            self._restore(parts.state)
        self.saved_at = time.monotonic()
        self.between_steps = True

    def _restore(self, state: dict[str, Any]) -> None:
        self.steps_done = self.steps_saved = state["steps"]
        self.records.history = state["history"].numpy()
        self.watch.load_state_dict(state["watch"])
        self.seconds, self.spent = state["seconds"], Spent(**state["spent"])

    @property
    def nimg(self) -> int:
        """Real images seen so far, by all ranks together."""
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
        with ExitStack() as held:
            self.ranks.first(lambda: self._take_folder(held))
            self.parts.get_ready()
            trouble = self._run_until(stop)
        self.ranks.first(lambda: self._conclude(stop, trouble))
        if trouble is not None:
            raise trouble

    def _run_until(self, stop: StopRequest) -> TroubleError | None:
        try:
            self._train(stop)
        except RollBack:
            raise
        except TroubleError as trouble:
            self._keep()
            return trouble
        except BaseException as error:
            self.ranks.part_over(error)
            reason = str(error) or type(error).__name__
            try:
                self.log(f"Training broke off: {reason}\nWhat it has so far is in {self.run.path}")
            finally:
                self._keep()
            raise
        else:
            self._keep()
            return None
        finally:
            self.batches.close()
            self.watch.close()

    def _train(self, stop: StopRequest) -> None:
        self.log("Starting training" if not self.steps_done else "Going on with training")
        self.ticks.begin(len(self.records.history), self.spent)
        with self.log.progress(self.plan.total_steps, self.steps_done) as advance:
            while True:
                ending = self.is_done or bool(stop) or self._time_is_up()
                ending, saving = self.ranks.any(ending, self._checkpoint_is_due())

                # Judge what G draws; who asks for a stop does not want to wait for that
                if self._is_due(self.config.evaluate_every, self.is_done):
                    self._judge()

                # Keep all that it takes to go on; before a last tick that is not full is told
                if ending or saving:
                    self._checkpoint()

                # Say how it goes
                if ending or self.steps_done % self.config.log_every == 0:
                    self._tick(last=ending)

                # Show what the fixed noise has become
                if self._is_due(self.config.sample_every, ending):
                    self._first(self._sample)

                # Keep the nets of each epoch
                if self._is_due(self.plan.steps_per_epoch, self.config.dry_run):
                    self._first(lambda: self.parts.save_epoch(self.nimg))

                # No rank goes on if one has nothing to go on with
                with self.clock.waiting(), self.ranks.together():
                    self._heed_trouble()
                    if not ending:
                        self.batches.fill(self.step.pixels)
                if ending:
                    return
                if self.steps_done == 0:
                    self._show_evidence()

                # One update of D, one of G
                self.between_steps = False
                self.step.run()
                self.steps_done += 1
                self.between_steps = True
                advance()

    def _time_is_up(self) -> bool:
        limit = self.config.max_time
        return limit is not None and time.monotonic() - self.began >= 60 * limit

    def _is_due(self, every: int | None, anyhow: bool) -> bool:
        due = every is not None and (anyhow or self.steps_done % every == 0)
        return due and self.steps_done > 0

    def _checkpoint_is_due(self) -> bool:
        minutes = (time.monotonic() - self.saved_at) / 60
        return self.steps_done > 0 and minutes >= self.config.checkpoint_every

    def _take_folder(self, held: ExitStack) -> None:
        """Have the folder for this run, say what it is, and drop what of it will be done again."""
        log, run = self.log, self.run
        run.make()
        held.enter_context(run.locked())
        # Before all else: without it, what a killed process leaves is nobody's run
        write_object(run.config, self.parts.options())
        log.write_to(run.log)
        for line in self.parts.describe(self.steps_done):
            log(line)
        run.forget_after(self.nimg)
        self.records.begin(self.nimg)
        write_object(run.environment, describe_environment(self.device))
        self.watch.begin(len(self.records.history))

    def _conclude(self, stop: StopRequest, trouble: TroubleError | None) -> None:
        end = "Training finished"
        if trouble is not None:
            end = "Stopped at trouble"
        elif not self.is_done:
            end = "Time is up" if self._time_is_up() else "Stopped with another rank"
            end = f"Stopped by {stop.signal.name}" if stop.signal else end
        self.watch.conclude(end, self.steps_done, self.seconds + time.perf_counter() - self.started)
        if trouble is None and not self.is_done:
            self.log(f"saved; the same command with --run {self.run.path} goes on from here")

    def _tick(self, last: bool) -> None:
        """Tell how the steps since the last tick went."""
        self.ticks.take(self.steps_done)
        self._tell(last)

    def _tell(self, all_of_them: bool) -> None:
        with self.clock.paused():
            for numbers, pace in self.ticks.arrived(all_of_them):
                self.ranks.first(partial(self.watch.tick, numbers, pace))

    def _first(self, do: Callable[[], Any]) -> Any:
        """Have the first rank do something that is no training, and whose time does not count."""
        with self.clock.paused():
            return self.ranks.first(do)

    def _show_evidence(self) -> None:
        """Save what D will see and what G begins with: a wrong colour is seen in ten seconds."""
        with self.clock.paused():
            reals = self.ranks.gather(self.step.pixels.cpu()).flatten(0, 1)
            self.ranks.first(lambda: self.watch.show_evidence(reals, self.parts.generator))

    def _sample(self) -> None:
        self.watch.sample(self.parts.net_to_sample(), self.steps_done)

    def _judge(self) -> None:
        """Measure how good the net is, and keep the best."""
        better = self.ranks.same(self._first(self._measure))
        if better is not None:
            self._checkpoint()
            self._first(partial(self.parts.save_best, self.nimg, better))

    def _measure(self) -> float | None:
        """The net's distance from the set, if none before was as low."""
        if not self.step.is_finite():  # the next tick tells of it
            return None
        best = self.parts.checkpoints.best()
        swd = self.watch.judge(self.parts.net_to_sample(), self.steps_done)
        return swd if swd is not None and (best is None or swd < best) else None

    def _checkpoint(self) -> None:
        """Save what going on takes, and the nets beside it."""
        if self.steps_saved == self.steps_done:
            return
        self._tell(all_of_them=True)
        spent = self.clock.so_far()
        with self.clock.paused():
            if self.ranks.all(self.step.is_finite()):
                of_each = self.parts.of_each_rank()
                self.ranks.first(lambda: self._save(spent, of_each))
                self.steps_saved, self.saved_at = self.steps_done, time.monotonic()
            else:
                self.ranks.first(lambda: self.watch.nets_not_finite(self.steps_done))

    def _save(self, spent: Spent, of_each_rank: dict[str, torch.Tensor]) -> None:
        state = {
            "version": STATE,
            "options": self.config.to_json(),
            "steps": self.steps_done,
            "rollbacks": self.parts.rollbacks,
            "threads": torch.get_num_threads(),
            "seconds": self.seconds + time.perf_counter() - self.started,
            "spent": asdict(spent),
            "step": self.step.state_dict() | of_each_rank,
            "batches": self.batches.state_dict(),
            "history": torch.from_numpy(self.records.history),
            "watch": self.watch.state_dict(),
        }
        try:
            self.parts.checkpoints.save(self.nimg, state)
        finally:
            self.parts.save_nets()

    def _keep(self) -> None:
        """Write what there is at the end, whichever end it is; the nets first, they cost most."""
        if self.between_steps and self.ranks.complete:
            self._checkpoint()
        self.ranks.first(self._keep_nets)
        if self.ranks.complete:
            self._tick(last=True)
        self.ranks.first(self.watch.finish)

    def _keep_nets(self) -> None:
        if not self.run.generator.exists() or not self.between_steps:
            self.parts.save_nets()

    def _heed_trouble(self) -> None:
        """Let the run not go on after trouble.

        Raises:
            RollBack: it is to begin again where there was no trouble yet.
            TroubleError: it is to stop.
        """
        trouble, times = self.watch.trouble, self.parts.rollbacks + 1
        if trouble is None:
            return
        if trouble.action == "stop":
            raise trouble.as_error(self.run)
        self.parts.checkpoints.forget_after(self.plan.nimg(trouble.alarm.began - 1))
        raise RollBack(f"Going back, {times} of {MAX_ROLLBACKS} times: other random numbers")
