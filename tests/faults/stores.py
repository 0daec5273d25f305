"""Stores that go away, lie, refuse or dawdle under a run, and harm to the shard cache."""

import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from pipeline.files import file_digest
from pipeline.remote.cache import ShardCache
from tests.fault_store import Fault, FaultStore
from tests.faults.cases import Case
from tests.faults.harm import fill, flip, make_room
from tests.faults.lab import FailedError, Lab, line
from tests.faults.runs import CLEAR, EXACT, STATUS, UNHARMED, Training, small_set, whole
from tests.packing_runs import tree
from tests.running import run_command

OBJECTS = 14
"""That a first epoch asks for: manifest, labels, and an index and a tar for each of six shards."""


@contextmanager
def _served(lab: Lab) -> Iterator[FaultStore]:
    """The small set in a store of its own, which may be harmed."""
    whole(lab)
    shutil.copytree(small_set(lab), lab.folder / "root" / "set")
    with FaultStore(lab.folder / "root") as store:
        yield store


def _training(lab: Lab, store: FaultStore, run: str = "run", **options: Any) -> Training:
    given = {"shard_cache": lab.folder / "cache"} | options
    return Training(lab, given.pop("shards", f"{store.url}/set"), lab.folder / run, **given)


def _passing(lab: Lab, fault: Callable[[Lab], Fault]) -> str:
    """What is over before patience is: the run waits, and is none the worse."""
    with _served(lab) as store:
        store.faults.append(fault(lab))
        _training(lab, store).go_to_the_end()
        lab.faults += 1
        _require(store.faults[0].matched > 0, "a fault that met no request")
    return UNHARMED


def _any_object(lab: Lab) -> int:
    return lab.random.randrange(OBJECTS)


def _gone(lab: Lab) -> Fault:
    return Fault("set/*", after=_any_object(lab), times=1, gone=lab.random.uniform(0.1, 2))


def _slow(lab: Lab) -> Fault:
    return Fault("set/*.tar", rate=lab.random.choice((2e4, 1e5)))


def _cut(lab: Lab) -> Fault:
    cut = lab.random.randrange(9000)
    return Fault("set/*.tar", after=lab.random.randrange(4), times=2, cut=cut)


def _busy(lab: Lab, status: int, **headers: str) -> Fault:
    times = lab.random.randint(1, 3)
    return Fault("set/*", after=_any_object(lab), times=times, status=status, headers=headers)


def _elsewhere(lab: Lab) -> str:
    """A web server that sends its readers to another one, as those with a CDN do."""
    with _served(lab) as store, FaultStore(lab.folder / "root") as other:
        location = {"Location": f"{other.url}/set/shard-000002.tar"}
        store.faults.append(Fault("set/shard-000002.tar", status=307, headers=location))
        _training(lab, store).go_to_the_end()
        lab.faults += 1
        _require(not any(each.signed for each in other.requests), "credentials went elsewhere")
        _require(bool(other.requests), "nobody followed the redirect")
    return UNHARMED


def _refused(lab: Lab, said: str, name: str, **what: Any) -> str:
    """What the store does not take back; when it is over, the same command goes on."""
    with _served(lab) as store:
        bucket = {"shards": "s3://set", "endpoint": store.url} if "code" in what else {}
        training = _training(lab, store, **bucket)
        store.faults.append(Fault(name, **what))
        training.go().refused(said)
        lab.faults += 1
        store.faults.clear()
        training.go_to_the_end()
    return CLEAR


def _another(lab: Lab) -> str:
    tar, other = lab.random.sample([f"set/shard-{number:06d}.tar" for number in range(5)], 2)
    return _refused(lab, "shard-", tar, instead=other)


def _gone_for_good(lab: Lab) -> str:
    """With the set in the cache, nobody misses the store."""
    with _served(lab) as store:
        training = _training(lab, store)
        training.go(line(STATUS, lab.random.randint(3, 6)))  # killed, after the first epoch
        store.go_away()
        lab.faults += 1
        training.go_to_the_end()
    return EXACT


def _killed(lab: Lab) -> str:
    """In the middle of fetches, again and again."""
    with _served(lab) as store:
        training = _training(lab, store)
        for _ in range(3):
            store.faults[:] = [Fault("set/*.tar", rate=lab.random.choice((1e4, 3e4)))]
            begun = len(store.requests)
            count = lab.random.randint(1, 5)
            training.go(lambda running: len(store.requests) >= begun + count)  # noqa: B023
        store.faults.clear()
        training.go_to_the_end()
        _no_leftovers(lab)
    return EXACT


def _no_leftovers(lab: Lab) -> None:
    left = [path.name for path in (lab.folder / "cache").rglob("*.partial")]
    _require(not left, f"left in the cache: {left}")


