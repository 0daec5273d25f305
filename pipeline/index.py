"""DALI's index of a tar: one line a sample, so that nobody need scan the archive.

The text format is DALI's own (v1.2, as written by its `wds2idx`): a header `v1.2 <samples>`, then
`<extension> <offset> <size> <member name>` for each component of each sample.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np

from pipeline.order import Rows
from pipeline.tars import headers

VERSION = "v1.2"


def index_text(tar: Path) -> str:
    """Index a tar whose samples have one component each, as `packing` writes them.

    Raises:
        tarfile.TarError: the archive is damaged.
    """
    rows = [
        f"{member.name.partition('.')[2]} {member.offset_data} {member.size} {member.name}\n"
        for member in headers(tar)
    ]
    return f"{VERSION} {len(rows)}\n" + "".join(rows)


class Places(NamedTuple):
    """Where the samples of a tar lie, (samples,) each."""

    offsets: Rows
    """In bytes from the tar's beginning."""
    sizes: Rows
    """In bytes."""
    keys: Rows


def read_index(data: bytes, extension: str) -> Places:
    """Read what `index_text` wrote; a million lines take half a second.

    Args:
        data: the index.
        extension: of the one component that each sample has.

    Raises:
        ValueError: it is not such an index; the message says what is wrong.
    """
    header, _, lines = data.partition(b"\n")
    word = extension.encode()
    if lines.count(word + b" ") != lines.count(b"\n"):
        raise ValueError(f"lines that are not of one {extension} component each")
    # Keys are numbers, so what is left of "jpg 512 7213 00000012.jpg" is three of them
    numbers = lines.replace(b"." + word, b"").replace(word, b"").decode("ascii", "replace")
    if not numbers.strip():
        raise ValueError("no samples")
    try:
        table = np.loadtxt(numbers.splitlines(), dtype=np.int64, comments=None, ndmin=2)
    except (ValueError, OverflowError, DeprecationWarning):
        raise ValueError("lines that do not read as extension, offset, size and name") from None
    expected = f"{VERSION} {len(table)}".encode()
    if header != expected or table.shape[1:] != (3,):
        raise ValueError(f"the header {header[:40]!r}, where {expected!r} would be right")
    return Places(*table.T)
