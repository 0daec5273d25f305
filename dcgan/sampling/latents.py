"""Latents to draw, each by a number: a seed's own, or a row of a file; and files of latents."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
import torch

from dcgan.sampling.generate import latents
from pipeline.errors import UserError, first_line, plain
from pipeline.files import file_digest, replacing

MAX_LATENTS = 1_000_000
"""In a file: of each a PNG can be asked for, and folders of more are of no use."""

LARGEST = 1000.0
"""Latents are drawn from N(0, 1); far larger ones overflow in the net."""

CHECKED = 4096
"""Latents of a file that are in memory at a time."""


@dataclass(frozen=True)
class Latents:
    """Latents to draw, in the order of a grid.

    Attributes:
        word: what a number is, `seed` or `latent`.
        numbers: none of the ranges empty.
        of: returns the latent of a number, (nz, 1, 1) float32 on the CPU.
        texts: for each PNG to hold, by keyword.
    """

    word: str
    numbers: Sequence[range]
    of: Callable[[int], torch.Tensor]
    texts: Mapping[str, str]

    def __iter__(self) -> Iterator[torch.Tensor]:
        return map(self.of, chain(*self.numbers))


def latents_of_seeds(seeds: Sequence[range], nz: int) -> Latents:
    """Return what `latents` draws of each seed."""
    return Latents("seed", seeds, lambda seed: latents([seed], nz)[0], {})


def read_latents(path: Path, nz: int) -> Latents:
    """Open a file of latents; a row is read when it is drawn.

    Args:
        path: of an array in numpy's format, (N, nz) or (N, nz, 1, 1) float32 or float64; see
            numpy.org/doc/stable/reference/generated/numpy.lib.format.html.
        nz: length of the net's latent.

    Raises:
        UserError: it is another file, or has more than `MAX_LATENTS` latents, or in them NaN or
            numbers beyond `LARGEST`.
    """

    def refusal(found: str) -> UserError:
        return UserError(
            f"--latents {path}",
            found,
            f"a .npy file of float32 or float64, of shape (N, {nz}) or (N, {nz}, 1, 1), N from 1 to"
            f" {MAX_LATENTS:,}, from {-LARGEST:g} to {LARGEST:g}",
            "write one with --save-latents, or with numpy.save",
        )

    if not path.is_file():
        raise refusal("no such file")
    try:
        rows = np.lib.format.open_memmap(path, mode="r")  # refuses pickled objects
    except Exception as error:  # a damaged header raises many kinds
        raise refusal(f"no array that can be read: {first_line(error)}") from None
    count = len(rows) if rows.ndim else 0
    fits = rows.shape in ((count, nz), (count, nz, 1, 1))
    if not fits or rows.dtype.name not in ("float32", "float64"):
        raise refusal(f"{rows.dtype.name} of shape {rows.shape}")
    if not 1 <= count <= MAX_LATENTS:
        raise refusal(f"{count:,} latents")
    for start in range(0, count, CHECKED):
        bad = ~(np.abs(rows[start : start + CHECKED]) <= LARGEST)  # NaN, too
        if bad.any():
            raise refusal(f"{rows[start : start + CHECKED][bad][0]} among its numbers")
    texts = {"Latents file": plain(path.name), "Latents file SHA-256": file_digest(path)}

    def row(number: int) -> torch.Tensor:
        return torch.from_numpy(rows[number].astype(np.float32)).reshape(nz, 1, 1)

    return Latents("latent", [range(count)], row, texts)


def save_latents(rows: Iterable[torch.Tensor], shape: tuple[int, int], path: Path) -> None:
    """Write latents as numpy's format has them, in constant memory.

    Args:
        rows: (nz, 1, 1) float32 on the CPU each.
        shape: (N, nz), of the array.
        path: of the file.
    """
    header = {"descr": "<f4", "fortran_order": False, "shape": shape}
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        for row in rows:
            file.write(row.numpy().astype("<f4").tobytes())
