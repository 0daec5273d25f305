"""A loader whose data does not come: an error in time that says where, and nothing hangs on it."""

import os
import sys
import threading
import time
from io import FileIO

import numpy as np
import pytest
import torch

from pipeline.errors import UserError
from pipeline.loading.decoders import RawDecoder, ThreadDecoder
from pipeline.loading.loader import Loader
from pipeline.loading.options import LoaderOptions
from tests.loaders import keys
from tests.needs import require, within
from tests.pictures import numbers
from tests.running import assert_four_parts, run_command

KINDS = ["dali", "threads"]
TIMEOUT = 0.5


def make_decoder(kind, shards, batch_size=2):
    options = LoaderOptions(batch_size, 32, workers=2)
    if kind == "threads":
        return ThreadDecoder(shards, options)
    require("dali")
    from pipeline.loading.dali import DaliDecoder

    return DaliDecoder(shards, options)


@pytest.fixture
def open_loader(monkeypatch):
    """Loaders of a plan that are closed when the test ends; those that hang are not waited for."""
    monkeypatch.setattr("pipeline.loading.loader.CLOSING_PATIENCE", 0.5)
    opened = []

    def open_(shards, decoder, plan, timeout=20.0):
        loader = Loader(shards, LoaderOptions(2, 32, data_timeout=timeout), decoder, plan)
        opened.append(loader)
        return loader

    yield open_
    for loader in opened:
        within(20, loader.close)


@pytest.fixture
def silence(monkeypatch):
    """Puts a pipe that nobody writes in the place of a file; all of them end with the test."""
    pipes, files = [], []

    def kept(path):
        files.append(FileIO(path))
        return files[-1]

    monkeypatch.setattr("pipeline.loading.reader.FileIO", kept)

    def put(path):
        path.unlink()
        os.mkfifo(path)
        pipes.append(path)

    yield put
    end = time.monotonic() + 10
    while time.monotonic() < end and loader_threads():
        for pipe in pipes:  # whoever waits for a writer gets one, which has nothing to say
            try:
                os.close(os.open(pipe, os.O_WRONLY | os.O_NONBLOCK))
            except OSError:
                time.sleep(0.01)
    assert loader_threads() == []
    for file in files:  # those of loaders that could not be closed
        file.close()


def loader_threads():
    names = ("loader", "decode")
    return [thread for thread in threading.enumerate() if thread.name.startswith(names)]


def pairs(schedule):
    """A plan: all rows in their order, two a batch."""
    return iter([np.arange(len(schedule))])


# Batches


def test_batches_are_those_of_the_plan_with_their_rows(open_loader, numbered_set):
    shards = numbered_set(12, 5)
    key_of = keys(shards)
    plan = [np.array(rows) for rows in ([3, 1], [11, 0], [3, 3], [7], [5, 2])]  # one is shorter
    loader = open_loader(shards, make_decoder("threads", shards), lambda _: iter(plan))
    for expected in plan:
        images, places = within(30, lambda: loader.take(None))
        assert np.array_equal(places, expected)  # of one rank they are the rows
        assert numbers(images) == [key_of[row] for row in expected]
    for _ in range(2):
        with pytest.raises(StopIteration):
            within(30, lambda: loader.take(None))


# Silence


@pytest.mark.parametrize(("kind", "shard"), [("dali", 2), ("threads", 0)])
def test_a_shard_that_does_not_answer_is_an_error_in_time(
    open_loader, spare_set, silence, kind, shard
):
    loader = open_loader(spare_set, make_decoder(kind, spare_set), pairs, TIMEOUT)
    silence(spare_set.tars[shard])
    start = time.monotonic()
    with pytest.raises(UserError) as error:
        within(30, lambda: [loader.take(None) for _ in range(6)])
    # Each batch before the silent shard may take its time, too
    assert TIMEOUT <= time.monotonic() - start < 10
    assert_four_parts(error.value, "--data-timeout", "stuck while reading", f"{TIMEOUT:g} s")
    assert error.value.where == str(spare_set.tars[shard])
    within(5, loader.close)


class StuckDecoder(RawDecoder):
    """Never gives the batch of this number."""

    def __init__(self, stuck_at):
        self.stuck_at, self.gate = stuck_at, threading.Event()
        self.name = self.description = "stuck"

    def decode(self, encoded):
        for number, batch in enumerate(encoded):
            if number == self.stuck_at:
                self.gate.wait(60)
            yield torch.full((len(batch), 1, 1, 3), number, dtype=torch.uint8)


@pytest.mark.parametrize("stuck_at", [0, 3])
def test_a_decoder_that_does_not_answer_is_an_error_in_time(open_loader, numbered_set, stuck_at):
    decoder = StuckDecoder(stuck_at)
    loader = open_loader(numbered_set(12, 5), decoder, pairs, TIMEOUT)
    for number in range(stuck_at):
        images, _ = within(30, lambda: loader.take(None))
        assert images.unique().tolist() == [number]
    with pytest.raises(UserError) as error:
        within(30, lambda: loader.take(None))
    assert_four_parts(error.value, "stuck while decoding", "--data-timeout")
    start = time.monotonic()
    within(20, loader.close)
    assert time.monotonic() - start < 5
    decoder.gate.set()


# Processes

PROCESS = """
import os
import sys
from pathlib import Path
import torch
from pipeline.loading.options import LoaderOptions
from pipeline.loading.cache import ResidentCache
from pipeline.loading.decoders import ThreadDecoder
from pipeline.loading.loader import Loader
from pipeline.shards.shard_set import ShardSet

folder, kind, story = sys.argv[1:]
shards = ShardSet.open(Path(folder))
options = LoaderOptions(2, 32, dtype=torch.uint8, workers=2, data_timeout=1.0)
if story == "hangs":
    for tar in shards.tars:
        tar.unlink()
        os.mkfifo(tar)
decoder = ThreadDecoder(shards, options) if kind == "threads" else None
if story == "cache":
    batches = ResidentCache(shards, options, options.device, decoder=decoder)
else:
    batches = Loader(shards, options, decoder)
assert ("DALI" in batches.description) == (kind == "dali")
for _ in range(9):
    next(batches)
print("done")
"""


WARNINGS = ("-W", "error", "-W", "ignore::ResourceWarning")
"""A file that nobody closed is what some of these processes are about."""


def run_process(shards, tmp_path, kind, story):
    if kind == "dali":
        require("dali")
    script = tmp_path / "process.py"
    script.write_text(PROCESS)
    return run_command(sys.executable, *WARNINGS, script, shards.folder, kind, story, cwd=tmp_path)


@pytest.mark.parametrize("kind", KINDS)
def test_a_process_whose_loader_hangs_ends_with_the_error(spare_set, tmp_path, kind):
    ended = run_process(spare_set, tmp_path, kind, "hangs")
    assert ended.returncode == 1
    assert ended.stdout == ""
    assert "stuck while reading" in ended.stderr
    assert "Fatal" not in ended.stderr


@pytest.mark.parametrize(("kind", "story"), [("dali", "stream"), ("threads", "cache")])
def test_a_process_that_never_closes_ends_cleanly(numbered_set, tmp_path, kind, story):
    ended = run_process(numbered_set(12, 5), tmp_path, kind, story)
    assert ended.stderr == ""
    assert (ended.returncode, ended.stdout) == (0, "done\n")
