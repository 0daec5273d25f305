"""The one error that people see: what is wrong, and what puts it right."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager


class UserError(ValueError):
    """A fault that the user can put right, told in four parts.

    Args:
        where: the flag, file or folder at fault, as the user would name it.
        found: what stands there now.
        wanted: what would have been accepted.
        remedy: what to do next; a command to paste, where there is one.
    """

    def __init__(self, where: object, found: str, wanted: str, remedy: str) -> None:
        self.where, self.found, self.wanted, self.remedy = str(where), found, wanted, remedy
        super().__init__(f"{self.where}\n  found   {found}\n  wanted  {wanted}\n  do      {remedy}")

    def __reduce__(self) -> tuple[type[UserError], tuple[str, str, str, str]]:
        """Cross a process border whole: packing's workers raise it too."""
        return type(self), (self.where, self.found, self.wanted, self.remedy)


@contextmanager
def told_plainly() -> Iterator[None]:
    """Turn a `UserError` into its message on stderr and exit status 1, without a traceback."""
    try:
        yield
    except UserError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(1)
