"""One call of `dcgan-train`: from the options to the exit status, rollbacks included."""

from __future__ import annotations

import os
import time

from dcgan.distributed import Ranks
from dcgan.options import TrainConfig
from dcgan.rundir.folder import RunFolder
from dcgan.rundir.log import Log
from dcgan.step.adversarial import AdversarialStep
from dcgan.step.train_step import keep_compiled_code
from dcgan.training.build import access_of, build
from dcgan.training.capacity import shortage_named
from dcgan.training.monitor import RollBack
from dcgan.training.signals import StopRequest
from dcgan.training.trainer import Trainer
from pipeline.errors import UserError
from pipeline.machine import limit_torch_threads
from pipeline.remote.open import open_set
from pipeline.shards.shard_set import ShardSet, is_url

TIME_IS_UP = 75
"""Exit status after `--max-time`: EX_TEMPFAIL of sysexits.h, "the user is invited to retry"."""


def train(config: TrainConfig, update: type[AdversarialStep] = AdversarialStep) -> int:
    """Train with the options `config`: begin a new run, or resume one from its last checkpoint.

    Under torchrun, all ranks use the first rank's options.

    Args:
        config: the options.
        update: what a step computes; its `__init__` takes what that of `AdversarialStep` takes.

    Returns:
        The exit status: 0; or 128 + the signal that stopped the run; or `TIME_IS_UP`; or 1 after
        an error that another rank reports.

    Raises:
        UserError: the options, the data or the machine do not allow the run, or an alarm stops it.
    """
    began = time.monotonic()
    keep_compiled_code()
    limit_torch_threads()
    with Ranks.joined() as ranks:
        try:
            with ranks.together():
                config = _named(config)
            return _train(ranks.same(config), update, ranks, began)
        except UserError as error:
            if ranks.reports(error):
                raise
            return 1


def _train(config: TrainConfig, update: type[AdversarialStep], ranks: Ranks, began: float) -> int:
    log = Log(quiet=not ranks.is_first)
    ranks.on_loss = lambda error: log(f"Training broke off: {error}")
    shards = _opened(config, ranks)  # before signals are only noted: there is nothing to save yet
    try:
        with StopRequest() as stop, shortage_named(config):
            while True:
                with ranks.together():
                    run = build(config, log, ranks, shards, update)
                    trainer = Trainer(run, log, began)
                try:
                    trainer.run_until(stop)
                except RollBack as back:
                    log(str(back))
                    del trainer, run  # frees its memory before the next one needs as much
                else:
                    break
    finally:
        log.close()
    if stop.signal is not None:
        return 128 + stop.signal
    # For torchrun any other status is a failure, after which it may start the run again
    return 0 if trainer.is_done or ranks.count > 1 else TIME_IS_UP


def _opened(config: TrainConfig, ranks: Ranks) -> ShardSet | None:
    """Open a remote set on each machine's first rank, then from the cache on the others.

    So the ranks of a machine have the same set, and each of its files is fetched once.
    """
    if not is_url(config.shards):
        return None
    return ranks.first_here(lambda: open_set(config.shards, access_of(config, ranks)))


def _named(config: TrainConfig) -> TrainConfig:
    """Choose the run folder.

    Raises:
        UserError: torchrun may restart the processes, and without --run they would not find it.
    """
    if config.run is None and int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0")):
        raise UserError(
            "--run",
            "none, and torchrun --max-restarts",
            "a folder that a restarted run finds again",
            "give --run, for example --run runs/mine",
        )
    return config.replace(run=str(RunFolder.at(config.run).path))
