"""Nets that hold NaN, or that lead to it."""

import hashlib
import json
from functools import partial
from pathlib import Path

import torch

from tests.faults.cases import Case
from tests.faults.lab import Lab
from tests.faults.runs import STEPS, Training, half_done, sealed, small_set, whole


def _spoil(state: dict[str, torch.Tensor], lab: Lab, part: str = "") -> None:
    """Make one number NaN."""
    floats = [t for name, t in state.items() if name.endswith(part) and t.is_floating_point()]
    tensor = lab.random.choice(floats)
    tensor[tuple(lab.random.randrange(side) for side in tensor.shape)] = torch.nan


def _overflowing(lab: Lab, net: str) -> Path:
    """A trained net whose first layer multiplies by all that float32 can hold."""
    state = torch.load(whole(lab).path / f"net{net}.pt", weights_only=True)
    state["main.0.weight"].fill_(3e38)
    path = lab.folder / f"overflowing{net}.pt"
    torch.save(state, path)
    return path


def _begin_to_overflow(lab: Lab, net: str, action: str) -> str:
    """Found at a tick or checkpoint; going back does not help, and is not tried for ever."""
    options = {f"net{net}": _overflowing(lab, net)}
    lab.faults += 1
    training = Training(lab, small_set(lab), on_trouble=action, **options)
    ended = training.go()
    ended.refused("non-finite")
    if sealed(training.run):
        ended.fail("a checkpoint of nets that hold NaN")
    if action == "rollback" and "gave up after 3 rollbacks" not in ended.out:
        ended.fail("not three rollbacks")
    return "clear error"


def _go_on_with_nan(lab: Lab) -> str:
    """In what no step of training reads: losses stay finite, and the next checkpoint finds it."""
    training = half_done(lab)
    path = max(training.run.checkpoints.glob("*.pt"))
    state = torch.load(path, weights_only=True)
    _spoil(state["step"]["discriminator"], lab, "running_mean")
    torch.save(state, path)
    data = path.read_bytes()
    seal = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    path.with_suffix(".json").write_text(json.dumps(seal))
    lab.faults += 1
    before = sealed(training.run)
    ended = training.go()
    ended.refused("non-finite")
    if sealed(training.run) != before or max(before) >= STEPS:
        ended.fail("a checkpoint of nets that hold NaN")
    return "clear error"


CASES = (
    *(
        Case(
            f"net{net} that overflows, --on-trouble {action}",
            partial(_begin_to_overflow, net=net, action=action),
            1,
        )
        for net, action in (("D", "rollback"), ("G", "stop"))
    ),
    Case("NaN in a running_mean of a checkpoint's netD", _go_on_with_nan, 1),
)
