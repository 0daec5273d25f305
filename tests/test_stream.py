"""The stream and its watchdog: damage and silence become errors that say where."""

import os
import sys
import tarfile
import threading
import time
from io import FileIO
from itertools import count

import numpy as np
import pytest
import torch

from pipeline.errors import UserError
from pipeline.loading.batches import LoaderOptions
from pipeline.loading.decoders import RawDecoder
from pipeline.loading.fallback import ThreadDecoder
from pipeline.loading.loader import Loader
from pipeline.loading.stream import Stream
from tests.needs import require, take, within
from tests.pictures import numbers
from tests.running import assert_four_parts, run_command

KINDS = ["dali", "threads"]
TIMEOUT = 1.0


def make_decoder(kind, shards, batch_size=2):
    options = LoaderOptions(batch_size, 32, workers=2)
    if kind == "threads":
        return ThreadDecoder(shards, options)
    require("dali")
    from pipeline.loading.dali import DaliDecoder

    return DaliDecoder(shards, options)


@pytest.fixture
def open_stream(monkeypatch):
    """Streams that are closed when the test ends; those that hang are not waited for."""
    monkeypatch.setattr("pipeline.loading.stream.CLOSING_PATIENCE", 0.5)
    opened = []

    def open_(shards, decoder, plan, timeout=20.0):
        opened.append(Stream(shards, decoder, plan, timeout))
        return opened[-1]

    yield open_
    for stream in opened:
        within(20, stream.close)


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
    for file in files:  # those of streams that could not be closed
        file.close()


def loader_threads():
    names = ("loader", "decode")
    return [thread for thread in threading.enumerate() if thread.name.startswith(names)]


def pairs(rows=12):
    """A plan: all rows in their order, two a batch."""
    return iter(np.arange(rows).reshape(-1, 2))


# Batches


@pytest.mark.parametrize("kind", KINDS)
def test_batches_are_those_of_the_plan_with_their_rows(open_stream, numbered_set, kind):
    shards = numbered_set(12, 5)
    keys = [int(key) for key in _keys(shards)]
    plan = [np.array(rows) for rows in ([3, 1], [11, 0], [3, 3], [7], [5, 2])]  # one is shorter
    stream = open_stream(shards, make_decoder(kind, shards), iter(plan))
    for expected in plan:
        rows, images = within(30, stream.take)
        assert np.array_equal(rows, expected)
        assert numbers(images) == [keys[row] for row in expected]
    for _ in range(2):
        with pytest.raises(StopIteration):
            within(30, stream.take)


def _keys(shards):
    names = []
    for tar in shards.tars:
        with tarfile.open(tar) as archive:
            names += [name.partition(".")[0] for name in archive.getnames()]
    return names


@pytest.mark.parametrize("kind", KINDS)
def test_a_closed_stream_has_no_threads_and_no_batches(open_stream, numbered_set, kind):
    shards = numbered_set(12, 5)
    endless = (np.array([number % 12, 5]) for number in count())
    stream = open_stream(shards, make_decoder(kind, shards), endless)
    within(30, stream.take)
    within(20, stream.close)
    assert loader_threads() == []
    with pytest.raises(StopIteration):
        within(30, stream.take)


# Damage


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("damage", ["zeros", "half"])
def test_a_damaged_image_is_named_after_the_batches_before_it(open_stream, spare_set, kind, damage):
    tar, place = spare_set.tars[1], 2  # row 7, in the fourth batch
    with tarfile.open(tar) as archive:
        member = archive.getmembers()[place]
    kept = 0 if damage == "zeros" else member.size // 2
    with tar.open("r+b") as file:
        file.seek(member.offset_data + kept)
        file.write(bytes(member.size - kept))
    stream = open_stream(spare_set, make_decoder(kind, spare_set), pairs())
    for _ in range(3):
        within(30, stream.take)
    with pytest.raises(UserError) as error:
        within(30, lambda: [stream.take() for _ in range(3)])
    key = member.name.removesuffix(".jpg")
    assert_four_parts(error.value, "does not decode")
    assert error.value.where == str(tar)
    assert f"sample {key} " in error.value.found


