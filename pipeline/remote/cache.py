"""The shard cache: files of remote sets, under their SHA-256."""

from __future__ import annotations

from pathlib import Path


class ShardCache:
    """A folder of files that were fetched.

    Args:
        folder: made if need be.
        size: bytes that it may take; None for half of what is free.
    """

    def __init__(self, folder: Path, size: int | None = None) -> None:
        self.folder = folder
        (folder / "sha256").mkdir(parents=True, exist_ok=True)

    def adopt(self, path: Path, sha256: str) -> None:
        """Move a file in, whose digest is known to be this; the cache may delete it from now on."""
        kept = self.folder / "sha256" / sha256[:2] / sha256
        kept.parent.mkdir(exist_ok=True)
        path.replace(kept)
