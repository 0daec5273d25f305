"""Harm to single files: bits, ends, and the room that is left."""

import errno
import os
import random
import shutil
from pathlib import Path

BALLOON = "balloon"


def flip(path: Path, draw: random.Random, first: int = 0, end: int | None = None) -> None:
    """Flip a random bit between two offsets."""
    offset = draw.randrange(first, path.stat().st_size if end is None else end)
    with path.open("r+b") as file:
        file.seek(offset)
        value = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([value ^ 1 << draw.randrange(8)]))


def cut(path: Path, draw: random.Random, share: float = 1.0) -> None:
    """Lose a file's end, from a random byte in this first share of it on."""
    os.truncate(path, draw.randrange(int(share * path.stat().st_size)))


def fill(disk: Path, left: int) -> None:
    """Leave so many bytes free, in the file system's blocks."""
    with (disk / BALLOON).open("wb") as file:
        while (size := shutil.disk_usage(disk).free - left) > 0:
            try:
                os.posix_fallocate(file.fileno(), 0, size)
            except OSError as error:  # a command that goes on writing took some of it meanwhile
                if error.errno != errno.ENOSPC:
                    raise
            else:
                return


def make_room(disk: Path) -> None:
    (disk / BALLOON).unlink()
