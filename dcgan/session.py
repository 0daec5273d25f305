"""One command's worth of training: from the options to the exit status, rollbacks among it."""

from __future__ import annotations

import time
from dataclasses import replace

from dcgan.config import TrainConfig
from dcgan.log import Log
from dcgan.room import shortage_named
from dcgan.signals import StopRequest
from dcgan.speed import keep_compiled_code
from dcgan.trainer import Trainer
from dcgan.watch import RollBack

TIME_IS_UP = 75
"""Exit status after `--max-time`: EX_TEMPFAIL of sysexits.h, "the user is invited to retry"."""


def train(config: TrainConfig) -> int:
    """Train as `config` says, from the first weights or from a run's last checkpoint on.

    Returns:
        The exit status: 0, or 128 + the signal that asked the run to stop, or `TIME_IS_UP`.

    Raises:
        UserError: options, data or a machine that the run cannot work with, or trouble that
            it is to stop at.
    """
    began = time.monotonic()
    keep_compiled_code()
    log = Log()
    try:
        with StopRequest() as stop, shortage_named(config):
            while True:
                trainer = Trainer(config, log, began)
                config = replace(config, run=str(trainer.run.path))
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
