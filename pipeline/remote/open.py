"""Opening a set by its name: a folder of this machine, or a place in a store."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from pipeline.files import digest, write_whole
from pipeline.remote.access import Access
from pipeline.remote.address import Address
from pipeline.remote.cache import ShardCache
from pipeline.remote.files import RemoteFiles
from pipeline.remote.refusals import UnreachableError
from pipeline.remote.store import Store
from pipeline.remote.supply import PATIENCE
from pipeline.shards.manifest import (
    LABELS,
    MANIFEST,
    MAX_MANIFEST_BYTES,
    Manifest,
    parse_manifest,
)
from pipeline.shards.shard_set import ShardSet, is_url, pack_command

SOON = 10.0
"""Seconds in which a store must answer: nobody waits longer to be told of a wrong endpoint."""


class _Known(BaseModel):
    """What the cache knows of a URL."""

    model_config = ConfigDict(frozen=True)

    etag: str | None
    sha256: str
    """Of the manifest."""
    manifest: str
    """The whole file."""


def open_set(name: str | Path, access: Access | None = None, flag: str = "--shards") -> ShardSet:
    """Open a shard set, in a folder or at a URL, for reading.

    Of a remote set, the manifest, the indexes and the labels are fetched; tars are when they are
    read. The store is asked whether the manifest is still the same; if it does not answer, the set
    is as it was when it was opened last.

    Raises:
        UserError: there is no usable set, or the store does not give it.
    """
    if not is_url(str(name)):
        return ShardSet.open(Path(name))
    access = access or Access()
    address = Address.parse(str(name), access.endpoint, flag)
    cache = ShardCache(access.folder, access.cache_size)
    store = Store(address, flag)
    manifest, note = _manifest(store, cache, first=access.first)
    patience = 0.0 if access.first else PATIENCE
    files = RemoteFiles(store, cache, manifest, patience, note)
    labels = [] if manifest.labels is None else [LABELS]
    files.all_at_once([*(f"{shard.name}.idx" for shard in manifest.shards), *labels])
    return ShardSet(files, manifest)


def _manifest(store: Store, cache: ShardCache, *, first: bool) -> tuple[Manifest, str]:
    """The set's manifest, and whether it is an old one, for people."""
    address = store.address
    path = cache.folder / "sets" / f"{address.place}.json"
    known, note = _known(path), ""
    if first or known is None:
        try:
            known = _ask(store, known)
        except UnreachableError:
            if known is None:
                raise
            when = datetime.fromtimestamp(path.stat().st_mtime).astimezone()
            note = f"the store does not answer: as it was on {when:%Y-%m-%d %H:%M}"
    again = f"{pack_command('celeba/')} --out URL"
    manifest = parse_manifest(known.manifest.encode(), address.of(MANIFEST), again)
    if not note:
        with cache.locked():
            write_whole(path, known.model_dump_json().encode())
    return manifest, note


def _ask(store: Store, known: _Known | None) -> _Known:
    """What the store has for a manifest, which may be what is known."""
    etag = None if known is None else known.etag
    found = store.read_unless(etag, MANIFEST, MAX_MANIFEST_BYTES, SOON)
    if found is None:
        assert known is not None, "only what has a known etag can be unchanged"
        return known
    manifest = found[0].decode(errors="replace")
    return _Known(etag=found[1], sha256=digest(manifest.encode()), manifest=manifest)


def _known(path: Path) -> _Known | None:
    """What was noted of a set, unless that has changed since."""
    try:
        known = _Known.model_validate_json(path.read_bytes())
    except (FileNotFoundError, ValidationError):
        return None
    return known if digest(known.manifest.encode()) == known.sha256 else None
