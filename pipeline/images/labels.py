"""What an image can be labelled with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["classes", "attributes"]

MAX_CLASSES = 1 << 15
"""More classes than any set of pictures has: ImageNet's whole tree has 21,841."""


@dataclass(frozen=True)
class LabelSpace:
    """The classes by number, one of which an image has, or the yes/no attributes."""

    kind: Kind
    names: tuple[str, ...]
