"""Real stores on loopback: objects, and a set that is packed there and read from there."""

import hashlib
import io
from collections.abc import Iterator
from contextlib import closing

import pytest
import torch

from pipeline.errors import UserError
from pipeline.loading.open import open_loader
from pipeline.loading.options import LoaderOptions
from pipeline.packing.pack import Packing, pack
from pipeline.packing.parts import in_parts
from pipeline.packing.plan import plan_digest
from pipeline.packing.sources.open import open_source
from pipeline.remote.access import Access
from pipeline.remote.address import Address
from pipeline.remote.refusals import MissingError
from pipeline.remote.store import Store
from pipeline.shards.manifest import PROGRESS
from tests.needs import require, within
from tests.pictures import contents
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
        assert sorted(store.sizes()) == ["a.tar", "manifest.json"]

    file = io.BytesIO()
    assert store.download("a.tar", file, len(DATA)) == hashlib.sha256(DATA).hexdigest()
    assert file.getvalue() == DATA
    assert store.read("manifest.json", 10) == b"{}"
    with pytest.raises(MissingError):
        store.read("missing.tar", 10)
    if real.wrong:
        refused = connect(real, real.wrong, monkeypatch)
        with pytest.raises(UserError, match="wanted  credentials that suffice"):
            refused.read("manifest.json", 10)


def test_a_set_in_a_store_gives_the_batches_of_one_in_a_folder(
    real, numbered_set, monkeypatch, tmp_path
):
    for name, value in real.environment.items():
        monkeypatch.setenv(name, value)
    local, url = numbered_set(20, 6), f"{real.url}/faces/set 1"
    if real.write:  # these take nothing from obstore
        for path in local.folder.iterdir():
            real.write(f"faces/set 1/{path.name}", path.read_bytes())
    else:
        source = open_source(local.folder)
        address = Address.parse(url, real.endpoint, "--out")
        access, packing = Access(cache=tmp_path / "packing"), Packing(per_shard=6)
        pack(source, source.members(), address, packing, access=access)
    expected = _batches(local.name, Access())
    access = Access(real.endpoint, tmp_path / "cache")
    assert torch.equal(_batches(url, access), expected)
    assert torch.equal(_batches(url, access), expected)


def test_a_set_in_parts_is_that_of_one_machine(real, numbered_set, monkeypatch, tmp_path):
    if real.write:
        pytest.skip("a web server takes nothing")
    store = connect(real, real.environment, monkeypatch)
    source, packing = open_source(numbered_set(20, 6).folder), Packing(per_shard=3, workers=0)
    members = source.members()
    pack(source, members, tmp_path / "whole", packing)
    for machine in (1, 0, 1, "finish"):
        access = Access(real.endpoint, tmp_path / f"cache {machine}")
        address = Address.parse(f"{real.url}/a set/in parts", real.endpoint, "--out")
        parted, shards = in_parts(source, members, address, packing, None, access, 2)
        if isinstance(machine, int):
            parted.pack(machine, shards)
        else:
            parted.finish(members, "make_shards.py")
    progress = f"in parts/{PROGRESS}/{plan_digest(parted.plan)[:16]}"
    assert store.sizes(progress) == {}
    whole = contents(tmp_path / "whole")
    assert store.sizes("in parts") == {name: len(data) for name, data in whole.items()}
    for name, data in whole.items():
        assert store.read(f"in parts/{name}", 1 << 20) == data


def _batches(name: str, access: Access) -> torch.Tensor:
    options = LoaderOptions(4, 16, cache="off", dtype=torch.uint8, workers=1, access=access)
    with closing(open_loader(name, options)) as loader:
        return within(30, lambda: torch.stack([next(loader).clone() for _ in range(7)]))
