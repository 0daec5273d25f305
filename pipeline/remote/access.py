"""How remote sets are reached, and where what is fetched of them is kept."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import UserError
from pipeline.files import cache_folder


@dataclass(frozen=True)
class Access:
    """The options of whoever opens a set that may be remote."""

    endpoint: str | None = None
    """URL of a store that is not its provider's own."""
    cache: Path | None = None
    """Folder of the shard cache; None for one in the user's cache folder."""
    cache_size: int | None = None
    """Bytes that the cache may take; None for half of what is free on its disk."""

    first: bool = True
    """Whether this process fetches for its machine; the others wait for it."""

    @property
    def folder(self) -> Path:
        """The folder of the shard cache.

        Raises:
            UserError: none is given, and nobody knows a home.
        """
        try:
            return self.cache or cache_folder() / "shards"
        except RuntimeError:
            wanted = "a folder for the shard cache"
            raise UserError(
                "--shard-cache", "none, and no home of this user", wanted, "give --shard-cache"
            ) from None