def _two_runs(lab: Lab) -> str:
    """In a cache that is full of what nobody needs any more."""
    with _served(lab) as store:
        size = sum(path.stat().st_size for path in small_set(lab).iterdir())
        cache = ShardCache(lab.folder / "cache")
        for number in range(20):
            older = lab.folder / "older"
            older.write_bytes(lab.random.randbytes(size // 20) + bytes([number]))
            cache.adopt(older, file_digest(older))
        both = {"shard_cache_size": f"{size + 20_000}B"}
        trainings = [_training(lab, store, name, **both) for name in ("one", "two")]
        with ThreadPoolExecutor() as threads:
            done = [threads.submit(_beside, lab, training) for training in trainings]
        lab.faults += 1
        for run in done:
            run.result()
        for training in trainings:
            training.go_to_the_end()
        held = sum(path.stat().st_size for path in _cached(lab))
        _require(held <= size + 20_000, f"{held} bytes in a cache of {size}")
    return UNHARMED


def _beside(lab: Lab, training: Training) -> None:
    """Run to the end while another one does."""
    done = run_command(*training.words(), cwd=lab.folder)
    if done.returncode:
        raise FailedError(done.stdout + done.stderr)


def _changed_bit(lab: Lab) -> str:
    with _served(lab) as store:
        _training(lab, store, "first").go().finished()
        flip(lab.random.choice(_cached(lab)), lab.random)
        lab.faults += 1
        _training(lab, store).go_to_the_end()
    return UNHARMED


def _cached(lab: Lab) -> list[Path]:
    return sorted((lab.folder / "cache" / "sha256").glob("*/*"))


def _full_disk(lab: Lab) -> str:
    with _served(lab) as store:
        disk = lab.small_disk(8)
        training = _training(lab, store, shard_cache=disk / "cache")
        (disk / "cache").mkdir()
        fill(disk, int(lab.random.choice((0, 3e4, 6e4))))
        lab.faults += 1
        training.go().refused("--shard-cache")
        make_room(disk)
        training.go_to_the_end()
    return CLEAR


def _of_another(lab: Lab) -> str:
    """A folder that we may read, and not write."""
    with _served(lab) as store:
        cache = lab.folder / "cache"
        cache.mkdir()
        (cache / "theirs.txt").write_text("theirs")
        lab.read_only(cache)
        lab.faults += 1
        training = _training(lab, store)
        training.go().refused("--shard-cache")
        _require(tree(cache) == {"theirs.txt": b"theirs"}, "something of theirs has changed")
        lab.writable(cache)
        training.go_to_the_end()
    return CLEAR


def _paths(lab: Lab) -> str:
    """A manifest that names files elsewhere."""
    with _served(lab) as store:
        path = store.folder / "set" / "manifest.json"
        honest = path.read_bytes()
        name = lab.random.choice((b"../../shard-000", b"/etc/passwd-000", b"..%2fshard-000"))
        path.write_bytes(honest.replace(b"shard-000000", name))
        lab.faults += 1
        training = _training(lab, store)
        training.go().refused("manifest.json")
        _require(len(store.requests) == 1, "more than the manifest was asked for")
        path.write_bytes(honest)
        training.go_to_the_end()
    return CLEAR


def _require(holds: bool, what: str) -> None:
    if not holds:
        raise FailedError(what)


CASES = (
    Case("store gone for a moment, at any request", partial(_passing, fault=_gone), 6),
    Case("store gone for good after the first epoch", _gone_for_good, 2),
    Case("slow store", partial(_passing, fault=_slow), 2),
    Case("object cut in the middle", partial(_passing, fault=_cut), 3),
    *(
        Case(f"{status} {told} Retry-After", partial(_passing, fault=partial(_busy, **what)), 2)
        for status in (429, 503)
        for told, what in (
            ("without", {"status": status}),
            ("with", {"status": status, "Retry-After": "1"}),
        )
    ),
    Case("redirect to another host", _elsewhere, 1),
    Case("another object under a tar's name", _another, 2),
    *(
        Case(name, partial(_refused, said=said, name="set/*", **what), 1)
        for name, said, what in (
            ("403 from the store", "credentials", {"status": 403}),
            ("404 from the store", "no such object", {"status": 404}),
            ("wrong clock", "clock", {"status": 403, "code": "RequestTimeTooSkewed"}),
        )
    ),
    Case("fetches killed", _killed, 3),
    Case("two runs that evict at once", _two_runs, 2),
    Case("bit flipped in the cache", _changed_bit, 4),
    Case("disk full under the cache", _full_disk, 2),
    Case("cache folder of another user", _of_another, 1),
    Case("manifest that names paths", _paths, 3),
)
