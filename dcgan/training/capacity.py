"""Checks of disk space before a run, and errors for a lack of disk space or memory during it."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from dcgan.options import TrainConfig
from dcgan.step.train_step import WholeStep
from pipeline.errors import UserError, first_line

PICTURES = 64 << 20
"""Bytes to allow for logs, curves and a few hundred grids."""

_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG, errno.EIO)
"""Errors that mean a full or read-only disk."""

_SHORTAGES = ("out of memory", "can't allocate memory", "Storage size calculation overflowed")
"""Texts by which to recognise a lack of memory when torch raises a plain `RuntimeError`, as it does
on the CPU."""


def check_disk(folder: Path, step: WholeStep, keep: int) -> None:
    """Check that the disk has room for all that a run writes, with `keep` checkpoints.

    The folder may not exist yet.

    Raises:
        UserError: there is not enough room.
    """
    nets = [step.update.generator, step.update.discriminator]
    weights = sum(tensor.nbytes for net in nets for tensor in net.parameters())
    average = [] if step.ema is None else [*step.ema.net.parameters()]
    checkpoint = 3 * weights + sum(tensor.nbytes for tensor in average)  # Adam keeps two moments
    # Besides those to keep: the best one, the one being written, and the nets as files
    needed = (keep + 3) * checkpoint + PICTURES
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(there).free
    if free < needed:
        raise UserError(
            f"--run {folder}",
            f"{free / 1e6:,.0f} MB free on its disk",
            f"{needed / 1e6:,.0f} MB: a checkpoint takes {checkpoint / 1e6:,.0f} MB,"
            f" and --keep {keep} of them are kept",
            "make room, choose a --run on another disk, or a smaller --keep",
        )


@contextmanager
def shortage_named(config: TrainConfig) -> Iterator[None]:
    """Turn a lack of memory or disk space into an error that names the options to change."""
    try:
        yield
    except OSError as error:
        if error.errno not in _DISK:
            raise
        raise UserError(
            error.filename or f"--run {config.run or 'runs/'}",
            f"cannot be written ({error.strerror})",
            "a writable disk with free space",
            "make room, then resume by the same command with the same --run",
        ) from error
    except (MemoryError, RuntimeError) as error:
        text = str(error) or type(error).__name__
        known = isinstance(error, MemoryError | torch.OutOfMemoryError)
        if not known and not any(sign in text for sign in _SHORTAGES):
            raise
        cache = "" if config.cache == "off" else "--cache off, "
        raise UserError(
            f"--batch-size {config.batch_size}, --ngf {config.ngf}, --ndf {config.ndf}",
            f"not enough memory ({first_line(error)})",
            "nets and batches that fit",
            f"try {cache}--batch-size {max(1, config.batch_size // 2)}, or smaller --ngf and --ndf",
        ) from error
