"""Real stores on loopback: what is stored once, read whole and by those who may."""

import hashlib
import io
from collections.abc import Iterator

import pytest

from pipeline.errors import UserError
from pipeline.remote.address import Address
from pipeline.remote.store import MissingError, Store
from tests.needs import require
from tests.stores import START, RealStore

DATA = bytes(range(256)) * 40_000
"""Larger than a part of an upload."""


@pytest.fixture(scope="module", params=START)
def real(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RealStore]:
    require(request.param)
    with START[request.param](tmp_path_factory.mktemp(request.param)) as real:
        yield real


def connect(real: RealStore, credentials: dict[str, str], patch: pytest.MonkeyPatch) -> Store:
    for name, value in credentials.items():
        patch.setenv(name, value)
    return Store(Address.parse(f"{real.url}/a set", real.endpoint), "--out", patience=20)


def test_an_object_is_stored_once_and_read_by_those_who_may(real, monkeypatch, tmp_path):
    store = connect(real, real.environment, monkeypatch)
    if real.write:
        for name, data in (("a.tar", DATA), ("manifest.json", b"{}")):
            real.write(f"a set/{name}", data)
    else:
        (tmp_path / "a.tar").write_bytes(DATA)
        store.upload("a.tar", tmp_path / "a.tar")
        store.upload("manifest.json", b"{}", new=True)
        with pytest.raises(UserError, match="an object of that name"):
            store.upload("manifest.json", b"other", new=True)
        assert store.names() == ["a.tar", "manifest.json"]

    file = io.BytesIO()
    assert store.download("a.tar", file, len(DATA)) == hashlib.sha256(DATA).hexdigest()
    assert file.getvalue() == DATA
    assert (store.read("manifest.json", 10) or [None])[0] == b"{}"
    with pytest.raises(MissingError):
        store.read("missing.tar", 10)
    if real.wrong:
        refused = connect(real, real.wrong, monkeypatch)
        with pytest.raises(UserError, match="wanted  credentials that suffice"):
            refused.read("manifest.json", 10)
