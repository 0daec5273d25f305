"""Labels of samples: the one that was asked for by name, or the set's where none was."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import NamedTuple, TypeVar

import torch

from dcgan.nets.models import Generator
from dcgan.nets.weights import examples_of
from dcgan.options import LABELS_SHOWN, RunLabels
from dcgan.sampling.generate import FIXED_SEEDS, latents
from dcgan.sampling.pictures import COLUMNS
from pipeline.errors import UserError
from pipeline.images.labels import LabelSpace

EXAMPLES = 256
"""Images whose attributes a run keeps, so that samples have attributes that occur together."""

USUAL = 4096
"""Images whose labels those of measured samples are taken from."""

MOST_ROWS = 16
"""Rows of a grid with a row for each label."""

YES, NO = ("1",), ("-1", "0")
"""Values of an attribute: as CelebA's list and `--where` have them, or as a table's column."""

T = TypeVar("T")


@dataclass(frozen=True)
class Label:
    """What samples are asked to have: a class, or values of some attributes.

    Attributes:
        values: 0 or 1 by the number of an attribute; 1 by that of a class.
    """

    space: LabelSpace
    values: Mapping[int, int]

    @property
    def name(self) -> str:
        """The label as `--label` reads it."""
        names = self.space.names
        if self.space.kind == "classes":
            return ",".join(names[place] for place in self.values)
        return ",".join(f"{names[place]}={value or -1}" for place, value in self.values.items())

    def fits(self, labels: torch.Tensor) -> torch.Tensor:
        """Tell which of (N,) int64 classes, or (N, k) float32 attributes, have it: (N,) bool."""
        if self.space.kind == "classes":
            (number,) = self.values
            return labels == number
        found = torch.ones(len(labels), dtype=torch.bool, device=labels.device)
        for place, value in self.values.items():
            found &= labels[:, place] == value
        return found

    def labels(self, examples: torch.Tensor | None) -> torch.Tensor:
        """Return labels to draw with, (m,) or (m, k), of which seed s takes entry s mod m.

        Args:
            examples: labels of images of the set. Attributes that are not named are those of the
                examples that have what is asked for; if none has, those of all of them. Without
                examples they are 0.
        """
        if self.space.kind == "classes":
            return torch.tensor([*self.values])
        rows = torch.zeros(1, len(self.space.names)) if examples is None else examples
        fitting = rows[self.fits(rows)]
        rows = fitting if len(fitting) else rows.clone()
        for place, value in self.values.items():
            rows[:, place] = value
        return rows

    def of_seeds(
        self, seeds: Iterable[int], examples: torch.Tensor | None
    ) -> Iterator[torch.Tensor]:
        """Return for each seed the label to draw with, () or (k,); see `labels`."""
        labels = self.labels(examples)
        return (labels[seed % len(labels)] for seed in seeds)

    def row(self, seed: int, examples: torch.Tensor | None) -> torch.Tensor:
        """Return the label of a seed as a row that can be mixed with others, (n,) float."""
        (label,) = self.of_seeds([seed], examples)
        if self.space.kind == "classes":
            return torch.nn.functional.one_hot(label, len(self.space.names)).float()
        return label


def each_label(space: LabelSpace) -> list[Label]:
    """Return all labels that a grid or a table has a row for: classes, or values of attributes."""
    if space.kind == "classes":
        return [Label(space, {number: 1}) for number in range(len(space.names))]
    return [Label(space, {number: value}) for number in range(len(space.names)) for value in (1, 0)]


# From the labels of a set


def describe_labels(space: LabelSpace, table: torch.Tensor) -> RunLabels:
    """Return what a run keeps of its set's labels, (n,) int64 or (n, k) float32."""
    rows: Iterable[str] = ()
    if space.kind == "attributes":
        rows = ("".join(map(str, row)) for row in _some(table, EXAMPLES).int().tolist())
    return RunLabels(kind=space.kind, names=space.names, rows=tuple(rows))


def usual_labels(table: torch.Tensor) -> torch.Tensor:
    """Return labels like those of a set, on the CPU, for samples that are compared with it.

    They are rows of the set's table, (n,) int64 or (n, k) float32.
    """
    return _some(table, USUAL)


def _some(table: torch.Tensor, count: int) -> torch.Tensor:
    """Draw rows of a table without repetition, always the same ones."""
    order = torch.randperm(len(table), generator=torch.Generator().manual_seed(0))
    return table[order[:count].to(table.device)].cpu()


