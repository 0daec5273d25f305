"""One command's worth of training: from the options to the exit status, rollbacks among it."""

from __future__ import annotations

import os
import time

from dcgan.distributed import Ranks
from dcgan.options import TrainConfig
from dcgan.rundir.folder import RunFolder
from dcgan.rundir.log import Log
from dcgan.step.train_step import keep_compiled_code
from dcgan.training.build import build
from dcgan.training.capacity import shortage_named
from dcgan.training.monitor import RollBack
from dcgan.training.signals import StopRequest
from dcgan.training.trainer import Trainer
from pipeline.errors import UserError
from pipeline.machine import limit_torch_threads

TIME_IS_UP = 75
"""Exit status after `--max-time`: EX_TEMPFAIL of sysexits.h, "the user is invited to retry"."""


def train(config: TrainConfig) -> int:
    """Train as `config` says, from the first weights or from a run's last checkpoint on.

    Under torchrun, the first rank's options hold for all.

    Returns:
        The exit status: 0, or 128 + the signal that asked the run to stop, or `TIME_IS_UP`; 1
        after an error that another rank tells of.

    Raises:
        UserError: options, data or a machine that the run cannot work with, or trouble that
            it is to stop at.
    """
    began = time.monotonic()
    keep_compiled_code()
    limit_torch_threads()
    with Ranks.joined() as ranks:
        try:
            with ranks.together():
                config = _named(config)
            return _train(ranks.same(config), ranks, began)
        except UserError as error:
            if ranks.reports(error):
                raise
            return 1


def _train(config: TrainConfig, ranks: Ranks, began: float) -> int:
    log = Log(quiet=not ranks.is_first)
    try:
        with StopRequest() as stop, shortage_named(config):
            while True:
                with ranks.together():
                    trainer = Trainer(build(config, log, ranks), log, began)
                try:
                    trainer.run_until(stop)
                except RollBack as back:
                    log(str(back))
                    del trainer  # and its memory, before the next one takes as much
                else:
                    break
    finally:
        log.close()
    if stop.signal is not None:
        return 128 + stop.signal
    return 0 if trainer.is_done else TIME_IS_UP


def _named(config: TrainConfig) -> TrainConfig:
    """Settle where the run is written.

    Raises:
        UserError: torchrun would start it again, and it would not find what it began.
    """
    if config.run is None and int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0")):
        raise UserError(
            "--run",
            "none, and torchrun --max-restarts",
            "a folder that a restarted run finds again",
            "give --run, for example --run runs/mine",
        )
    return config.replace(run=str(RunFolder.at(config.run).path))
