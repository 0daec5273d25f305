"""The training loop: it takes batches, runs steps, and writes the run folder.

All ranks run the loop in step. `Ranks.first` marks what only the first rank does.
"""

from __future__ import annotations

import math
import shlex
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
from dcgan.training.clock import Clock, Spent
from dcgan.training.monitor import (
    MAX_ROLLBACKS,
    Alarm,
    Monitor,
    RollBack,
    TroubleError,
    broken_nets,
)
from dcgan.training.previous import Previous
from dcgan.training.records import Records
from dcgan.training.run import Run
from dcgan.training.signals import StopRequest
from dcgan.training.state import Position, State, StepState
from dcgan.training.tuned import prepare

Rows = npt.NDArray[np.float32]
"""(steps, 5): statistics."""


class Trainer:
    """Trains a run, new or resumed, and records it.

    Args:
        run: the run, as it was built.
        log: called with every line to log.
        began: when the command began, by `time.monotonic`.
    """

    run: Run
    records: Records
    """Writes status lines, statistics, pictures and metrics."""
    monitor: Monitor
    """Raises alarms."""
    clock: Clock
    """Times the steps since the last status line."""
    steps_done: int
    steps_begun: int
    """Steps done when this process began."""
    steps_ticked: int
    """Steps done at the last status line."""
    steps_saved: int
    """Steps done at the newest checkpoint; -1 before the first."""

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
        if run.previous is not None and run.previous.state is not None:
            self._restore(run.previous, run.previous.state)
            run.previous.state = None  # its tensors have been copied
        self.steps_begun = self.steps_done
        self.saved_at = time.monotonic()
        self.between_steps = True

    @property
    def nimg(self) -> int:
        """The number of real images seen so far, by all ranks together."""
        return self.run.plan.nimg(self.steps_done)

    @property
    def is_done(self) -> bool:
        """Whether all steps are done."""
        return self.steps_done >= self.run.plan.total_steps

    def run_until(self, stop: StopRequest) -> None:
        """Train until all steps are done or a stop is requested; then write nets and curves.

        Raises:
            RollBack: the run must resume from an earlier checkpoint.
            UserError: the data failed, or an alarm ended the run.
        """
        self.started = time.perf_counter()
        with ExitStack() as held:
            self.ranks.first(lambda: self._take_folder(held))
            prepare(self.run, self.log, lambda: bool(stop) or self._time_is_up())
            self.config = self.run.config  # now with its tuning
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
                self.log.write(f"Training broke off: {reason}")  # the terminal shows the error
                self.log(f"Its output so far is in {folder}")
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
        self.log("Starting training" if not self.steps_done else "Resuming training")
        self.clock.restart(self.spent)
        with self.log.progress(self.run.plan.total_steps, self.steps_done) as advance:
            while True:
                # If another rank has no next batch, this one has taken its own for nothing
                self._position = Position(**self.batches.state_dict())
                # Each start does a step, or a supervisor with too short a --max-time never ends
                time_is_up = self._time_is_up() and self.steps_done > self.steps_begun
                ending = self.is_done or bool(stop) or time_is_up
                ending, saving = self.ranks.any(ending, self._checkpoint_is_due())

                # Evaluate the generator; a stop does not cause this: users do not want to wait then
                if self._is_due(self.config.evaluate_every, self.is_done):
                    self._evaluate()

                # Save a checkpoint, before the last, incomplete tick is logged
                if ending or saving:
                    self._checkpoint()

                # Log a status line
                if ending or self.steps_done % self.config.log_every == 0:
                    self._tick(last=ending)

                # Draw the sample grid
                if self._is_due(self.config.sample_every, ending):
                    self._first(self._sample)

                # Save the nets of each epoch
                if self._epoch_is_over() or (self.config.dry_run and self.steps_done > 0):
                    self._first(lambda: self.run.save_epoch(self.nimg))

                # Fetch the next batch; if one rank has none, all stop
                with self.clock.waiting(), self.ranks.together():
                    self._handle_trouble()
                    if not ending:
                        first = self._look_ahead() if self.steps_done == 0 else []
                        self.batches.fill(*self.step.inputs)
                if ending:
                    return
                if first:
                    self._show_evidence(first)

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

    def _epoch_is_over(self) -> bool:
        return self.steps_done > 0 and self.run.plan.place(self.steps_done)[1] == 0

    def _checkpoint_is_due(self) -> bool:
        minutes = (time.monotonic() - self.saved_at) / 60
        return self.steps_done > 0 and minutes >= self.config.checkpoint_every

    def _take_folder(self, held: ExitStack) -> None:
        """Lock the folder, describe the run, and drop records of steps that will be done again."""
        log, run, folder = self.log, self.run, self.run.folder
        folder.make()
        held.enter_context(folder.locked())
        # First of all: without this file, what a killed process leaves is not recognised as a run
        write_object(folder.config, run.options())
        log.write_to(folder.log)
        for line in run.describe(self.steps_done):
            log(line)
        if self.is_done:
            log("nothing is left to train: raise --epochs or --max-steps")
        folder.forget_after(self.nimg)
        self.records.begin(self.nimg)
        write_object(folder.environment, describe_environment(run.device))
        self.records.open_events()

    def _conclude(self, stop: StopRequest, trouble: TroubleError | None) -> None:
        end = "Training finished"
        if trouble is not None:
            end = "Stopped by an alarm"
        elif not self.is_done:
            end = "Time is up" if self._time_is_up() else "Stopped with another rank"
            end = f"Stopped by {stop.signal.name}" if stop.signal else end
        self.records.conclude(end, self.steps_done, self._seconds_so_far())
        if trouble is None and not self.is_done:
            self.log(
                f"saved; the same command resumes from here, with --run {self.run.folder.path}"
            )
        elif trouble is None and not self.config.dry_run:
            run = shlex.quote(str(self.run.folder.path))
            self.log(f"next     dcgan-sample {run}; dcgan-report {run}")

    def _seconds_so_far(self) -> float:
        return self.seconds + time.perf_counter() - self.started

    def _tick(self, last: bool) -> None:
        """End a tick: take its statistics, and record the ticks that are ready."""
        steps = self.steps_done - self.steps_ticked
        if steps:
            self._ticks.append((self.step.rows.take(steps), self.clock.lap()))
            self.steps_ticked = self.steps_done
        self._record_ticks(last)

    def _record_ticks(self, all_of_them: bool) -> None:
        """Record the ticks whose statistics have arrived, averaged over the ranks.

        On CUDA the last tick is left for the next call, unless `all_of_them` is set, so that the
        host does not wait for it.
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
        """Stop the run or roll it back, if an alarm demands it.

        Raises:
            RollBack: the run must resume from a checkpoint before the trouble began.
            TroubleError: the run must stop.
        """
        trouble, times = self.monitor.trouble, self.run.rollbacks + 1
        if trouble is None:
            return
        if trouble.action == "stop":
            raise trouble.as_error(self.run.folder)
        self.run.checkpoints.forget_after(self.run.plan.nimg(trouble.alarm.began - 1))
        raise RollBack(f"Rolling back, {times} of {MAX_ROLLBACKS} times, to other random numbers")

    def _first(self, do: Callable[[], Any]) -> Any:
        """Call `do` on the first rank, without counting its time as training."""
        with self.clock.paused():
            return self.ranks.first(do)

    def _look_ahead(self) -> list[torch.Tensor]:
        """Return this rank's first batches: as many as have, over all ranks, a grid's images."""
        return self.batches.look_ahead(math.ceil(len(FIXED_SEEDS) / self.config.batch_size))

    def _show_evidence(self, first: Sequence[torch.Tensor]) -> None:
        """Save the first real images, and the untrained generator's.

        Args:
            first: this rank's first batches; a rank that met damage may have fewer than others.
        """
        with self.clock.paused():
            own = torch.cat([*first]).cpu()
            everywhere = int(self.ranks.gather(torch.tensor(len(own))).min())
            reals = self.ranks.gather(own[:everywhere]).flatten(0, 1)[: len(FIXED_SEEDS)]
            net = self.run.net_to_sample
            self.ranks.first(lambda: self.records.show_evidence(reals, net()))
            self.ranks.first(lambda: self.monitor.look_at_reals(reals))

    def _sample(self) -> None:
        images = self.records.sample(self.run.net_to_sample(), self.steps_done)
        # Not at a stop: the resumed run would have looked at one more grid
        if self.steps_done % self.config.sample_every == 0:
            self._handle(self.monitor.look_at_grid(self.steps_done, images))

    def _evaluate(self) -> None:
        """Measure the generator's distance from the set, and keep the best net."""
        better = self.ranks.same(self._first(self._measure))
        if better is not None:
            self._checkpoint()
            self._first(partial(self.run.save_best, self.nimg, better))

    def _measure(self) -> float | None:
        """Return the net's distance from the set, if it is the lowest so far; else None."""
        if not self.step.is_finite():  # the next tick raises the alarm
            return None
        best = self.run.checkpoints.best()
        swd = self.records.evaluate(self.run.net_to_sample(), self.steps_done)
        return swd if swd is not None and (best is None or swd < best) else None

    def _checkpoint(self) -> None:
        """Save a checkpoint, and the nets beside it."""
        if self.steps_saved == self.steps_done:
            return
        self._record_ticks(all_of_them=True)
        spent = self.clock.so_far()
        with self.clock.paused():
            if self.ranks.all(self.step.is_finite()):
                step = self._step_state()
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
            batches=self._position,
            history=torch.from_numpy(self.records.history),
            watch=self.monitor.state(),
        )

    def _step_state(self) -> StepState:
        """Return the step's state; the parts that differ between ranks are gathered from all.

        Raises:
            UserError: the weights differ between ranks.
        """
        again = "resume from the last checkpoint by the same command with the same --run;"
        again += " if this happens again, suspect that rank's memory or device"
        self.ranks.require_same("weights", self.step.digest, again)
        own = self.step.state_dict()
        gathered = {name: self.ranks.gather(own[name]) for name in ("random", "rows")}
        return StepState(**(own | gathered))

    def _restore(self, previous: Previous, state: State) -> None:
        """Continue from a checkpoint: what `_state` saved, in its order.

        The batches are there already: `build` has to know their place to count epochs.

        Raises:
            UserError: it does not fit the nets.
        """
        self.steps_done = state.steps
        self.seconds, self.spent = state.seconds, state.spent
        self._restore_step(previous, state)
        self.records.history = state.history.numpy()
        self.steps_ticked = len(self.records.history)
        self.monitor.restore(state.watch)
        if not self.run.changed:  # else that checkpoint would not resume as this run
            self.steps_saved = state.steps

    def _restore_step(self, previous: Previous, state: State) -> None:
        step, ranks = self.step, self.ranks
        anew = previous.has_other_generators(self.config)
        if previous.device_type != step.random.device.type:  # its generators have another state
            state.step.random = step.random.get_state().expand(state.ranks, -1)
        state.require_fit(step, previous.path)
        # Copies, because `set_state` reads from the beginning of the storage
        own = {"random": state.step.random[0 if anew else ranks.rank].clone()}
        if state.ranks == ranks.count:
            own["rows"] = state.step.rows[ranks.rank].clone()
        else:  # a status line shows the mean over all ranks, which remains what it was
            own["rows"] = state.step.rows.mean(0)
        same_random = state.rollbacks == previous.rollbacks and not anew
        step.load_state_dict(dict(state.step) | own, same_random)

    def _save(self, state: State) -> None:
        try:
            self.run.checkpoints.save(self.nimg, state.model_dump())
        finally:
            self.run.save_nets()

    def _refuse_checkpoint(self) -> None:
        """Raise an alarm about nets that contain NaN, although their losses may be finite."""
        self.log("no checkpoint saved: the nets contain NaN or infinity; the last one is kept")
        self._handle([broken_nets(self.steps_done)])

    def _keep(self) -> None:
        """Save everything at the end, even after an error; nets first, the costliest to lose."""
        if self.between_steps and self.ranks.complete:
            self._checkpoint()
        self.ranks.first(self._keep_nets)
        if self.ranks.complete:
            self._tick(last=True)
        self.ranks.first(self.records.finish)

    def _keep_nets(self) -> None:
        if not self.run.folder.generator.exists() or not self.between_steps:
            self.run.save_nets()