def labels_of(net: Generator, seeds: Iterable[int]) -> Iterator[torch.Tensor] | None:
    """Return a label for each seed, () int64 or (k,) float32; None for an unconditional net."""
    if net.labels is None:
        return None
    usual = net.usual_labels
    if usual is None:
        count = len(net.labels.names)
        classes = net.labels.kind == "classes"
        usual = torch.arange(count) if classes else torch.zeros(1, count)
    return (usual[seed % len(usual)] for seed in seeds)


# A grid with a row for each label


class LabelRows(NamedTuple):
    """What such a grid is drawn from: all rows have the same latents."""

    names: list[str] | None
    """Of the rows; None for the grid of an unconditional net."""
    noise: torch.Tensor
    """(N, nz, 1, 1)"""
    labels: torch.Tensor | None
    """(N,) int64 or (N, k) float32."""


def fixed_grid(nz: int, labels: RunLabels | None) -> LabelRows:
    """Return what every grid of a run is drawn from."""
    if labels is None:
        return LabelRows(None, latents(FIXED_SEEDS, nz), None)
    shown, examples = each_label(labels.space)[:MOST_ROWS], examples_of(labels)
    rows = [row for label in shown for row in label.of_seeds(range(COLUMNS), examples)]
    noise = latents(range(COLUMNS), nz).repeat(len(shown), 1, 1, 1)
    return LabelRows([label.name for label in shown], noise, torch.stack(rows))


# From the command line


def parse_label(text: str, space: LabelSpace) -> Label:
    """Read a class, as in `cats`, or values of attributes, as in `Smiling=1,Male=-1`.

    Raises:
        UserError: there is no such label.
    """
    return parse_walk(text, space, most=1)[0]


def parse_walk(text: str, space: LabelSpace, most: int | None = None) -> list[Label]:
    """Read labels with colons between them, as in `cats:dogs`. Names may have colons, too.

    Raises:
        UserError: there is no such label, or there are more than `most`.
    """
    read = _class_of if space.kind == "classes" else _values_of
    found = _parts(text, ":", lambda part: read(part, space))
    if found is None:
        raise _unknown(text, space)
    if most is not None and len(found) > most:
        raise UserError(
            f"--label {text}",
            f"{len(found)} labels",
            "one, for a grid or files",
            "draw one after another, or walk between them with --interpolate",
        )
    return [Label(space, values) for values in found]


def _class_of(text: str, space: LabelSpace) -> dict[int, int] | None:
    return {space.names.index(text): 1} if text in space.names else None


def _values_of(text: str, space: LabelSpace) -> dict[int, int] | None:
    pairs = _parts(text, ",", lambda part: _value_of(part, space))
    if pairs is None or len(dict(pairs)) < len(pairs):  # an attribute was named twice
        return None
    return dict(pairs)


def _value_of(text: str, space: LabelSpace) -> tuple[int, int] | None:
    name, _, value = (part.strip() for part in text.rpartition("="))
    if name not in space.names or value not in YES + NO:
        return None
    return space.names.index(name), int(value in YES)


def _parts(text: str, separator: str, read: Callable[[str], T | None]) -> list[T] | None:
    """Split a text into parts that can be read; a part may contain the separator.

    Returns:
        What was read of each part, the first as long as possible; None if it cannot be split so.
    """
    pieces = text.split(separator)
    ways: list[list[T] | None] = [[]]  # by the number of pieces, from the end
    for start in range(len(pieces) - 1, -1, -1):
        way = None
        for end in range(len(pieces), start, -1):
            rest = ways[len(pieces) - end]
            part = read(separator.join(pieces[start:end])) if rest is not None else None
            if rest is not None and part is not None:
                way = [part, *rest]
                break
        ways.append(way)
    return ways[-1]


def _unknown(text: str, space: LabelSpace) -> UserError:
    kind, names = space.kind, space.names
    more = f" and {len(names) - LABELS_SHOWN:,} more" if len(names) > LABELS_SHOWN else ""
    named = text.partition("=")[0]
    nearest = (get_close_matches(named, names, 1, 0.5) or names)[0]
    example = nearest if kind == "classes" else f"{nearest}=1"
    between = "" if kind == "classes" else ", with 1 or -1 for each that is asked for"
    return UserError(
        f"--label {text}",
        "no label of this net",
        f"of its {len(names):,} {kind}: {', '.join(names[:LABELS_SHOWN])}{more}{between}",
        f"for example --label={example!r}; config.json in the run's folder lists all",
    )
