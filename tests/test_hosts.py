"""Training over hosts: one net, whatever the network does, and an end in time when one is lost."""

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from dcgan.rundir.folder import RunFolder
from tests.fault_store import FaultStore
from tests.hosts import Hosts, torchrun
from tests.needs import require
from tests.packing_runs import waited
from tests.pictures import numbered_pictures, pack_pictures
from tests.ranks import end, start
from tests.running import TINY, flags

STEPS = 14
OPTIONS = TINY | {"max_steps": STEPS, "log_every": 2, "ema_nimg": 0, "checkpoint_every": 0}
ENDLESS = OPTIONS | {"shards": "synthetic", "max_steps": 100_000}

IMPATIENT = 6
"""Seconds without a heartbeat after which a rank counts as lost in tests; for users, 60."""


@pytest.fixture
def hosts(tmp_path: Path) -> Iterator[Hosts]:
    require("netns")
    (tmp_path / "hosts").mkdir()
    with Hosts(tmp_path / "hosts", "ab") as hosts:
        yield hosts


class Told:
    """What ranks on hosts wrote, each host to a file, and how they ended."""

    def __init__(self, hosts: Hosts, folder: Path) -> None:
        self._hosts, self._folder = hosts, folder
        self._running: dict[str, subprocess.Popen[bytes]] = {}

    def train(self, name: str, *options: object, **flagged: object) -> None:
        words = ["tests.impatient", *flags(**flagged)]
        with self._file(name).open("ab") as output:
            self._running[name] = torchrun(
                self._hosts, name, words, *options, output=output, IMPATIENT=str(IMPATIENT)
            )

    def by(self, name: str) -> str:
        return self._file(name).read_text()

    def ended(self, name: str, seconds: float = 120) -> int:
        return self._running[name].wait(seconds)

    def _file(self, name: str) -> Path:
        return self._folder / f"told-by-{name}"


@pytest.fixture
def told(hosts: Hosts, tmp_path: Path) -> Told:
    return Told(hosts, tmp_path)


# The hosts of these tests


ASK = "import socket; print(socket.gethostname(), socket.gethostbyname('b'))"
CALL = "import socket; socket.create_connection(('b', 80), timeout=0.3)"
ANSWER = "import socket; s = socket.create_server(('b', 80)); print(flush=True); s.accept()"


def test_hosts_reach_each_other_until_a_link_loses_everything(hosts, tmp_path):
    with (tmp_path / "said").open("wb") as output:
        assert hosts["a"].start(sys.executable, "-c", ASK, output=output).wait() == 0
        assert (tmp_path / "said").read_text() == "a 10.0.0.2\n"
        hosts["b"].start(sys.executable, "-c", ANSWER, output=output)
        assert waited(lambda: (tmp_path / "said").read_text().endswith("\n\n"), 10)
        assert hosts["a"].start(sys.executable, "-c", CALL, output=output).wait() == 0
        hosts.lose("b", 1.0)
        assert hosts["a"].start(sys.executable, "-c", CALL, output=output).wait() == 1
    assert "TimeoutError" in (tmp_path / "said").read_text()


# One net


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    folder = tmp_path_factory.mktemp("root") / "bucket"
    return pack_pictures(folder, numbered_pictures(43), per_shard=8)


@pytest.fixture(scope="module")
def wanted(shards, tmp_path_factory):
    """The run of two ranks on this machine."""
    run = RunFolder(tmp_path_factory.mktemp("one") / "run")
    words = flags(**OPTIONS, shards=shards.folder, run=run.path)
    ended = end(start(2, "-m", "dcgan.train", *words))
    assert [status for status, *_ in ended] == [0, 0], ended
    return run


def nets(run: RunFolder) -> list[bytes]:
    return [path.read_bytes() for path in (run.generator, run.discriminator)]


