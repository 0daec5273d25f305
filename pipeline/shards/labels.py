"""The labels of a shard set: one class for an image, or several yes/no attributes.

They lie beside the image in the tars, as plain webdataset reads them (`cls`, an integer as text, or
`json`, as in `{"Smiling": 1, "Male": 0}`), and all together in `labels.npy`, in the order of keys:
int32 (n,) classes, or bits (n, ceil(k/8)) as `numpy.packbits` packs the k attributes of each image.
Loaders read that file alone.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from pipeline.errors import UserError
from pipeline.files import digest
from pipeline.images.labels import Kind
from pipeline.shards.manifest import LABEL_EXTENSION, LABELS
from pipeline.shards.shard_set import ShardSet

Values = npt.NDArray[Any]
"""Classes as int32 (n,), or attributes as bool or uint8 (n, k) of 0 and 1."""

HEADER_BYTES = 128
"""Of `labels.npy`, as numpy pads a short one."""


class LabelTable(NamedTuple):
    """The labels of a list of images."""

    kind: Kind
    names: tuple[str, ...]
    """Of the classes by number, or of the attributes."""
    values: Values
    """In the images' order."""

    def component(self, place: int) -> tuple[str, bytes]:
        """Extension and bytes of the component that labels the image at a place."""
        value = self.values[place]
        if self.kind == "classes":
            data = b"%d" % value
        else:
            numbers = np.asarray(value, int).tolist()
            data = json.dumps(dict(zip(self.names, numbers, strict=True))).encode()
        return LABEL_EXTENSION[self.kind], data

    def digest(self) -> str:
        """A digest of all of it."""
        whole = hashlib.sha256(repr((self.kind, self.names, self.values.shape)).encode())
        whole.update(self.values.tobytes())
        return whole.hexdigest()


def labels_file(values: Values) -> bytes:
    """The contents of `labels.npy`, for labels in key order.

    Its header is written here, not by numpy, whose padding differs between versions: so equal
    labels have equal files, and a reader need compare it only
    (numpy.org/doc/stable/reference/generated/numpy.lib.format.html, version 1.0).
    """
    stored = values.astype("<i4") if values.ndim == 1 else np.packbits(values != 0, axis=1)
    return _header(stored.dtype, stored.shape) + stored.tobytes()


def _header(dtype: np.dtype[Any], shape: tuple[int, ...]) -> bytes:
    fields = f"{{'descr': {dtype.str!r}, 'fortran_order': False, 'shape': {shape!r}, }}"
    start = b"\x93NUMPY\x01\0" + (HEADER_BYTES - 10).to_bytes(2, "little")
    return start + fields.encode().ljust(HEADER_BYTES - 11) + b"\n"


def read_labels(shards: ShardSet) -> LabelTable:
    """All labels of a set, in key order.

    Raises:
        UserError: the set has none, or `labels.npy` is not the file that was packed.
    """
    labels = shards.manifest.labels
    if labels is None:
        raise UserError(
            shards.name,
            "a shard set without labels",
            "one whose images have classes or attributes",
            "pack the images again with --labels: python tools/make_shards.py --help",
        )
    names, path = len(labels.names), shards.path(LABELS)
    classes = labels.kind == "classes"
    dtype: np.dtype[Any] = np.dtype("<i4" if classes else "u1")
    shape = (len(shards),) if classes else (len(shards), -(-names // 8))
    header = _header(dtype, shape)
    wanted = len(header) + dtype.itemsize * int(np.prod(shape, dtype=object))
    try:
        if (size := path.stat().st_size) != wanted:
            raise _damaged(shards, f"{size:,} bytes, not {wanted:,}")
        data = path.read_bytes()
    except OSError as error:
        raise _damaged(shards, error.strerror or str(error)) from None
    if digest(data) != labels.sha256:
        raise _damaged(shards, "other contents")
    if not data.startswith(header):
        raise _damaged(shards, "an array of another shape or type")
    stored = np.frombuffer(data, dtype, offset=len(header)).reshape(shape)
    values = stored if classes else np.unpackbits(stored.view(np.uint8), axis=1, count=names)
    if classes and not 0 <= values.min() <= values.max() < names:
        raise _damaged(shards, f"classes outside of 0 to {names - 1}")
    if counts_of(values, names) != labels.counts:
        raise _damaged(shards, "other numbers of images than the manifest's")
    return LabelTable(labels.kind, labels.names, values)


def counts_of(values: Values, names: int) -> tuple[int, ...]:
    """Images of each of so many classes, or with each attribute."""
    counts = np.bincount(values, minlength=names) if values.ndim == 1 else values.sum(0, np.int64)
    return tuple(counts.tolist())


def labels_of_rows(values: Values, keys: npt.NDArray[np.int64]) -> Values:
    """Labels in key order, brought into the order of rows, whose keys are (n,)."""
    by_key = np.argsort(keys)
    rows = np.empty_like(values)
    rows[by_key] = values
    return rows


def _damaged(shards: ShardSet, found: str) -> UserError:
    return UserError(
        shards.where(LABELS),
        found,
        "the labels as tools/make_shards.py wrote them",
        shards.files.remedy,
    )
