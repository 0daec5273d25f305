"""What a checkpoint must hold before a run goes on from it.

Its sha256 tells that it is as it was written, not who wrote it: a type or shape that nobody looked
at would end as a traceback, as an allocation of any size, or in a kernel that reads past its end.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dcgan.determinism import MAX_THREADS
from dcgan.health import Health
from dcgan.run import MAX_COUNT
from dcgan.speed import WholeStep
from dcgan.state_file import is_plain
from dcgan.stats import Spent
from dcgan.step import STATISTICS
from pipeline.batches import Batches
from pipeline.errors import UserError


class _MisfitError(ValueError):
    """What is wrong with a part of a state."""


def require_whole(state: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Check what can be checked before there are nets: plain values, statistics, counts.

    Args:
        state: of a checkpoint; tensors and anything that `weights_only` lets through.
        folder: of the checkpoint, for the error.

    Returns:
        Its parts, in plain dicts; those of `step` are still to be checked.

    Raises:
        UserError: a part is missing, or not of its type or range.
    """
    return _told(lambda: _whole(state), folder)


def require_fitting(
    state: dict[str, Any], step: WholeStep, ranks: int, folder: Path
) -> dict[str, Any]:
    """Check the tensors of a step's state against a step that is to go on from it.

    Args:
        state: the `step` of what `require_whole` gave.
        step: which has done nothing yet.
        ranks: how many there are.
        folder: of the checkpoint, for the error.

    Returns:
        The same, in plain dicts.

    Raises:
        UserError: a tensor is missing, or of another shape or type.
    """
    return _told(lambda: _fitting(state, step, ranks), folder)


def require_within(batches: Batches, folder: Path) -> None:
    """Check that batches were put to a place that their epochs have.

    Raises:
        UserError: an epoch has not that many batches: no later one would ever begin.
    """
    if batches.batch >= batches.steps_per_epoch:
        found = f"batch {batches.batch:,} of an epoch of {batches.steps_per_epoch:,}"
        raise _refusal(found, folder)


def _told(check: Callable[[], dict[str, Any]], folder: Path) -> dict[str, Any]:
    try:
        return check()
    except _MisfitError as misfit:
        raise _refusal(str(misfit), folder) from None


def _refusal(found: str, folder: Path) -> UserError:
    return UserError(
        folder,
        f"a checkpoint that no run of these options wrote: {found}",
        "what dcgan-train writes",
        "delete its .pt and .json to go on from the one before it, or begin a new run",
    )


def _whole(state: dict[str, Any]) -> dict[str, Any]:
    parts = _items(state, "the checkpoint")
    watch = _items(parts.get("watch"), "watch")
    no_spread = "reals_spread" in watch and watch["reals_spread"] is None
    wanted = {
        "steps": 0,
        "rollbacks": 0,
        "threads": 0,
        "seconds": 0.0,
        "spent": asdict(Spent()),
        "watch": {
            "health": Health().state_dict(),
            "reals_spread": None if no_spread else 0.0,
        },
    }
    found = {name: _like(parts.get(name), each, name) for name, each in wanted.items()}
    if found["threads"] > MAX_THREADS:
        raise _MisfitError(f"threads: {found['threads']:,}")
    found["batches"] = _position(parts.get("batches"))
    found["step"] = step = _items(parts.get("step"), "step")
    found["history"] = _rows(parts.get("history"), 2, "history")
    step["rows"] = _rows(step.get("rows"), 3, "step.rows")  # those of each rank
    told = len(found["history"]) + step["rows"].shape[1]
    if told != found["steps"]:
        raise _MisfitError(f"statistics of {told:,} steps, where {found['steps']:,} were done")
    return found


def _fitting(state: dict[str, Any], step: WholeStep, ranks: int) -> dict[str, Any]:
    wanted = step.state_dict() | {"rows": state["rows"]}
    wanted["random"] = wanted["random"].expand(ranks, -1)
    if len(state["rows"]) != ranks:
        raise _MisfitError(f"step.rows: of {len(state['rows'])} processes, not {ranks}")
    nets = {"optimizer_d": step.update.discriminator, "optimizer_g": step.update.generator}
    for name, net in nets.items():
        begun = _items(state.get(name), name)
        wanted[name] = _adam(net) if begun else {}
    if step.average is None or state.get("average") is None:
        state, wanted = state | {"average": None}, wanted | {"average": None}
    found: dict[str, Any] = _like(state, wanted, "step")
    try:
        for random in found["random"]:
            torch.Generator(step.random.device).set_state(random.clone())
    except RuntimeError as error:
        raise _MisfitError(f"step.random: {str(error).splitlines()[0][:80]}") from None
    return found


def _adam(net: nn.Module) -> dict[int, dict[str, torch.Tensor]]:
    """What `torch.optim.Adam` keeps of each parameter after its first step."""
    return {
        place: {"step": torch.zeros(()), "exp_avg": parameter, "exp_avg_sq": parameter}
        for place, parameter in enumerate(net.parameters())
    }


def _position(found: object) -> dict[str, Any]:
    batches = _items(found, "batches")
    identity = _items(batches.get("identity"), "batches.identity")
    for name, value in identity.items():
        if type(name) is not str or type(value) not in (str, int):
            raise _MisfitError(f"batches.identity: a {type(value).__name__}")
    counts = {name: _like(batches.get(name), 0, f"batches.{name}") for name in ("epoch", "batch")}
    return {**counts, "identity": identity}


def _rows(found: object, dimensions: int, name: str) -> torch.Tensor:
    rows = found if isinstance(found, torch.Tensor) and is_plain(found) else None
    shape = () if rows is None else (rows.dtype, rows.dim(), rows.shape[-1:])
    if rows is None or shape != (torch.float32, dimensions, (len(STATISTICS),)):
        raise _MisfitError(f"{name}: no rows of {len(STATISTICS)} numbers")
    return rows


def _items(found: object, name: str) -> dict[Any, Any]:
    """A dict's own entries: a pickle may give an OrderedDict methods of its choice."""
    if not isinstance(found, dict):
        raise _MisfitError(f"{name}: a {type(found).__name__}")
    return dict(dict.items(found))


def _like(found: Any, wanted: Any, name: str) -> Any:
    """Give back what is like an example: dicts by their names, tensors by shape, numbers by type.

    Numbers are at least 0, counts at most `MAX_COUNT`, others finite.
    """
    if isinstance(wanted, dict):
        entries = _items(found, name)
        if entries.keys() != wanted.keys():
            differing = sorted(map(str, entries.keys() ^ wanted.keys()))
            raise _MisfitError(f"{name}: {differing[0]:.80} missing, or too much")
        return {key: _like(entries[key], each, f"{name}.{key}") for key, each in wanted.items()}
    if isinstance(wanted, torch.Tensor):
        fits = isinstance(found, torch.Tensor) and is_plain(found)
        if not fits or found.dtype != wanted.dtype or found.shape != wanted.shape:
            raise _MisfitError(f"{name}: no {wanted.dtype} of shape {tuple(wanted.shape)}")
    elif isinstance(wanted, int):
        if type(found) is not int or not 0 <= found <= MAX_COUNT:
            raise _MisfitError(f"{name}: no count")
    elif isinstance(wanted, float):
        if type(found) not in (int, float) or not 0 <= found < math.inf:
            raise _MisfitError(f"{name}: no finite number of at least 0")
    elif found is not None:
        raise _MisfitError(f"{name}: a {type(found).__name__}")
    return found
