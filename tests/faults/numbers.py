"""Nets that hold NaN."""

from functools import partial
from pathlib import Path
from typing import Any

import torch

from tests.faults.cases import Case
from tests.faults.lab import Lab
from tests.faults.runs import Training, sealed, small_set, whole


def _poisoned(lab: Lab, net: str, part: str) -> Path:
    """One number of a trained net made NaN."""
    state = torch.load(whole(lab).path / f"net{net}.pt", weights_only=True)
    weights = lab.random.choice([value for name, value in state.items() if name.endswith(part)])
    weights[tuple(lab.random.randrange(side) for side in weights.shape)] = torch.nan
    path = lab.folder / f"nan{net}.pt"
    torch.save(state, path)
    return path


def _begin_with_nan(lab: Lab, net: str, part: str, action: str) -> str:
    """Found at a tick or checkpoint; going back does not help, and is not tried for ever."""
    options = {f"net{net}": _poisoned(lab, net, part)}
    lab.faults += 1
    training = Training(lab, small_set(lab), on_trouble=action, **options)
    ended = training.go()
    ended.refused("non-finite")
    if sealed(training.run):
        ended.fail("a checkpoint of nets that hold NaN")
    if action == "rollback" and "gave up after 3 rollbacks" not in ended.out:
        ended.fail("not three rollbacks")
    return "clear error"


def _notice_in_statistics(lab: Lab) -> str:
    """Between two checkpoints, each of which would look at the nets, the next tick finds it."""
    net = _poisoned(lab, "D", "weight")
    lab.faults += 1
    seldom: dict[str, Any] = {"checkpoint_every": 1000, "on_trouble": "stop"}
    ended = Training(lab, small_set(lab), netD=net, **seldom).go()
    ended.refused("At step 1 a loss or an output of D")
    return "clear error at the next tick"


CASES = (
    Case("NaN in a weight of netD, long before a checkpoint", _notice_in_statistics, 1),
    *(
        Case(
            f"NaN in a {part} of net{net}, --on-trouble {action}",
            partial(_begin_with_nan, net=net, part=part, action=action),
            1,
        )
        for net, part, action in (
            ("D", "weight", "rollback"),
            ("G", "weight", "stop"),
            # Read by no step of training: the losses stay finite
            ("D", "running_mean", "warn"),
        )
    ),
)
