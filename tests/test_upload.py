"""Sets that are packed into a store: what is there in the end, whose it is, and how it goes on."""

import shutil
import threading
from dataclasses import dataclass
from pathlib import Path

import pytest

from pipeline.errors import UserError
from pipeline.packing.pack import Packed, Packing, pack
from pipeline.packing.shard import write_shard
from pipeline.packing.sources.open import open_source
from pipeline.packing.upload import CLAIM, NOTES, Upload, staging
from pipeline.remote.access import Access
from pipeline.remote.address import Address
from pipeline.remote.cache import ShardCache
from pipeline.remote.open import open_set
from pipeline.remote.store import Store
from pipeline.shards.manifest import MANIFEST, PROGRESS
from pipeline.shards.shard_set import ShardSet
from tests.fault_store import Fault, FaultStore
from tests.packing_runs import four_parts, in_process, pack_folder, run_here, tree, waited
from tests.pictures import contents, names_in, numbered_pictures, write_pictures
from tools.make_shards import main

__all__ = ["in_process"]  # a fixture

pytestmark = pytest.mark.usefixtures("in_process")

OPTIONS = {"per_shard": 4, "max_rejects": 0.5}


class Killed(BaseException):
    """Stands for SIGKILL: no handler of ours catches it."""


@pytest.fixture(autouse=True)
def _credentials(monkeypatch):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "x")


@pytest.fixture
def pictures(tmp_path):
    """Fourteen pictures and two files that are none: four shards."""
    files = numbered_pictures(14) | {"bad.jpg": b"<html>", "worse.jpg": b""}
    return write_pictures(tmp_path / "pictures", files)


@pytest.fixture
def local(pictures, tmp_path):
    """The same set in a folder."""
    pack_folder(pictures, tmp_path / "local", **OPTIONS)
    return contents(tmp_path / "local")


@dataclass
class Place:
    """A folder that is a store, and a cache."""

    pictures: Path
    there: Path
    address: Address
    cache: Path

    @property
    def staging(self) -> Path:
        return staging(self.address, Access(cache=self.cache))

    def send(self, **options: object) -> Packed:
        source = open_source(self.pictures)
        packing = Packing(**(OPTIONS | options))  # type: ignore[arg-type]
        access = Access(self.address.endpoint, self.cache)
        return pack(source, source.members(), self.address, packing, access=access)

    def refused(self, **options: object) -> UserError:
        """The error, which leaves what is in the store as it is."""
        before = tree(self.there)
        with pytest.raises(UserError) as caught:
            self.send(**options)
        assert tree(self.there) == before
        assert caught.value.where == f"--out {self.address}"
        return caught.value

    def elsewhere(self) -> "Place":
        """The same place as another machine sees it."""
        return Place(self.pictures, self.there, self.address, self.cache.with_name("other-cache"))


@pytest.fixture
def place(pictures, tmp_path):
    there = tmp_path / "there" / "set"
    return Place(pictures, there, Address.parse(f"file://{there}"), tmp_path / "cache")


@pytest.fixture
def cut_off(place, monkeypatch):
    """The place after its packing was killed with two of four shards sent, while it packed on."""
    with monkeypatch.context() as patch:
        patch.setattr("tests.packing_runs.write_shard", killed_at_the_third(place.staging))
        with pytest.raises(Killed):
            place.send()
    return place


def killed_at_the_third(folder):
    def write(work, shard):
        if shard[0] == 2:
            notes = folder / PROGRESS / NOTES
            assert waited(lambda: notes.exists() and len(notes.read_text().splitlines()) == 4)
            raise Killed
        return write_shard(work, shard)

    return write


def test_what_comes_to_the_store_and_when(pictures, tmp_path, local):
    words = ["--out", "s3://bucket/set/", "--shard-cache", "a cache", "--per-shard", 4]
    with FaultStore(tmp_path) as store:
        words += ["--endpoint", store.url, "--max-rejects", 0.5]
        status, out, err = run_here(main, pictures, *words, cwd=tmp_path)
        sent = [request.name for request in store.requests if request.method == "PUT"]
        store.requests.clear()
        opened = open_set("s3://bucket/set", Access(store.url, tmp_path / "a cache"))
        assert [tar.read_bytes() for tar in opened.tars] == [
            data for name, data in sorted(local.items()) if name.endswith(".tar")
        ]
        assert [request.name for request in store.requests] == [f"bucket/set/{MANIFEST}"]
    assert (status, err) == (0, "")
    assert contents(tmp_path / "bucket" / "set") == local
    claim, *files, manifest = [name.removeprefix("bucket/set/") for name in sent]
    assert (claim, manifest) == (CLAIM, MANIFEST)
    assert {name[:5] for name in files[:8]} == {"shard"}
    assert sorted(files[8:]) == ["rejects.csv", "samples.csv"]
    assert f"shards  4 in s3://bucket/set, {len(b''.join(local.values())) / 1e6:.1f} MB" in out
    told = f"next    dcgan-train --shards s3://bucket/set --endpoint {store.url}"
    assert out.splitlines()[-1] == f"{told} --shard-cache 'a cache'"
    digests = ShardSet.open(tmp_path / "local").manifest.digests
    assert set(digests) == {*local} - {MANIFEST}
    cached = tree(tmp_path / "a cache" / "sha256")
    assert cached == {f"{sha[:2]}/{sha}": local[name] for name, sha in digests.items()}
    assert names_in(tmp_path / "a cache" / "packing") == []


