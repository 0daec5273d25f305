"""Types of what a checkpoint holds, for those that own a part of it; hostile files are refused."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from dcgan.nets.weights import is_plain
from dcgan.rundir.folder import MAX_COUNT
from dcgan.step.adversarial import STATISTICS

Count = Annotated[int, Field(strict=True, ge=0, le=MAX_COUNT)]
Number = Annotated[float, Field(strict=True, ge=0, le=10**12, allow_inf_nan=False)]
"""Seconds, or levels: as many as a time can be told of."""


class Part(BaseModel):
    """A part of a state: these names, of these types, and no others."""

    model_config = ConfigDict(extra="forbid", arbitrary_types_allowed=True)


def _plain(tensor: torch.Tensor) -> torch.Tensor:
    if not is_plain(tensor):
        raise ValueError("a tensor that holds less than it claims")
    return tensor


def _rows(dimensions: int) -> AfterValidator:
    def check(tensor: torch.Tensor) -> torch.Tensor:
        shape = (tensor.dim(), tensor.shape[-1:], tensor.dtype)
        if shape != (dimensions, (len(STATISTICS),), torch.float32):
            raise ValueError(f"no rows of {len(STATISTICS)} numbers")
        return tensor

    return AfterValidator(check)


Tensor = Annotated[torch.Tensor, AfterValidator(_plain)]
Rows = Annotated[Tensor, _rows(2)]
"""(steps, 5) float32, in the order of `STATISTICS`."""
RowsOfRanks = Annotated[Tensor, _rows(3)]
"""(ranks, steps, 5) float32."""
