"""The labels of a shard set: one class for an image, or several yes/no attributes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["classes", "attributes"]


@dataclass(frozen=True)
class LabelSpace:
    """What an image can be labelled with: the classes by number, or the attributes."""

    kind: Kind
    names: tuple[str, ...]
