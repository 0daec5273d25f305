"""The loop: batches in, updates done, everything worth keeping in the run folder.

All ranks go through it in step. What only the first one does, it does in `Ranks.first`.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from dcgan.rundir.environment import describe_environment
from dcgan.rundir.folder import write_object
from dcgan.rundir.log import Log
from dcgan.sampling.generate import FIXED_SEEDS
from dcgan.training.monitor import (
    MAX_ROLLBACKS,
    Alarm,
    Monitor,
    RollBack,
    TroubleError,
    broken_nets,
)
from dcgan.training.records import Records
from dcgan.training.run import Run
from dcgan.training.signals import StopRequest
from dcgan.training.state import Position, State, StepState
from dcgan.training.stats import Clock, Spent

Rows = npt.NDArray[np.float32]
"""(steps, 5): statistics."""


class Trainer:
    """Trains a run, or what is left of one, and records it.

    Args:
        run: as it was built.
        log: takes every line that the run says.
        began: when the command did, by `time.monotonic`.
    """

    run: Run
    records: Records
    """What is written of it."""
    monitor: Monitor
    """What looks for trouble."""
    clock: Clock
    """Times the steps since the last status line."""
    steps_done: int
    steps_ticked: int
    """At the last status line."""
    steps_saved: int
    """At the newest checkpoint; -1 before the first."""

    def __init__(self, run: Run, log: Log, began: float | None = None) -> None:
        self.run, self.log, self.ranks = run, log, run.ranks
        self.began = time.monotonic() if began is None else began
        self.config, self.step, self.batches = run.config, run.step, run.batches
        self.records = Records(run.config, run.folder, run.plan, log)
        self.monitor = Monitor(run.config.on_trouble, run.rollbacks)
        self.clock = Clock(run.device)
        self._ticks: deque[tuple[Callable[[], Rows], Callable[[], Spent]]] = deque()
        self.steps_done, self.steps_ticked, self.steps_saved = 0, 0, -1
        self.seconds, self.spent = 0.0, Spent()
        if run.state is not None:
            self._restore(run.state)
            run.state = None  # its tensors have been copied
        self.saved_at = time.monotonic()
        self.between_steps = True

    def _restore(self, state: State) -> None:
        self.steps_done = state.steps
        if not self.run.changed:  # else what is saved would not resume with these options
            self.steps_saved = state.steps
        self.records.history = state.history.numpy()
        self.monitor.restore(state.watch)
        self.seconds, self.spent = state.seconds, state.spent

    @property
    def nimg(self) -> int:
        """Real images seen so far, by all ranks together."""
        return self.run.plan.nimg(self.steps_done)

    @property
    def is_done(self) -> bool:
        """Whether there is no step left to do."""
        return self.steps_done >= self.run.plan.total_steps

    def run_until(self, stop: StopRequest) -> None:
        """Train until all steps are done or a stop is asked for; leave nets and curves behind.

        Raises:
            RollBack: the run is to go on from an earlier checkpoint.
            UserError: the data failed, or trouble came that the run is to end at.
        """
        self.started = time.perf_counter()
        with ExitStack() as held:
            self.ranks.first(lambda: self._take_folder(held))
            self.run.prepare(self.log)
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
            self.ranks.separate(error)
            reason = str(error) or type(error).__name__
            try:
                folder = self.run.folder.path
                self.log(f"Training broke off: {reason}\nWhat it has so far is in {folder}")
            finally:
                self._keep()
            raise
        else:
            self._keep()
            return None
        finally:
            self.batches.close()
            self.records.close()

    def _train(self, stop: StopRequest) -> None:
        self.log("Starting training" if not self.steps_done else "Going on with training")
        self.steps_ticked = len(self.records.history)
        self.clock.restart(self.spent)
        with self.log.progress(self.run.plan.total_steps, self.steps_done) as advance:
            while True:
                ending = self.is_done or bool(stop) or self._time_is_up()
                ending, saving = self.ranks.any(ending, self._checkpoint_is_due())

                # Evaluate what G draws; who asks for a stop does not want to wait for that
                if self._is_due(self.config.evaluate_every, self.is_done):
                    self._evaluate()

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
                if self._is_due(self.run.plan.steps_per_epoch, self.config.dry_run):
                    self._first(lambda: self.run.save_epoch(self.nimg))

                # No rank goes on if one has nothing to go on with
                with self.clock.waiting(), self.ranks.together():
                    self._handle_trouble()
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
        log, run, folder = self.log, self.run, self.run.folder
        folder.make()
        held.enter_context(folder.locked())
        # Before all else: without it, what a killed process leaves is nobody's run
        write_object(folder.config, run.options())
        log.write_to(folder.log)
        for line in run.describe(self.steps_done):
            log(line)
        folder.forget_after(self.nimg)
        self.records.begin(self.nimg)
        write_object(folder.environment, describe_environment(run.device))
        self.records.open_events()

    def _conclude(self, stop: StopRequest, trouble: TroubleError | None) -> None:
        end = "Training finished"
        if trouble is not None:
            end = "Stopped at trouble"
        elif not self.is_done:
            end = "Time is up" if self._time_is_up() else "Stopped with another rank"
            end = f"Stopped by {stop.signal.name}" if stop.signal else end
        self.records.conclude(end, self.steps_done, self._seconds_so_far())
        if trouble is None and not self.is_done:
            self.log(f"saved; the same command with --run {self.run.folder.path} goes on from here")

    def _seconds_so_far(self) -> float:
        return self.seconds + time.perf_counter() - self.started

    def _tick(self, last: bool) -> None:
        """Log how the steps since the last tick went."""
        steps = self.steps_done - self.steps_ticked
        if steps:
            self._ticks.append((self.step.rows.take(steps), self.clock.lap()))
            self.steps_ticked = self.steps_done
        self._record_ticks(last)

    def _record_ticks(self, all_of_them: bool) -> None:
        """Record the ticks whose statistics are there, averaged over the ranks.

        On CUDA those of the last one are left for the next time, unless all are asked for: so
        nobody waits for them.
        """
        left = 1 if self.run.device.type == "cuda" and not all_of_them else 0
        with self.clock.paused():
            while len(self._ticks) > left:
                read, spent = self._ticks.popleft()
                rows = self.ranks.mean(read())
                self.ranks.first(partial(self._record, rows, spent()))

    def _record(self, rows: Rows, spent: Spent) -> None:
        first = len(self.records.history) + 1
        self.records.add_tick(rows, spent)
        self._handle(self.monitor.look_at_steps(first, rows))

    def _handle(self, alarms: Sequence[Alarm]) -> None:
        for alarm, action in self.monitor.handle(alarms):
            if self.monitor.gave_up:
                self.log(f"gave up after {MAX_ROLLBACKS} rollbacks")
            self.records.add_alarm(alarm, action)

    def _handle_trouble(self) -> None:
        """Stop a run after an alarm, or roll it back, if that was asked for.

        Raises:
            RollBack: it is to begin again where there was no trouble yet.
            TroubleError: it is to stop.
        """
        trouble, times = self.monitor.trouble, self.run.rollbacks + 1
        if trouble is None:
            return
        if trouble.action == "stop":
            raise trouble.as_error(self.run.folder)
        self.run.checkpoints.forget_after(self.run.plan.nimg(trouble.alarm.began - 1))
        raise RollBack(f"Going back, {times} of {MAX_ROLLBACKS} times: other random numbers")

    def _first(self, do: Callable[[], Any]) -> Any:
        """Have the first rank do something that is no training, and whose time does not count."""
        with self.clock.paused():
            return self.ranks.first(do)

    def _show_evidence(self) -> None:
        """Save what D will see and what G begins with."""
        with self.clock.paused():
            reals = self.ranks.gather(self.step.pixels.cpu()).flatten(0, 1)[: len(FIXED_SEEDS)]
            self.ranks.first(lambda: self.records.show_evidence(reals, self.run.generator))
            self.ranks.first(lambda: self.monitor.look_at_reals(reals))

    def _sample(self) -> None:
        images = self.records.sample(self.run.net_to_sample(), self.steps_done)
        # Not at a stop: a resumed run would have looked at one grid more
        if self.steps_done % self.config.sample_every == 0:
            self._handle(self.monitor.look_at_grid(self.steps_done, images))

    def _evaluate(self) -> None:
        """Measure how good the net is, and keep the best."""
        better = self.ranks.same(self._first(self._measure))
        if better is not None:
            self._checkpoint()
            self._first(partial(self.run.save_best, self.nimg, better))

    def _measure(self) -> float | None:
        """The net's distance from the set, if none before was as low."""
        if not self.step.is_finite():  # the next tick tells of it
            return None
        best = self.run.checkpoints.best()
        swd = self.records.evaluate(self.run.net_to_sample(), self.steps_done)
        return swd if swd is not None and (best is None or swd < best) else None

    def _checkpoint(self) -> None:
        """Save what resuming takes, and the nets beside it."""
        if self.steps_saved == self.steps_done:
            return
        self._record_ticks(all_of_them=True)
        spent = self.clock.so_far()
        with self.clock.paused():
            if self.ranks.all(self.step.is_finite()):
                step = self.run.step_state()
                self.ranks.first(lambda: self._save(self._state(spent, step)))
                self.steps_saved, self.saved_at = self.steps_done, time.monotonic()
            else:
                self.ranks.first(self._refuse_checkpoint)

    def _state(self, spent: Spent, step: StepState) -> State:
        return State(
            options=self.config.to_json(),
            steps=self.steps_done,
            rollbacks=self.run.rollbacks,
            threads=torch.get_num_threads(),
            seconds=self._seconds_so_far(),
            spent=spent,
            step=step,
            batches=Position(**self.batches.state_dict()),
            history=torch.from_numpy(self.records.history),
            watch=self.monitor.state(),
        )

    def _save(self, state: State) -> None:
        try:
            self.run.checkpoints.save(self.nimg, state.model_dump())
        finally:
            self.run.save_nets()

    def _refuse_checkpoint(self) -> None:
        """Raise an alarm about nets that hold NaN: their losses may be finite all the same."""
        self.log("no checkpoint: the nets hold NaN or infinity; the last one stays")
        self._handle([broken_nets(self.steps_done)])

    def _keep(self) -> None:
        """Write what there is at the end, whichever end it is; the nets first, they cost most."""
        if self.between_steps and self.ranks.complete:
            self._checkpoint()
        self.ranks.first(self._keep_nets)
        if self.ranks.complete:
            self._tick(last=True)
        self.ranks.first(self.records.finish)

    def _keep_nets(self) -> None:
        if not self.run.folder.generator.exists() or not self.between_steps:
            self.run.save_nets()
