"""What a profiling command was asked to do. Loads nothing heavy: the checks are instant."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import UserError


@dataclass(frozen=True)
class Options:
    """The options that all commands on a shard set share, checked.

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
    """Threads of ours, processes of others; None for one a core, at most 8, or 4 for a GPU."""
    batch_size: int
    image_size: int
    """Side, in pixels."""
    device: str
    seed: int
    json: Path | None
    plot: Path | None

    def __post_init__(self) -> None:
        if str(self.shards) == "synthetic" and not self.shards.exists():
            raise UserError(
                "--shards synthetic",
                "noise, which no loader reads",
                "a shard set",
                "pack one with tools/make_shards.py; dcgan-profile step needs none",
            )
        _require_ranges(vars(self))
        _require_outputs(self.json, self.plot)

    def to_json(self) -> dict[str, Any]:
        """Plain values by name."""
        return _plain(vars(self))


@dataclass(frozen=True)
class StepOptions:
    """The options of `dcgan-profile step`, which needs no images, checked.

    Raises:
        UserError: a value that no measurement could use.
    """

    batch_size: int
    image_size: int
    """Side, in pixels."""
    channels: int
    nz: int
    ngf: int
    ndf: int
    rounds: int
    seconds: float
    """That a turn takes at least."""
    device: str
    compiled: bool
    """On a device where it takes minutes to compile, do so all the same."""
    json: Path | None
    plot: Path | None

    def __post_init__(self) -> None:
        _require_ranges(vars(self))
        _require_outputs(self.json, self.plot)

    def to_json(self) -> dict[str, Any]:
        """Plain values by name."""
        return _plain(vars(self))


_RANGES = {
    "rounds": (1, 1000),
    "seconds": (0, 3600),
    "images": (1, 10**12),
    "workers": (1, 1024),
    "batch_size": (1, 10**6),
    "image_size": (8, 4096),
    "seed": (0, 2**63 - 1),
}
"""Bounds of the options that have them here; those of the nets are theirs to check."""


def _require_ranges(options: Mapping[str, Any]) -> None:
    for name, (least, most) in _RANGES.items():
        value = options.get(name)
        if value is not None and not least <= value <= most:
            flag = f"--{name.replace('_', '-')}"
            raise UserError(
                f"{flag} {value}", "out of range", f"{least:,} to {most:,}", "correct it"
            )


def _require_outputs(json: Path | None, plot: Path | None) -> None:
    for flag, path in (("--json", json), ("--plot", plot)):
        if path is not None:
            _require_place(flag, path)
    if plot is not None and plot.suffix.lower() != ".png":
        raise UserError(f"--plot {plot}", "another kind of file", "a PNG", "end its name in .png")


def _plain(options: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: str(value) if isinstance(value, Path) else value for name, value in options.items()
    }


def _require_place(flag: str, path: Path) -> None:
    """Refuse now what could not be written after minutes of measuring."""
    if path.is_dir() or not path.parent.is_dir():
        found = "a folder" if path.is_dir() else "in a folder that does not exist"
        raise UserError(
            f"{flag} {path}", found, "a file in a folder that exists", "choose another name"
        )
