"""The objects of a shard set in a store: read, downloaded with their digest, uploaded, listed."""

from __future__ import annotations

import hashlib
import random
import time
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Literal, TypeVar

from pipeline.errors import UserError
from pipeline.remote.address import Address
from pipeline.remote.connect import connect
from pipeline.remote.refusals import Failure, refusal
from pipeline.remote.threads import interruptibly

if TYPE_CHECKING:
    from obstore import GetOptions
    from obstore.store import ObjectStore

T = TypeVar("T")

CHUNK_BYTES = 1 << 18
"""At least so much is hashed and written at once: 30 MB take 45 ms of a core, as with 1 MiB."""

PART_BYTES, PARTS = 8 << 20, 4
"""How a large object goes up: so much a request, and so many at once."""

UPLOAD_SECONDS = 300
"""For a request that uploads a part: 32 MiB in that time is a line of 1 Mbit/s."""


class Store:
    """The objects directly under an address. Several threads may use it at once.

    A request that fails in a way that may pass, such as a lost connection or 503, is made again
    until `patience` is over, with growing pauses. A Retry-After is not read: obstore does not
    show it.

    Args:
        patience: seconds without progress after which an object is given up. A quarter of it is
            the longest silence of a store that is waited for.

    Every method raises a `UserError` if the store refuses, the extra `[remote]` is not installed,
    or what holds credentials cannot be read; a `MissingError` if there is no object of that name,
    as far as the store tells; an `UnreachableError` if no answer comes within `patience`.
    """

    def __init__(self, address: Address, flag: str = "--shards", patience: float = 60.0) -> None:
        self.address = address
        self.flag = flag
        self.patience = patience

    @cached_property
    def _source(self) -> ObjectStore:
        return connect(self.address, self.flag, self.patience / 4)

    @cached_property
    def _target(self) -> ObjectStore:
        return connect(self.address, self.flag, UPLOAD_SECONDS, writable=True)

    @property
    def _asked(self) -> ObjectStore:
        """For what is answered at once."""
        return self._target if self.address.scheme == "file" else self._source

    def read(self, name: str, most: int) -> bytes:
        """Read a small object whole; see `read_unless`."""
        found = self.read_unless(None, name, most)
        assert found is not None, "no etag was given"
        return found[0]

    def read_unless(
        self, etag: str | None, name: str, most: int, patience: float | None = None
    ) -> tuple[bytes, str | None] | None:
        """Read a small object of at most so many bytes, unless `etag` names what is there.

        Returns:
            The bytes and their etag, if the store gives one; None if nothing has changed.

        Raises:
            UserError: the object is larger.
        """

        def attempt() -> tuple[bytes, str | None] | None:
            source = self._source  # before any name of obstore's, which may not be installed
            from obstore.exceptions import NotModifiedError

            options: GetOptions = {"if_none_match": etag} if etag else {}
            try:
                got = source.get(name, options=options)
            except NotModifiedError:
                if etag is None:
                    raise
                return None
            data = bytearray()
            for chunk in got.stream(CHUNK_BYTES):
                data += chunk
                self._require_size(name, len(data), 0, most)
            return bytes(data), got.meta["e_tag"]

        return self._persist(name, attempt, patience=patience)

    def _require_size(self, name: str, size: int, least: int, most: int) -> None:
        if not least <= size <= most:
            wanted = f"{most:,}, as the set's manifest says" if least else f"at most {most:,}"
            remedy = "see what wrote there since the set was packed; upload the set again"
            where = f"{self.flag} {self.address.of(name)}"
            raise UserError(where, f"{size:,} bytes", wanted, remedy)

    def download(
        self,
        name: str,
        file: BinaryIO,
        size: int | None = None,
        progress: Callable[[int], object] = lambda count: None,
        patience: float | None = None,
    ) -> str:
        """Write an object to a buffered file, from position 0; what else the file held is gone.

        What is cut off is taken up where it ended, if it is still the same object there and the
        store sends parts; else from the start. `progress` gets the number of bytes that have come
        since the last call.

        Returns:
            The SHA-256 of what was written, in hexadecimal, computed on the way.

        Raises:
            UserError: the object has another size.
            OSError: the file cannot be written.
        """
        transfer = _Transfer(file, progress)

        def attempt() -> None:
            got = self._source.get(name, options=transfer.options())
            if size is not None:
                self._require_size(name, got.meta["size"], size, size)
            transfer.etag = got.meta["e_tag"]
            for chunk in got.stream(CHUNK_BYTES):
                transfer.take(chunk)
                if size is not None:  # servers may send more than they say
                    self._require_size(name, max(transfer.received, 1), 1, size)

        self._persist(name, attempt, transfer, patience)
        file.flush()
        return transfer.sha256.hexdigest()

    def upload(self, name: str, source: Path | bytes, *, new: bool = False) -> None:
        """Store an object, whole or not at all; a new one only if there is none of that name.

        The store itself sees to that.

        Raises:
            ExistsError: there is one already, and it must be new.
        """
        self.require_writable()
        mode: Literal["create", "overwrite"] = "create" if new else "overwrite"

        def attempt() -> None:
            self._target.put(name, source, mode=mode, chunk_size=PART_BYTES, max_concurrency=PARTS)

        self._persist(name, attempt)

    def delete(self, name: str) -> None:
        """Delete an object."""
        self.require_writable()
        self._persist(name, lambda: self._asked.delete(name))

    def size(self, name: str) -> int:
        """The bytes of an object."""
        size: int = self._persist(name, lambda: self._source.head(name))["size"]
        return size

    def sizes(self, folder: str = "") -> dict[str, int]:
        """The bytes of all objects directly under the address, or a folder there, by name.

        Raises:
            UserError: it is a web server, which has no list.
        """
        self.require_writable()
        listed = self._persist("", lambda: self._asked.list_with_delimiter(folder or None))
        # Without the folder itself: a mark that consoles make
        found = {each["path"]: each["size"] for each in listed["objects"] if each["path"] != folder}
        return {path.rpartition("/")[2]: size for path, size in found.items()}

    def require_writable(self) -> None:
        """Refuse what takes no objects.

        Raises:
            UserError: a web server.
        """
        if self.address.scheme in {"http", "https"}:
            wanted = "a store that takes and lists objects: s3://, gs://, az:// or file://"
            remedy = "write to a folder, and copy that to where the server has its files"
            raise UserError(f"{self.flag} {self.address}", "a web server", wanted, remedy)

    def _persist(
        self,
        name: str,
        attempt: Callable[[], T],
        transfer: _Transfer | None = None,
        patience: float | None = None,
    ) -> T:
        """Make an attempt, and again while what fails may pass and patience lasts."""
        patience = patience or self.patience
        first = pause = patience / 300
        since, best = time.monotonic(), 0
        while True:
            try:
                return interruptibly(attempt)
            except Exception as error:
                if not _is_the_stores(error):
                    raise
                failure = Failure.of(error)
                now = time.monotonic()
                if transfer and transfer.received > best:
                    since, best, pause = now, transfer.received, first
                if transfer and failure.anew:
                    transfer.etag = None
                if not failure.passing or now - since >= patience:
                    refused = refusal(failure, self.address, name, self.flag, patience)
                    raise refused from None
            # No two clients at the same moment: one that is overrun would stay so
            time.sleep(pause * random.uniform(0.5, 1))
            pause = min(2 * pause, patience / 6)


class _Transfer:
    """How far a download has come."""

    def __init__(self, file: BinaryIO, progress: Callable[[int], object]) -> None:
        self.file = file
        self.progress = progress
        self.etag: str | None = None
        """Of the object of which `received` bytes are written; None to begin anew."""
        self.received = 0
        self.sha256 = hashlib.sha256()

    def options(self) -> GetOptions:
        """Ask for what is lacking."""
        if self.etag is not None and self.received:
            return {"range": {"offset": self.received}, "if_match": self.etag}
        self.file.seek(0)
        self.file.truncate()
        self.received = 0
        self.sha256 = hashlib.sha256()
        return {}

    def take(self, chunk: bytes) -> None:
        self.file.write(chunk)
        self.sha256.update(chunk)
        self.received += len(chunk)
        self.progress(len(chunk))


def _is_the_stores(error: Exception) -> bool:
    """Whether obstore raises it: two of its kinds are Python's own."""
    if isinstance(error, UserError):
        return False
    from obstore.exceptions import BaseError

    return isinstance(error, BaseError | FileNotFoundError | NotImplementedError)
