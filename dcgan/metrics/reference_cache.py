"""Keeps what was computed from real images alone for the next time."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from dcgan.distributed import ALONE, Ranks
from dcgan.nets.weights import refuse_inflated
from pipeline.files import cache_folder, replacing

FORMAT = 1
"""Version of the kept references; files of another one are passed over."""

Arrays = dict[str, npt.NDArray[Any]]


def kept(key: dict[str, Any], compute: Callable[[], Arrays], ranks: Ranks = ALONE) -> Arrays:
    """Take a reference from the cache, or compute it and put it there; a collective.

    Args:
        key: all that it depends on, in plain values.
        compute: gives arrays of numbers, by name; called on all ranks, or on none.
        ranks: of which the first has the cache.

    Returns:
        On the first rank what `compute` gives there, to the bit; a file that is damaged, or of
        another key, is replaced. Nothing of use on the others.
    """
    key_text = json.dumps(key | {"format": FORMAT}, sort_keys=True)
    path = cache_folder() / f"{hashlib.sha256(key_text.encode()).hexdigest()[:32]}.npz"
    found = _read(path, key_text) if ranks.is_first else None
    if ranks.same(found is not None):
        return found or {}
    arrays = compute()
    if not ranks.is_first:
        return arrays
    named: dict[str, Any] = {"key": np.array(key_text), **arrays}
    with contextlib.suppress(OSError):  # a full disk or a locked home costs time, not the result
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary, temporary.open("wb") as file:
            np.savez(file, **named)
    return arrays


def _read(path: Path, key_text: str) -> Arrays | None:
    try:
        # Opened here: numpy leaves a file that it refuses to the garbage collector
        refuse_inflated(path)
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}  # zip checks each one's CRC
        return arrays if str(arrays.pop("key")) == key_text else None
    except Exception:  # whatever numpy and zipfile trip over in a damaged file
        return None
