"""Zips and tars that the tests make themselves, whole and damaged."""

import bz2
import gzip
import io
import lzma
import tarfile
import zipfile
from collections.abc import Callable, Iterable, Mapping
from typing import Any

PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "gunzip": gzip.compress,
    "bunzip2": bz2.compress,
    "unxz": lzma.compress,
}
"""What compresses a tar, by the name of the program that undoes it."""


def zip_of(files: Mapping[str, bytes], **options: Any) -> bytes:
    """A zip of files by name; the options are `zipfile.ZipFile`'s."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", **options) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return stream.getvalue()


def tar_of(
    files: Mapping[str, bytes] | Iterable[tuple[str, bytes]],
    others: Iterable[tarfile.TarInfo] = (),
    form: int = tarfile.PAX_FORMAT,
) -> bytes:
    """A tar of files by name, in their order, names repeated if need be, then of other entries."""
    stream = io.BytesIO()
    pairs = files.items() if isinstance(files, Mapping) else files
    with tarfile.open(fileobj=stream, mode="w", format=form) as archive:
        for name, data in pairs:
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
        for other in others:
            archive.addfile(other)
    return stream.getvalue()


def changed(data: bytes, place: int, value: int) -> bytes:
    """The same bytes but one."""
    assert data[place] != value, "no change"
    return data[:place] + bytes([value]) + data[place + 1 :]
