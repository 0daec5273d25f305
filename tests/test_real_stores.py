"""Real stores on loopback: what is stored once, read whole and in part, and by whom."""

import base64
import netrc
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import obstore
import pytest
from obstore.exceptions import AlreadyExistsError, PermissionDeniedError, UnauthenticatedError
from obstore.store import ObjectStore, from_url

from tests.needs import require
from tests.stores import START, RealStore

DATA = bytes(range(256)) * 1000
ENDPOINT = {"s3": "aws_endpoint", "gs": "google_base_url", "az": "azure_storage_endpoint"}


@pytest.fixture(scope="module", params=START)
def store(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RealStore]:
    require(request.param)
    with START[request.param](tmp_path_factory.mktemp(request.param)) as store:
        yield store


def connect(
    store: RealStore, credentials: dict[str, str], patch: pytest.MonkeyPatch
) -> ObjectStore:
    for name, value in credentials.items():
        patch.setenv(name, value)
    options: dict[str, Any] = {"retry_config": {"max_retries": 0}}
    options["client_options"] = {"allow_http": True}
    if store.endpoint is None:
        found = netrc.netrc(Path(os.environ["HOME"], ".netrc")).authenticators("127.0.0.1")
        assert found
        password = base64.b64encode(f"{found[0]}:{found[2]}".encode()).decode()
        options["client_options"]["default_headers"] = {"Authorization": f"Basic {password}"}
    else:
        options["config"] = {ENDPOINT[store.url[:2]]: store.endpoint}
    client: ObjectStore = from_url(store.url, **options)
    return client


def test_an_object_is_stored_once_and_read_by_those_who_may(
    store: RealStore, monkeypatch: pytest.MonkeyPatch
):
    client = connect(store, store.environment, monkeypatch)
    name = "a set/shard.tar"
    if store.write:
        store.write(name, DATA)
    else:
        obstore.put(client, name, DATA, mode="create")
        with pytest.raises(AlreadyExistsError):
            obstore.put(client, name, b"other", mode="create")

    assert bytes(obstore.get(client, name).bytes()) == DATA
    assert bytes(obstore.get_range(client, name, start=300, end=500)) == DATA[300:500]
    with pytest.raises(FileNotFoundError):
        obstore.get(client, "a set/missing.tar")
    if store.wrong:
        client = connect(store, store.wrong, monkeypatch)
        with pytest.raises((PermissionDeniedError, UnauthenticatedError)):
            obstore.get(client, name)
