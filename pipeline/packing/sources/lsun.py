"""LSUN's databases: folders such as `bedroom_train_lmdb`, whose values are image files.

Torchvision's reader writes a lock and a pickled cache of keys; here the database is opened
read-only, nothing is written and nothing is unpickled. LMDB believes its file, whose offsets it
follows in memory, so `lmdb.verify` walks it first.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.errors import UserError
from pipeline.packing.sources.base import (
    DamagedError,
    Listing,
    Member,
    OpenedSource,
    changed,
    require_file_size,
    version,
)

if TYPE_CHECKING:
    import lmdb

DATA = "data.mdb"

SUFFIX = ".webp"
"""LSUN's images are WebP."""


def is_lsun(path: Path) -> bool:
    """Whether a folder is a database of LMDB."""
    return (path / DATA).is_file()


class LsunSource(OpenedSource):
    """The values of a database, each named by its key."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.category = re.sub(r"(_(train|val|test))?(_lmdb)?$", "", path.resolve().name)
        _require_sound(path)
        self._listed = version((path / DATA).stat())
        try:
            self.listing = self._list()
        finally:
            self.close()

    def _list(self) -> Listing:
        env, end = self._open(), self._listed[0]
        pages = 1 + env.info()["last_pgno"]
        if pages * env.stat()["psize"] > end:  # `verify` sees the first page of a value alone
            raise _refusal(self.path, f"{pages:,} pages, of which {end:,} bytes are there")
        with env.begin(buffers=True) as transaction:
            members = [
                Member(bytes(key).decode(errors="surrogateescape") + SUFFIX, len(value))
                for key, value in transaction.cursor()
            ]
        return Listing(sorted(members))

    def _open(self) -> lmdb.Environment:
        import lmdb

        if self._opened is None:
            self._opened = lmdb.open(
                str(self.path), readonly=True, lock=False, create=False, readahead=False
            )
        env: lmdb.Environment = self._opened
        return env

    def read(self, member: Member) -> bytes:
        require_file_size(member)
        if version((self.path / DATA).stat()) != self._listed:
            raise changed(self.path)
        key = member.name.removesuffix(SUFFIX).encode(errors="surrogateescape")
        with self._open().begin() as transaction:
            data: bytes | None = transaction.get(key)
        if data is None or len(data) != member.size:
            raise DamagedError("not what was listed under its key")
        return data


def _require_sound(path: Path) -> None:
    """Refuse what LMDB would stumble over, before it sees the file."""
    try:
        from lmdb.verify import VerifyError, verify
    except ImportError:
        raise UserError(
            f"SOURCE {path}",
            "a database of LMDB, and no package that reads it",
            "lmdb, which is an extra",
            "pip install 'dcgan-shards[lsun]'",
        ) from None
    try:
        faults = verify(os.fspath(path))  # type: ignore[no-untyped-call]
    except VerifyError as error:
        faults = [str(error)]
    except Exception as error:  # of a file that its walk was not made for
        faults = [f"{type(error).__name__}: {error}"]
    if faults:
        raise _refusal(path, faults[0])


def _refusal(path: Path, fault: str) -> UserError:
    return UserError(
        f"SOURCE {path}",
        f"a {DATA} that is damaged, cut off or none of LMDB's: {fault:.160}",
        "a database as LSUN's authors publish it",
        "download and unzip it again",
    )
