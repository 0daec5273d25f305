"""Ctrl-C and SIGTERM: the first one asks, a second one ends."""

import os
import re
import signal
import subprocess
import sys
from contextlib import suppress
from threading import Timer

import pytest
import torch

from dcgan.rundir.folder import RunFolder
from dcgan.training.signals import StopRequest
from tests.running import (
    DCGAN_TRAIN,
    TINY,
    environment,
    expected_files,
    files_below,
    flags,
    read_losses,
    read_stats,
    run_command,
)

BOTH = [signal.SIGINT, signal.SIGTERM]


@pytest.mark.parametrize("number", BOTH)
def test_the_first_signal_is_only_noted(number):
    before = [signal.getsignal(each) for each in BOTH]
    with suppress(KeyError), StopRequest() as stop:
        assert not stop
        os.kill(os.getpid(), number)
        assert stop
        assert stop.signal is number
        raise KeyError
    assert [signal.getsignal(each) for each in BOTH] == before
    assert stop, "the request outlives the region"


SECOND = """
import os, signal, sys, time
from dcgan.training.signals import StopRequest
with StopRequest() as stop:
    os.kill(os.getpid(), int(sys.argv[1]))
    print("noted", stop.signal.name, flush=True)
    os.kill(os.getpid(), int(sys.argv[2]))
    time.sleep(60)
print("still there")
"""


def test_the_second_signal_ends_the_process_at_once(tmp_path):
    first, second = BOTH
    words = [sys.executable, "-c", SECOND, str(int(first)), str(int(second))]
    ended = run_command(*words, cwd=tmp_path)
    assert ended.stdout == f"noted {first.name}\n"
    assert ended.returncode == -second, ended.stderr  # which a shell shows as 128 + signal
    assert ended.stderr == ""


# The same of a whole run


def test_a_run_that_is_asked_to_stop_writes_everything_and_says_so(tmp_path):
    run = RunFolder(tmp_path / "run")
    options = {"max_steps": 10**9, "log_every": 5, "sample_every": 10**9, "ema_nimg": 0}
    words = flags(shards="synthetic", run=run.path, **TINY, **options)
    with subprocess.Popen(
        [DCGAN_TRAIN, *words], env=environment(), stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        limit = Timer(180, process.kill)
        limit.start()
        assert any("Loss_D" in line for line in process.stdout)
        process.send_signal(signal.SIGTERM)
        said = process.stdout.read()
        limit.cancel()
    assert process.returncode == 128 + signal.SIGTERM
    steps = len(read_losses(run))
    assert steps >= 5
    assert read_stats(run)[-1]["step"] == steps
    epochs = range(2048 * 8, steps * 8 + 1, 2048 * 8)
    assert files_below(run.path) == expected_files([steps * 8], [*epochs])
    end = rf"Stopped by SIGTERM: {steps:,} steps, {steps * 8:,} images, total time [\d:]+\n"
    assert re.search(end, said)
    updates = torch.load(run.discriminator, weights_only=True)["main.3.num_batches_tracked"]
    assert updates == 3 * steps  # real, fake, fake again: no step was cut in half
