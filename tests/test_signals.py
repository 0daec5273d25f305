"""Ctrl-C and SIGTERM: the first one asks, a second one ends."""

import os
import re
import signal
import subprocess
import sys
import time

import pytest
import torch

from dcgan.nets.models import Discriminator, Generator
from dcgan.nets.weights import load_weights
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
)

BOTH = [signal.SIGINT, signal.SIGTERM]
GENEROUS = 180
"""Seconds: for a machine that is busy with something else."""


@pytest.mark.parametrize("number", BOTH)
def test_the_first_signal_is_only_noted(number):
    before = [signal.getsignal(each) for each in BOTH]
    with StopRequest() as stop:
        assert not stop
        assert stop.signal is None
        os.kill(os.getpid(), number)
        assert stop
        assert stop.signal is number
    assert [signal.getsignal(each) for each in BOTH] == before
    assert stop, "the request outlives the region"


def test_handlers_are_restored_after_an_error():
    before = [signal.getsignal(each) for each in BOTH]
    with pytest.raises(KeyError), StopRequest():
        raise KeyError
    assert [signal.getsignal(each) for each in BOTH] == before


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


@pytest.mark.parametrize(("first", "second"), [BOTH, BOTH[::-1]])
def test_the_second_signal_ends_the_process_at_once(first, second, tmp_path):
    ended = subprocess.run(
        [sys.executable, "-c", SECOND, str(int(first)), str(int(second))],
        env=environment(),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert ended.stdout == f"noted {first.name}\n"
    assert ended.returncode == -second, ended.stderr  # which a shell shows as 128 + signal
    assert ended.stderr == ""


# The same of a whole run


class Running:
    """A run of a billion steps, in a process of its own, that is past its first tick."""

    def __init__(self, folder, *command):
        self.run = RunFolder(folder / "run")
        options = {"max_steps": 10**9, "log_every": 5, "sample_every": 10**9}
        words = flags(shards="synthetic", run=self.run.path, **TINY, **options)
        self.process = subprocess.Popen(
            [*map(str, command), *words],
            cwd=folder,
            env=environment(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )

    def __enter__(self):
        self.wait_for(self.run.log, "Loss_D")
        return self

    def __exit__(self, *error):
        self.process.kill()
        self.process.communicate()

    def wait_for(self, path, text):
        until = time.monotonic() + GENEROUS
        while not (path.exists() and text in path.read_text()):
            assert self.process.poll() is None, self.process.communicate()[1]
            assert time.monotonic() < until, f"no {text} in {path}"
            time.sleep(0.02)

    def ended(self):
        """Exit status and standard error."""
        error = self.process.communicate(timeout=GENEROUS)[1]
        return self.process.returncode, error


def test_a_run_that_is_asked_to_stop_writes_everything_and_says_so(tmp_path):
    number, status = signal.SIGTERM, 143
    with Running(tmp_path, DCGAN_TRAIN) as running:
        running.process.send_signal(number)
        assert running.ended() == (status, "")
        run = running.run
    steps = len(read_losses(run))
    assert steps >= 5
    assert sum(1 for _ in read_stats(run)) == -(-steps // 5)
    assert read_stats(run)[-1]["step"] == steps
    epochs = range(2048 * 8, steps * 8 + 1, 2048 * 8)
    assert files_below(run.path) == expected_files([steps * 8], [*epochs])
    end = rf"Stopped by {number.name}: {steps:,} steps, {steps * 8:,} images, total time [\d:]+\n"
    assert re.search(end, run.log.read_text())
    for net, path in (
        (Generator(32, nz=8, ngf=4), run.generator),
        (Discriminator(32, ndf=4), run.discriminator),
    ):
        load_weights(net, path, "--net")
    updates = torch.load(run.discriminator, weights_only=True)["main.3.num_batches_tracked"]
    assert updates == 3 * steps  # real, fake, fake again: no step was cut in half


SLOW_TO_END = """
import pathlib, time
from dcgan import train
from dcgan.training import trainer
def keep(self):
    (self.run.folder.path / "keeping").touch()
    time.sleep(600)
trainer.Trainer._checkpoint = keep
train.main()
"""


def test_a_second_signal_ends_a_run_that_is_slow_to_end(tmp_path):
    with Running(tmp_path, sys.executable, "-c", SLOW_TO_END) as running:
        running.process.send_signal(signal.SIGINT)
        running.wait_for(running.run.path / "keeping", "")
        running.process.send_signal(signal.SIGTERM)
        assert running.ended() == (-signal.SIGTERM, "")
    assert not running.run.generator.exists()