def test_killed_it_goes_on_with_what_is_not_up_yet(cut_off, local, monkeypatch):
    assert names_in(cut_off.there) == sorted([CLAIM, *names_in_shards(0, 1)])
    sent, upload = [], Store.upload

    def noting(store, name, source, **options):
        sent.append(name)
        upload(store, name, source, **options)

    monkeypatch.setattr(Store, "upload", noting)
    done = cut_off.send()
    assert (done.resumed, done.written) == (2, 8)
    assert sorted(sent[:4]) == names_in_shards(2, 3)
    assert sent[-1] == MANIFEST
    assert len(sent) == 4 + 3
    assert contents(cut_off.there) == local
    assert not cut_off.staging.exists()


def test_what_is_up_is_sent_again_if_it_is_gone_or_another_now(cut_off, local):
    gone, other = names_in_shards(0)
    (cut_off.there / gone).unlink()
    (cut_off.there / other).write_bytes(b"of another version of a codec")
    notes = cut_off.staging / PROGRESS / NOTES
    noted = [line for line in notes.read_text().splitlines() if not line.endswith(other)]
    notes.write_text("\n".join([*noted, f"{'0' * 64}  {other}", "cut of"]))
    cut_off.send()
    assert contents(cut_off.there) == local


def names_in_shards(*numbers):
    return sorted(f"shard-{number:06d}.{suffix}" for number in numbers for suffix in ("tar", "idx"))


@pytest.fixture
def store(tmp_path):
    (tmp_path / "bucket").mkdir()
    with FaultStore(tmp_path) as store:
        yield store


@pytest.fixture
def s3(place, tmp_path, store):
    return Place(
        place.pictures,
        tmp_path / "bucket" / "set",
        Address.parse("s3://bucket/set", store.url),
        place.cache,
    )


def test_an_error_of_the_store_ends_it_and_the_same_command_goes_on(s3, store, local, monkeypatch):
    add = Upload.add

    def add_once_all_is_sent(upload, number):
        upload._queue.join()
        add(upload, number)

    store.faults.append(Fault("*/shard-000001.tar", "PUT", status=403, code="AccessDenied"))
    with monkeypatch.context() as patch:
        patch.setattr(Upload, "add", add_once_all_is_sent)
        patch.setattr("pipeline.packing.pack.merge", None)  # it does not come to that
        with pytest.raises(UserError, match=r"shard-000001\.tar"):
            s3.send()
    assert MANIFEST not in names_in(s3.there)
    store.faults.clear()
    before = len(store.requests)
    assert s3.send().resumed == 3
    again = {request.name for request in store.requests[before:] if request.method == "PUT"}
    assert "bucket/set/shard-000001.tar" in again
    assert "bucket/set/shard-000000.tar" not in again
    assert contents(s3.there) == local


@pytest.mark.parametrize(
    "fault",
    [
        Fault("bucket", "GET", status=404, code="NoSuchBucket"),
        Fault("bucket", "GET", status=403, code="AccessDenied"),
        Fault("*", "PUT", status=403, code="AccessDenied"),
    ],
    ids=["no-bucket", "unreadable", "unwritable"],
)
def test_a_store_of_no_use_is_told_before_anything_is_packed(s3, store, fault, monkeypatch):
    monkeypatch.setattr("pipeline.packing.pack.write_left", None)
    store.faults.append(fault)
    with pytest.raises(UserError) as caught:
        s3.send()
    assert "other entries" not in caught.value.found
    assert names_in(store.folder / "bucket") == []


