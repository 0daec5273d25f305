"""Objects come whole, with their digest, or not at all and with a message that tells no secret."""

import errno
import hashlib
import io
import os
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pipeline.errors import UserError
from pipeline.remote.address import Address
from pipeline.remote.refusals import MissingError, UnreachableError
from pipeline.remote.store import Store
from tests.fault_store import Fault, FaultStore

DATA = bytes(range(256)) * 8000
DIGEST = hashlib.sha256(DATA).hexdigest()
SECRET = "hunter2"
"""A password; no message holds it."""

FOREVER = float("inf")


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Of somebody without credentials, on a machine that is no cloud's."""
    for name in os.environ:
        if name.startswith(("AWS_", "AZURE_", "NETRC")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    (tmp_path / "home").mkdir()
    return tmp_path / "home"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[FaultStore]:
    folder = tmp_path / "bucket/set"
    folder.mkdir(parents=True)
    (folder / "a.tar").write_bytes(DATA)
    with FaultStore(tmp_path) as server:
        yield server


def over_http(server: FaultStore, patience: float = 20) -> Store:
    return Store(Address.parse(f"{server.url}/bucket/set"), patience=patience)


def over_s3(server: FaultStore) -> Store:
    return Store(Address.parse("s3://bucket/set", server.url), "--out", patience=20)


def download(store: Store, name: str = "a.tar", size: int | None = None) -> bytes:
    """What a file holds afterwards that held something else before."""
    file = io.BytesIO(b"x" * (len(DATA) + 1))
    file.seek(7)
    counts: list[int] = []
    digest = store.download(name, file, size, counts.append)
    assert digest == hashlib.sha256(file.getvalue()).hexdigest()
    assert sum(counts) >= len(file.getvalue())
    return file.getvalue()


@pytest.mark.parametrize(
    ("fault", "answers"),
    [
        (Fault(times=0), [200]),
        (Fault(times=1, cut=1_000_000), [200, 206]),
        (Fault(times=2, status=429, headers={"Retry-After": "1"}), [429, 429, 200]),
        (Fault(times=1, status=503), [503, 200]),
        (Fault(times=1, gone=0.05), [0, 200]),
    ],
    ids=["none", "cut", "429", "503", "gone"],
)
def test_a_download_outlasts_what_passes(server, fault, answers):
    server.faults.append(fault)
    assert download(over_http(server), size=len(DATA)) == DATA
    assert [request.status for request in server.requests] == answers


def test_slow_is_not_silent(server):
    server.faults.append(Fault(rate=len(DATA) * 2))  # half a second; a silence is an eighth
    assert download(over_http(server, patience=0.5)) == DATA
    assert len(server.requests) == 1


def test_patience_is_without_progress(server):
    server.faults.append(Fault(cut=300_000, rate=6e6))  # 20 times a second, 8 times in all
    assert download(over_http(server, patience=0.2)) == DATA


def test_an_object_replaced_while_it_comes_is_read_anew(server, tmp_path):
    server.faults.append(Fault(times=1, cut=1_000_000))
    file, store = io.BytesIO(), over_http(server)

    def replace(count: int) -> None:
        if len(server.requests) == 1:
            (tmp_path / "bucket/set/a.tar").write_bytes(DATA[::-1])

    assert store.download("a.tar", file, progress=replace) == hashlib.sha256(DATA[::-1]).hexdigest()
    assert file.getvalue() == DATA[::-1]
    assert [request.status for request in server.requests] == [200, 412, 200]


LOGIN = "~/.netrc"


@pytest.mark.parametrize(
    ("fault", "kind", "words"),
    [
        (Fault(status=503), UnreachableError, "503 Service Unavailable, for 0.2 seconds"),
        (Fault(status=429), UnreachableError, "429 Too Many Requests, for 0.2 seconds"),
        (Fault(gone=FOREVER, times=1), UnreachableError, "the connection is refused, for 0.2"),
        (Fault(stall=60), UnreachableError, "no answer, or one that stands still"),
        (Fault(cut=0), UnreachableError, "an answer that is cut off"),
        (Fault(status=401), UserError, LOGIN),
        (Fault(status=403, code="AccessDenied"), UserError, "403 Forbidden (AccessDenied)"),
        (Fault(status=403, code="RequestTimeTooSkewed"), UserError, "set the clock"),
        (Fault(status=301), UserError, "a redirect that does not say where"),
        (Fault(status=400, code="AuthorizationHeaderMalformed"), UserError, "set AWS_REGION"),
        (Fault(status=404, code="NoSuchBucket"), MissingError, "no such bucket"),
        (Fault(instead="elsewhere"), MissingError, "no such object"),
        (Fault(status=302, headers={"Location": f"/?{SECRET}"}), UnreachableError, "redirects"),
        (Fault(status=400, code=f"<b>{SECRET}"), UserError, "400 Bad Request"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_does_not_pass_is_told_in_four_parts(server, fault, kind, words):
    server.faults.append(fault)
    with pytest.raises(UserError) as refused:
        over_http(server, patience=0.2).download("a.tar", io.BytesIO())
    assert type(refused.value) is kind
    assert words in str(refused.value)
    assert refused.value.where == f"--shards {server.url}/bucket/set/a.tar"
    assert SECRET not in str(refused.value)
    assert "http://" not in refused.value.found


def test_no_tls_is_told_at_once(server):
    address = Address.parse(f"{server.url}/bucket/set".replace("http", "https"))
    with pytest.raises(UnreachableError, match="no TLS"):
        Store(address).read("a.tar", 10)


def test_an_object_of_another_size_is_refused_before_it_comes(server):
    store, file = over_http(server), io.BytesIO()
    with pytest.raises(UserError, match=r"found   2,048,000 bytes\n  wanted  5,"):
        store.download("a.tar", file, size=5)
    with pytest.raises(UserError, match="at most 5"):
        store.read("a.tar", most=5)
    assert not file.getvalue()


def test_a_full_disk_is_no_fault_of_the_stores(server):
    class Full(io.BytesIO):
        def write(self, data: object) -> int:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(OSError, match="No space left"):
        over_http(server).download("a.tar", Full())
    assert len(server.requests) == 1


def test_what_is_known_already_is_not_sent_again(server, tmp_path):
    store = over_http(server)
    read = store.read_unless(None, "a.tar", len(DATA))
    assert read is not None
    assert read[0] == DATA
    assert store.read_unless(read[1], "a.tar", len(DATA)) is None
    (tmp_path / "bucket/set/a.tar").write_bytes(b"another")
    again = store.read_unless(read[1], "a.tar", len(DATA))
    assert again is not None
    assert again[0] == b"another"


def test_threads_share_a_store(server):
    store = over_http(server)
    with ThreadPoolExecutor(4) as threads:
        assert set(
            threads.map(lambda _: hashlib.sha256(download(store)).hexdigest(), range(8))
        ) == {DIGEST}


def test_a_login_goes_to_its_host_alone(server, home, tmp_path):
    (home / ".netrc").write_text(f"machine 127.0.0.1 login somebody password {SECRET}\n")
    (tmp_path / "other").mkdir()
    (tmp_path / "other/b.tar").write_bytes(b"of another host")
    with FaultStore(tmp_path / "other") as other:
        location = {"Location": f"{other.url}/b.tar?sig={SECRET}"}
        server.faults.append(Fault("*/b.tar", status=302, headers=location))
        assert download(over_http(server), "b.tar") == b"of another host"
        other.faults.append(Fault(status=403))
        with pytest.raises(UserError) as refused:
            download(over_http(server), "b.tar")
    assert [request.signed for request in server.requests] == [True, True]
    assert [request.signed for request in other.requests] == [False, False]
    assert SECRET not in str(refused.value)


def test_a_netrc_that_cannot_be_read_is_named(server, home):
    (home / ".netrc").write_text(f"machine h login a password b\n{SECRET}\n")
    with pytest.raises(UserError, match="near line 3") as refused:
        over_http(server).read("a.tar", 1)
    assert refused.value.where == str(home / ".netrc")
    assert SECRET not in str(refused.value)


def test_without_credentials_a_bucket_is_asked_unsigned(server):
    store = over_s3(server)
    assert download(store) == DATA
    store.upload("b.tar", b"first", new=True)
    with pytest.raises(UserError, match=r"s3://bucket/set/b\.tar .*\n  found   an object of"):
        store.upload("b.tar", b"second", new=True)
    assert sorted(store.sizes()) == ["a.tar", "b.tar"]
    assert not any(request.signed for request in server.requests)


def test_a_profile_is_read_as_the_aws_command_does(server, home, monkeypatch):
    monkeypatch.setenv("AWS_PROFILE", "mine")
    store = over_s3(server)
    with pytest.raises(UserError, match="mine") as refused:
        store.read("a.tar", 10)
    assert "AWS_PROFILE" in refused.value.remedy
    (home / ".aws").mkdir()
    keys = f"aws_access_key_id = key\naws_secret_access_key = {SECRET}\n"
    (home / ".aws/credentials").write_text(f"[mine]\n{keys}")
    (home / ".aws/config").write_text(f"[profile mine]\nendpoint_url = {server.url}\n")
    # The endpoint is the profile's too
    assert download(Store(Address.parse("s3://bucket/set"), patience=1)) == DATA
    assert server.requests[-1].signed


def test_without_an_account_azure_is_not_asked():
    with pytest.raises(UserError, match="set AZURE_STORAGE_ACCOUNT_NAME"):
        Store(Address.parse("az://bucket/set")).read("a.tar", 10)


def test_a_folder_is_a_store(tmp_path):
    file = tmp_path / "file"
    file.write_bytes(DATA)
    store = Store(Address.parse(f"{tmp_path.as_uri()}/a%20set"), "--out")
    with pytest.raises(MissingError):
        store.read("a.tar", 10)
    store.upload("b.tar", file)
    store.upload("a.tar", b"first", new=True)
    with pytest.raises(UserError, match="an object of that name"):
        store.upload("a.tar", b"second", new=True)
    assert sorted(store.sizes()) == ["a.tar", "b.tar"]
    assert (tmp_path / "a set/a.tar").read_bytes() == b"first"
    assert download(store, "b.tar") == DATA


def test_a_web_server_takes_and_lists_nothing(server):
    for refused in (lambda: over_http(server).upload("b", b""), over_http(server).sizes):
        with pytest.raises(UserError, match="a web server"):
            refused()
    assert not server.requests


def test_the_extra_is_named_where_it_is_not_installed(monkeypatch):
    monkeypatch.setitem(sys.modules, "obstore.store", None)
    with pytest.raises(UserError, match=r"pip install 'dcgan-shards\[remote\]'"):
        Store(Address.parse("s3://bucket/set")).read("manifest.json", 10)