@pytest.mark.slow
@pytest.mark.parametrize("place", ["shared folder", "store"])
def test_two_hosts_train_the_net_of_one(hosts, told, shards, wanted, tmp_path, place):
    """One starts late; and from the store, over a link that loses packets."""
    options = OPTIONS | {"shards": shards.folder, "run": tmp_path / "run"}
    with hosts.at_the_switch():
        store = FaultStore(shards.folder.parents[1], "10.0.0.254")
    with store:
        if place == "store":
            options["shards"] = f"{store.url}/bucket/{shards.folder.name}"
            options["shard_cache"] = tmp_path / "cache"
            for name in "ab":
                hosts.lose(name, 0.05)
        told.train("a", **options)
        time.sleep(20 if place == "shared folder" else 0)
        told.train("b", **options)
        assert [told.ended(name) for name in "ab"] == [0, 0], told.by("a") + told.by("b")
    assert nets(RunFolder(tmp_path / "run")) == nets(wanted)
    assert told.by("b").count("Loss_D") == 0


# Ends


def begin(told: Told, run: RunFolder, *options: object, names: str = "ab", **changes: int) -> None:
    for name in names:
        told.train(name, *options, **ENDLESS | {"run": run.path} | changes)
    assert waited(lambda: run.stats.exists(), 90), told.by("a") + told.by("b")


def lose(hosts: Hosts, how: str, name: str) -> None:
    if how == "unreachable":
        hosts.lose(name, 1.0)
    elif how == "switched off":
        hosts.lose(name, 1.0)
        hosts[name].die()
    elif how == "killed":
        hosts[name].die()
    else:
        hosts[name].stop()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "name"),
    [
        ("unreachable", "a"),
        ("unreachable", "b"),
        ("switched off", "b"),
        ("killed", "a"),
        ("killed", "b"),
        ("stopped", "a"),
        ("stopped", "b"),
    ],
)
def test_a_lost_host_ends_the_others_in_time_by_name(hosts, told, tmp_path, how, name):
    run = RunFolder(tmp_path / "run")
    begin(told, run)
    began = time.monotonic()
    lose(hosts, how, name)
    other = "b" if name == "a" else "a"
    assert told.ended(other) == 1
    # torchrun, too, has ended; it gives a rank that is told to end half a minute
    assert time.monotonic() - began < 3 * IMPATIENT
    said = told.by(other)
    parts = ("error: ", "\n  found   ", "\n  wanted  all ranks until the end\n  do      ")
    assert all(part in said for part in parts), said
    assert f"host {name}\n" in said or how == "killed", said
    assert "Training broke off" in run.log.read_text() or other == "b"
    newest = max(run.checkpoints.glob("*.json"))
    assert newest.with_suffix(".pt").exists()


@pytest.mark.slow
def test_of_three_hosts_two_name_the_third(tmp_path):
    require("netns")
    with Hosts(tmp_path, "abc") as hosts:
        told = Told(hosts, tmp_path)
        begin(told, RunFolder(tmp_path / "run"), names="abc", batch_size=9)
        hosts.lose("b", 1.0)
        for name in "ac":
            assert told.ended(name) == 1
            assert "error: rank 1 of 3, on host b\n" in told.by(name)


@pytest.mark.slow
def test_a_killed_rank_is_replaced_on_its_host(hosts, told, tmp_path):
    run = RunFolder(tmp_path / "run")
    begin(told, run, "--max-restarts", 1, max_steps=200)
    hosts["b"].kill()
    assert [told.ended(name) for name in "ab"] == [0, 0], told.by("a") + told.by("b")
    assert "resumed  after" in told.by("a")


@pytest.mark.slow
def test_names_that_stand_for_loopback_are_told(tmp_path):
    require("netns")
    with Hosts(tmp_path, "ab", known=False) as hosts:
        asked = Told(hosts, tmp_path)
        for name in "ab":
            asked.train(name, **OPTIONS | {"shards": "synthetic", "run": tmp_path / "run"})
        assert [asked.ended(name) for name in "ab"] == [1, 1]
        assert "error: GLOO_SOCKET_IFNAME on host a\n" in asked.by("a")
        assert "eth0" in asked.by("a")