def test_of_two_who_begin_at_once_one_is_refused(place, local, monkeypatch):
    both, begun = threading.Barrier(2), threading.Event()
    ended: list[object] = []
    sizes, add = Store.sizes, Upload.add

    def names_at_once(store):
        found = sizes(store)
        if not found and both.wait(5):  # each has seen that nothing is there
            assert begun.wait(5)
        return found

    def add_after_the_other(upload, number):
        begun.set()
        assert waited(lambda: ended)
        add(upload, number)

    def send(place):
        try:
            ended.append(place.send().resumed)
        except UserError as error:
            ended.append(error.found)

    monkeypatch.setattr(Store, "sizes", names_at_once)
    monkeypatch.setattr(Upload, "add", add_after_the_other)
    threads = [threading.Thread(target=send, args=(each,)) for each in (place, place.elsewhere())]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    refused = "an unfinished set that is packed elsewhere, or with another --shard-cache"
    assert ended == [refused, 0]
    assert contents(place.there) == local


def test_a_set_that_came_just_before_the_claim_is_left_alone(place, pictures, local, monkeypatch):
    upload = Store.upload

    def come_before(store, name, source, **options):
        if name == CLAIM:
            write_pictures(place.there, local)
        upload(store, name, source, **options)

    monkeypatch.setattr(Store, "upload", come_before)
    with pytest.raises(UserError, match="a complete shard set"):
        place.send(seed=1)
    assert contents(place.there) == local


def test_an_unfinished_set_is_its_packers_alone(cut_off, pictures, tmp_path):
    assert "packed elsewhere" in cut_off.elsewhere().refused().found
    error = cut_off.refused(seed=1)
    assert error.found == "an unfinished set with other options: seed 0"
    assert "repeat the command" in error.remedy
    shutil.rmtree(cut_off.there)  # with the store's own tool
    cut_off.send(seed=1)
    pack_folder(pictures, tmp_path / "local", seed=1, **OPTIONS)
    assert contents(cut_off.there) == contents(tmp_path / "local")


def test_a_manifest_that_somebody_else_put_there_meanwhile_stays(cut_off, monkeypatch):
    sizes = Store.sizes
    without = lambda store: {n: size for n, size in sizes(store).items() if n != MANIFEST}  # noqa: E731
    monkeypatch.setattr(Store, "sizes", without)
    (cut_off.there / MANIFEST).write_bytes(b"theirs")
    with pytest.raises(UserError, match="a complete shard set") as caught:
        cut_off.send()
    assert str(cut_off.staging) in caught.value.remedy
    assert (cut_off.there / MANIFEST).read_bytes() == b"theirs"


def test_a_lost_answer_is_not_taken_for_somebody_elses_set(place, local, monkeypatch):
    upload = Store.upload

    def twice(*words, new=False):
        upload(*words, new=new)
        if new:
            upload(*words, new=new)

    monkeypatch.setattr(Store, "upload", twice)
    place.send()
    assert contents(place.there) == local


def test_killed_between_store_and_cache_the_rest_is_moved(place, local, monkeypatch):
    def adopt_three(cache, path, sha256):
        if len(adopted) == 3:
            raise Killed
        adopt(cache, path, sha256)
        adopted.append(path)

    adopt, adopted = ShardCache.adopt, []
    with monkeypatch.context() as patch:
        patch.setattr(ShardCache, "adopt", adopt_three)
        with pytest.raises(Killed):
            place.send()
    assert len(names_in(place.staging)) == len(local) - 3
    assert place.refused().found == "a complete shard set"
    assert not place.staging.exists()
    assert sorted(tree(place.cache / "sha256").values()) == sorted(
        data for name, data in local.items() if name != MANIFEST
    )


@pytest.mark.parametrize("names", [["holiday.jpg"], ["shard-000000.tar", "shard-000000.idx"]])
def test_what_somebody_else_put_there_is_left_alone(place, names):
    write_pictures(place.there, dict.fromkeys(names, b"theirs"))
    assert place.refused().found.startswith(f"{len(names)} other entries: ")
    assert not place.staging.exists()


def test_a_file_that_came_to_an_unfinished_set_is_left_alone(cut_off):
    (cut_off.there / "notes.txt").write_bytes(b"theirs")
    assert cut_off.refused().found == "1 other entries: notes.txt"


@pytest.mark.parametrize(
    ("words", "where"),
    [
        ("--out s3://bucket/set --overwrite", "--overwrite"),
        ("--out https://host/set", "--out https://host/set"),
        ("--out ftp://host/set", "--out"),
        ("--out set --endpoint http://host", "--endpoint http://host"),
        ("--shard-cache cache", "--shard-cache cache"),
    ],
)
def test_what_cannot_be_is_refused_before_the_source_is_read(tmp_path, words, where):
    status, _, err = run_here(main, "nope", *words.split(), cwd=tmp_path)
    assert status == 1
    assert four_parts(err)[0].startswith(where)
    assert names_in(tmp_path) == []
