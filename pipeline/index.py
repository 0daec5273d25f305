"""DALI's index of a tar: one line a sample, so that the reader need not scan the archive.

The text format is DALI's own (v1.2, as written by its `wds2idx`): a header `v1.2 <samples>`, then
`<extension> <offset> <size> <member name>` for each component of each sample.
"""

from __future__ import annotations

import tarfile
from pathlib import Path

VERSION = "v1.2"


def index_text(tar: Path) -> str:
    """Index a tar whose samples have one component each, as `packing` writes them.

    Raises:
        tarfile.TarError: the archive is damaged.
    """
    with tarfile.open(tar, "r:") as archive:
        rows = [
            f"{member.name.partition('.')[2]} {member.offset_data} {member.size} {member.name}\n"
            for member in archive
        ]
    return f"{VERSION} {len(rows)}\n" + "".join(rows)