@pytest.mark.parametrize("kind", KINDS)
def test_a_shard_that_was_cut_is_named(open_stream, spare_set, kind):
    decoder = make_decoder(kind, spare_set)
    stream = open_stream(spare_set, decoder, pairs())
    os.truncate(spare_set.tars[1], 700)
    with pytest.raises(UserError) as error:
        within(30, lambda: [stream.take() for _ in range(6)])
    assert_four_parts(error.value, str(spare_set.tars[1]), "ends before byte")
    with pytest.raises(UserError):  # and it stays an error
        within(30, stream.take)


# Silence


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shard", [0, 2])
def test_a_shard_that_does_not_answer_is_an_error_in_time(
    open_stream, spare_set, silence, kind, shard
):
    stream = open_stream(spare_set, make_decoder(kind, spare_set), pairs(), TIMEOUT)
    silence(spare_set.tars[shard])
    start = time.monotonic()
    with pytest.raises(UserError) as error:
        within(30, lambda: [stream.take() for _ in range(6)])
    # Each batch before the silent shard may take its time, too
    assert TIMEOUT <= time.monotonic() - start < 10
    assert_four_parts(error.value, "--data-timeout", "stuck while reading", f"{TIMEOUT:g} s")
    assert error.value.where == str(spare_set.tars[shard])
    within(5, stream.close)


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

    def deliver(self, decoded, out):
        return decoded


@pytest.mark.parametrize("stuck_at", [0, 3])
def test_a_decoder_that_does_not_answer_is_an_error_in_time(open_stream, numbered_set, stuck_at):
    decoder = StuckDecoder(stuck_at)
    stream = open_stream(numbered_set(12, 5), decoder, pairs(), TIMEOUT)
    for number in range(stuck_at):
        _, images = within(30, stream.take)
        assert images.unique().tolist() == [number]
    with pytest.raises(UserError) as error:
        within(30, stream.take)
    assert_four_parts(error.value, "stuck while decoding", "--data-timeout")
    start = time.monotonic()
    within(20, stream.close)
    assert time.monotonic() - start < 5
    decoder.gate.set()


def test_after_an_error_of_silence_a_batch_that_comes_late_is_taken(open_stream, numbered_set):
    decoder = StuckDecoder(1)
    stream = open_stream(numbered_set(12, 5), decoder, pairs(), TIMEOUT)
    within(30, stream.take)
    with pytest.raises(UserError):
        within(30, stream.take)
    decoder.gate.set()
    assert [within(30, stream.take)[1].max().item() for _ in range(5)] == [1, 2, 3, 4, 5]


def test_a_loader_hands_its_timeout_on(spare_set, silence, monkeypatch):
    monkeypatch.setattr("pipeline.loading.stream.CLOSING_PATIENCE", 0.5)
    for tar in spare_set.tars:
        silence(tar)
    decoder = make_decoder("threads", spare_set)
    loader = Loader(spare_set, LoaderOptions(2, 32, data_timeout=TIMEOUT), decoder)
    with pytest.raises(UserError, match=f"no batch for {TIMEOUT:g} s"):
        take(loader, 1)
    within(5, loader.close)


# Processes

PROCESS = """
import os
import sys
from pathlib import Path
import torch
from pipeline.loading.batches import LoaderOptions
from pipeline.loading.cache import ResidentCache
from pipeline.loading.fallback import ThreadDecoder
from pipeline.loading.loader import Loader
from pipeline.shards.manifest import ShardSet

folder, kind, story = sys.argv[1:]
shards = ShardSet.open(Path(folder))
options = LoaderOptions(2, 32, dtype=torch.uint8, workers=2, data_timeout=1.0)
if story == "hangs":
    for tar in shards.tars:
        tar.unlink()
        os.mkfifo(tar)
loader = Loader(shards, options, ThreadDecoder(shards, options) if kind == "threads" else None)
assert ("DALI" in loader.description) == (kind == "dali")
batches = loader if story != "cache" else ResidentCache(loader, options.device)
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


@pytest.mark.parametrize("story", ["stream", "cache"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_process_that_never_closes_ends_cleanly(numbered_set, tmp_path, kind, story):
    ended = run_process(numbered_set(12, 5), tmp_path, kind, story)
    assert ended.stderr == ""
    assert (ended.returncode, ended.stdout) == (0, "done\n")
