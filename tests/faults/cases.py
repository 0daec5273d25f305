"""What a case is."""

from collections.abc import Callable
from dataclasses import dataclass

from tests.faults.lab import Lab


@dataclass(frozen=True)
class Case:
    """One kind of fault.

    Args:
        fault: what happens, to what.
        inject: does it to something new, demands what must come of it, and tells that in words.
        times: how often, each time at another moment or place.
        quick: the same for a short round.
    """

    fault: str
    inject: Callable[[Lab], str]
    times: int
    quick: int = 1
