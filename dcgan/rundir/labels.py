"""What the images of a conditional run are labelled with, as its `config.json` has it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

if TYPE_CHECKING:
    from pipeline.shards.labels import LabelSpace

MAX_LABELS = 1 << 15
"""As many as a shard set may have."""

SHOWN = 8
"""Names in a line of the log."""


class RunLabels(BaseModel):
    """The names of a run's labels, and examples of attributes.

    With them samples can be asked for by name, wherever the run's folder is, without its set.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["classes", "attributes"]
    names: Annotated[tuple[str, ...], Field(min_length=1, max_length=MAX_LABELS)]
    """Of the classes by number, or of the attributes."""
    rows: Annotated[tuple[str, ...], Field(max_length=MAX_LABELS)] = ()
    """For attributes, those of some images of the set: a 0 or 1 for each name."""

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        if len(set(self.names)) != len(self.names):
            raise ValueError("names that differ")
        if bool(self.rows) != (self.kind == "attributes"):
            raise ValueError("rows for attributes, and for these only")
        for row in self.rows:
            if len(row) != len(self.names) or set(row) - {"0", "1"}:
                raise ValueError("a 0 or 1 for each name in each row")
        return self

    def describe(self) -> str:
        """Describe them in a line."""
        more = ", …" if len(self.names) > SHOWN else ""
        return f"{len(self.names):,} {self.kind}: {', '.join(self.names[:SHOWN])}{more}"

    @property
    def space(self) -> LabelSpace:
        """The labels as nets and loaders take them."""
        from pipeline.shards.labels import LabelSpace  # numpy: --help does without

        return LabelSpace(self.kind, self.names)
