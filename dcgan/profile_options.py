"""What a profiling command was asked to do. Loads nothing heavy: the checks are instant."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import UserError


@dataclass(frozen=True)
class Options:
    """The options that all commands share, checked.

    Raises:
        UserError: a value that no measurement could use.
    """

    shards: Path
    rounds: int
    seconds: float
    """That a round takes at least."""
    images: int
    """Whole shards are taken until they hold so many."""
    workers: int | None
    """Threads of ours, processes of others; None for one a core, at most eight."""
    batch_size: int
    image_size: int
    """Side, in pixels."""
    device: str
    seed: int
    json: Path | None
    plot: Path | None

    def __post_init__(self) -> None:
        for flag, value, least, most in (
            ("--rounds", self.rounds, 1, 1000),
            ("--seconds", self.seconds, 0, 3600),
            ("--images", self.images, 1, 10**12),
            ("--workers", self.workers, 1, 1024),
            ("--batch-size", self.batch_size, 1, 10**6),
            ("--image-size", self.image_size, 8, 4096),
            ("--seed", self.seed, 0, 2**63 - 1),
        ):
            if value is not None and not least <= value <= most:
                raise UserError(
                    f"{flag} {value}", "out of range", f"{least:,} to {most:,}", "correct it"
                )
        for flag, path in (("--json", self.json), ("--plot", self.plot)):
            if path is not None:
                _require_place(flag, path)
        if self.plot is not None and self.plot.suffix.lower() != ".png":
            raise UserError(
                f"--plot {self.plot}", "another kind of file", "a PNG", "end its name in .png"
            )

    def to_json(self) -> dict[str, Any]:
        """Plain values by name."""
        return {
            name: str(value) if isinstance(value, Path) else value
            for name, value in vars(self).items()
        }


def _require_place(flag: str, path: Path) -> None:
    """Refuse now what could not be written after minutes of measuring."""
    if path.is_dir() or not path.parent.is_dir():
        found = "a folder" if path.is_dir() else "in a folder that does not exist"
        raise UserError(
            f"{flag} {path}", found, "a file in a folder that exists", "choose another name"
        )
