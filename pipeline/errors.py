"""The one error that people see: what is wrong, and what puts it right."""

from __future__ import annotations

import errno
import io
import re
import signal
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import FrameType

_UNSEEN = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""Characters that act on a terminal or in a text instead of being seen: controls, line separators,
changes of the writing direction (Unicode Standard Annex 9, section 2), and lone surrogates, which
stand for bytes of file names that are not UTF-8."""


KINDS_SHOWN = 8
"""Kinds that a line of counts names: more could not be read at a glance."""


def plain(text: str) -> str:
    """Escape, as Python does, the characters of a text that would act on a terminal."""
    return _UNSEEN.sub(lambda found: repr(found[0])[1:-1], text)


def counted(counts: Mapping[str, int]) -> str:
    """Describe counts by kind in a line, the most frequent first; kinds may come from a file."""
    ordered = sorted((+Counter(counts)).items(), key=lambda item: (-item[1], item[0]))
    shown = [f"{count:,} {plain(kind)}" for kind, count in ordered[:KINDS_SHOWN]]
    if rest := sum(count for _, count in ordered[KINDS_SHOWN:]):
        shown.append(f"{rest:,} of other kinds")
    return ", ".join(shown)


def the_first(listed: Sequence[str], most: int = KINDS_SHOWN) -> str:
    """So many of a list in a line, and whether there are more."""
    return ", ".join(listed[:most]) + (", …" if len(listed) > most else "")


def first_line(error: BaseException) -> str:
    """The first line of what an exception says, up to 160 characters; its type if it is silent."""
    return plain(next(iter(str(error).strip().splitlines()), type(error).__name__)[:160])


class UserError(ValueError):
    """A fault that the user can put right, in four parts, each a line of `plain` text.

    Args:
        where: the flag, file or folder at fault, as the user would name it.
        found: what stands there now.
        wanted: what would have been accepted.
        remedy: what to do next; a command to paste, where there is one.
        listed: single findings, each on a line below `found`.
    """

    def __init__(
        self, where: object, found: str, wanted: str, remedy: str, listed: Sequence[str] = ()
    ) -> None:
        self.where, self.found, self.wanted, self.remedy = map(
            plain, (str(where), found, wanted, remedy)
        )
        self.listed = tuple(map(plain, listed))
        lines = "".join(f"\n          {line}" for line in self.listed)
        super().__init__(
            f"{self.where}\n  found   {self.found}{lines}"
            f"\n  wanted  {self.wanted}\n  do      {self.remedy}"
        )

    def __reduce__(self) -> tuple[type[UserError], tuple[str, str, str, str, tuple[str, ...]]]:
        """Cross a process border whole: packing's workers raise it too."""
        return type(self), (self.where, self.found, self.wanted, self.remedy, self.listed)


_RIGHTS = "a file or folder that this user may use", "see whose it is with ls -ld, or name another"
_ROOM = "room for what is written", "make room, or choose a place on another disk"
_OF_THE_MACHINE = {
    errno.EACCES: _RIGHTS,
    errno.EPERM: _RIGHTS,
    errno.EROFS: ("a disk that can be written", "choose a place on another"),
    errno.ENOSPC: _ROOM,
    errno.EDQUOT: _ROOM,
    errno.ENAMETOOLONG: ("a name that the file system takes, often 255 bytes", "shorten it"),
    errno.ELOOP: ("a link that leads to a file or folder", "see where it leads with ls -l"),
}
"""What a system call may refuse wherever a path is used: what is wanted instead, and a remedy."""


def _for_people(error: BaseException) -> UserError | None:
    """The error as people see it; None for a bug, whose traceback is needed."""
    if isinstance(error, UserError):
        return error
    if not isinstance(error, OSError) or not isinstance(error.filename, str):
        return None
    known = _OF_THE_MACHINE.get(error.errno or 0)
    return known and UserError(error.filename, str(error.strerror), *known)


@contextmanager
def plain_errors(stopped: str = "") -> Iterator[None]:
    """Surround a command's `main`: turn errors for people into a message and an exit status.

    A `UserError` becomes its message on stderr and exit status 1, without a traceback. So does a
    system's refusal of a path: no permission, no space, too long a name. Ctrl-C becomes exit status
    130, even if it comes out as another error: numpy and torch lose a KeyboardInterrupt that is
    raised while they are imported, and fail later on something else. Afterwards Ctrl-C ends the
    process at once.

    Standard output escapes what it cannot encode, such as × where the locale is ASCII.

    Args:
        stopped: a line to write when Ctrl-C has come out as another error.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    interrupted = False

    def note(number: int, frame: FrameType | None) -> None:
        nonlocal interrupted
        interrupted = True
        signal.default_int_handler(number, frame)

    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # else it is ignored
        signal.signal(signal.SIGINT, note)
    try:
        yield
    except (Exception, KeyboardInterrupt) as error:
        fault = _for_people(error)
        if fault is not None:
            sys.stderr.write(f"error: {fault}\n")
            sys.exit(1)
        if not interrupted:
            raise
        if stopped:
            sys.stderr.write(f"{stopped}\n")
        sys.exit(128 + signal.SIGINT)
    finally:
        # The command is over: Ctrl-C in Python's own shutdown ends that, and shows no place in it
        if signal.getsignal(signal.SIGINT) is note:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
