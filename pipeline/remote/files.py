"""The files of a remote set: each is fetched into the cache when it is needed, or before."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import BinaryIO

from pipeline.errors import UserError
from pipeline.files import digest
from pipeline.remote.cache import Blob, ShardCache
from pipeline.remote.refusals import MissingError, UnreachableError
from pipeline.remote.store import Store
from pipeline.remote.threads import call_each
from pipeline.shards.manifest import MANIFEST, MAX_INDEX_BYTES, REJECTS, Manifest
from pipeline.shards.shard_set import Files, pack_command

LEAST_PATIENCE = 5.0
"""Seconds for a store that somebody else of this process has waited for in vain."""

TRIES = 2
"""Downloads of an object before its contents are called wrong, not its way here."""


class RemoteFiles(Files):
    """The files of a set in a store, fetched once for all processes of this machine.

    Args:
        patience: seconds to wait for another process of this machine to begin to fetch a file.
        note: what people should know about where they come from.
    """

    def __init__(
        self, store: Store, cache: ShardCache, manifest: Manifest, patience: float, note: str
    ) -> None:
        self.cache, self.note, self._store, self._patience = cache, note, store, patience
        sizes = {f"{shard.name}.tar": shard.bytes for shard in manifest.shards}
        self._blobs = {
            name: Blob(sha256, sizes.get(name, 0)) for name, sha256 in manifest.digests.items()
        }
        self._rejected, self._lease = manifest.rejected, cache.lease()
        self._heard = time.monotonic()
        self._counting, self.fetched = threading.Lock(), 0
        """Bytes of the set's files that this process has fetched."""
        self._failing: float | None = None
        """Since when no byte comes of what is asked for."""
        self.ended = False
        """Whether to end what is being fetched: nobody waits for it any more."""

    def __str__(self) -> str:
        return str(self._store.address)

    @property
    def remedy(self) -> str:
        again = f"{pack_command('celeba/')} --out URL"
        return f"start again, which fetches what has changed here; or pack it again: {again}"

    @property
    def idle(self) -> float:
        """Seconds since the last byte came."""
        return time.monotonic() - self._heard

    def path(self, name: str) -> Path:
        if name not in self._blobs:
            return self._unchecked(name)
        self.keep([name])
        return self.fetch(name, lambda: False, urgent=True)

    def fetch(self, name: str, cancelled: Callable[[], bool], *, urgent: bool = False) -> Path:
        """Where a file lies, once it is there; whoever needs room may delete it again.

        Args:
            name: of the file.
            cancelled: whether to end the download.
            urgent: whether to wait for room that others take for what they fetch.

        Raises:
            FullError: there is no room.
            UserError: it cannot be had, or the download was ended.
        """

        def watch(grew: bool) -> None:
            if grew:
                self._heard, self._failing = time.monotonic(), None
            if self.ended or cancelled():
                raise UserError(name, "a download that was ended", "its end", "begin again")

        def moved(count: int) -> None:
            with self._counting:
                self.fetched += count
            watch(True)

        def download(file: BinaryIO) -> None:
            self._download(name, file, moved)

        blob = self._blobs[name]
        return self.cache.get(blob, download, watch, self._patience, urgent=urgent)

    def all_at_once(self, names: Iterable[str]) -> None:
        """Fetch small files.

        Raises:
            UserError: one cannot be had.
        """
        call_each(self.path, names)

    def size(self, name: str) -> int:
        """Bytes of a tar."""
        return self._blobs[name].size

    def there(self) -> tuple[int, int]:
        """Bytes of the tars that the cache has, and of all."""
        tars = [blob for blob in self._blobs.values() if blob.size]
        return sum(blob.size for blob in tars if self.cache.has(blob)), sum(t.size for t in tars)

    def faults_of_store(self) -> list[str]:
        """What the store lacks, or has in another size, of what the cache may have, too.

        Raises:
            UserError: it does not answer.
        """
        faults: list[str] = []

        def look(name: str) -> None:
            try:
                size = self._store.size(name)
            except MissingError:
                faults.append(f"{name}: not in the store")
            else:
                wanted = self._blobs[name].size or size
                if size != wanted:
                    faults.append(f"{name}: {size:,} bytes in the store, not {wanted:,}")

        call_each(look, self._blobs)
        return sorted(faults)

    def fit(self, names: Collection[str]) -> bool:
        """Whether so many tars can lie in the cache at the same time, beside what others need."""
        room = self.cache.room(self._blobs[name].sha256 for name in names)
        return sum(map(self.size, names)) <= room

    def keep(self, names: Iterable[str]) -> None:
        """Have the cache keep these, once they are there, until they are released."""
        self._lease.add(self._blobs[name].sha256 for name in names)

    def release(self, name: str) -> None:
        self._lease.drop([self._blobs[name].sha256])

    def _download(self, name: str, file: BinaryIO, moved: Callable[[int], None]) -> None:
        blob = self._blobs[name]
        for _ in range(TRIES):
            if blob.size:
                found = self._download_large(name, file, blob.size, moved)
            else:
                data = self._store.read(name, MAX_INDEX_BYTES)
                moved(len(data))
                found = digest(data)
                file.seek(0)
                file.truncate()
                file.write(data)
            if found == blob.sha256:
                return
        raise UserError(
            self._store.address.of(name),
            f"another object than was packed (SHA-256 {found[:16]}…)",
            f"the one that {MANIFEST} names ({blob.sha256[:16]}…)",
            self.remedy,
        )

    def _download_large(
        self, name: str, file: BinaryIO, size: int, moved: Callable[[int], None]
    ) -> str:
        """Download, with what is left of the patience if others have waited in vain already."""
        began = time.monotonic()
        since = self._failing or began
        patience = max(LEAST_PATIENCE, self._store.patience - (began - since))
        try:
            return self._store.download(name, file, size, moved, patience)
        except UnreachableError:
            self._failing = since
            raise

    def _unchecked(self, name: str) -> Path:
        """A table of a set that has no digest of it; it is compared with the shards when read."""
        if name == REJECTS and not self._rejected:
            return self.cache.folder / "sha256" / "none"
        data = self._store.read(name, MAX_INDEX_BYTES)

        def write(file: BinaryIO) -> None:
            file.write(data)

        return self.cache.get(Blob(digest(data), len(data)), write)
