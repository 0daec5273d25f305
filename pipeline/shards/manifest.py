"""The manifest of a shard set: what is in it, and how it was made.

A set is a folder of `shard-000000.tar` … with `shard-000000.idx` (DALI's index) beside each, and
`manifest.json`, which is written last: without it the set does not exist.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    field_validator,
    model_serializer,
    model_validator,
)

from pipeline.errors import UserError, plain
from pipeline.files import digest
from pipeline.images.fit import CROP, PATTERN, parse_fit
from pipeline.images.labels import MAX_CLASSES
from pipeline.images.size import (
    LEAST,
    MOST,
    ImageSize,
    image_size,
    parse_size,
    sides,
    size_text,
)

MANIFEST = "manifest.json"
SAMPLES = "samples.csv"
REJECTS = "rejects.csv"
HEADERS = {SAMPLES: "key,shard,source,crc32", REJECTS: "source,reason,bytes"}
"""The first line of each table."""

LABELS = "labels.npy"

PROGRESS = ".packing"
"""Sub-folder of an unfinished set: what is needed to resume it."""

DEFAULT_SIZE = 64
"""The default of `dcgan-train --image-size`."""

DEFAULT_QUALITY = 95
"""Of small JPEGs, and of what `--store original` must encode anew: with 4:4:4 chroma, the JPEG
closest to its source that is still of ordinary size."""

MAX_MANIFEST_BYTES = 64 << 20
"""A manifest has one row a shard: even a set of a hundred million images stays far below."""

MAX_INDEX_BYTES = 1 << 28
"""The largest index of a shard: five million lines."""

Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Count = Annotated[int, Field(ge=0, le=10**15)]
"""Bounded, so that sums of them stay far below the range of a C integer."""
Positive = Annotated[int, Field(gt=0, le=10**15)]
Side = Annotated[int, Field(gt=0, le=1 << 26)]
"""In pixels; no image has more of them in all."""
Size = tuple[Side, Side]
StoredSide = Annotated[int, Field(ge=LEAST, le=MOST)]

LABEL_EXTENSION = {"classes": "cls", "attributes": "json"}
"""Of the component beside the image, as webdataset decodes it."""

MAX_ATTRIBUTES = 1 << 10
"""What has more values for an image is an embedding."""

MAX_LABEL_NAME = 200
"""In characters."""


def _shown(name: str) -> str:
    if plain(name) != name:
        raise ValueError("a label with characters that are not shown")
    return name


LabelName = Annotated[str, Field(min_length=1, max_length=MAX_LABEL_NAME), AfterValidator(_shown)]

FROM_2 = "in sets of format 2 only"
"""Marks the fields that a set of format 1 does not have: there they keep their default."""

SINCE_0_2 = "in sets packed by version 0.2 or later"
"""Marks the fields that older sets of either format lack. They say nothing about the images, so a
set that is packed again keeps its fingerprint."""


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    @model_serializer(mode="wrap")
    def _without_later_fields(self, dump: SerializerFunctionWrapHandler) -> dict[str, object]:
        """Leave out what an older set does not have, so that it keeps its fingerprint."""
        later = self._later_fields(FROM_2) | self._later_fields(SINCE_0_2)
        return {name: value for name, value in dump(self).items() if later.get(name, True)}

    def _later_fields(self, mark: str = FROM_2) -> dict[str, bool]:
        """Return the fields with this mark, and whether each is in use."""
        return {
            name: getattr(self, name) != field.default
            for name, field in type(self).model_fields.items()
            if mark in field.metadata
        }


class Recipe(_Record):
    """How source images became stored ones."""

    store: Literal["original", "jpeg", "raw"] = "original"
    """`original`: the source file's own bytes; `jpeg`: cropped, resized and encoded; `raw`: pixels,
    uint8 RGB of exactly `size`."""
    crop: Literal["none", "centre"] | Annotated[int, Field(ge=8, le=1 << 16)] = "none"
    """The part of the image that is used: all, the middle as Resize and CenterCrop take it, or the
    middle square of so many pixels. Readers apply it to `original` stores; in the others it is
    applied already."""
    fit: Annotated[str, Field(pattern=PATTERN), FROM_2] = CROP
    """How that part comes to its size, as `pipeline.images.fit` has it. Readers fit what is stored
    whole (`original`, and `jpeg` with neither a crop nor another fit), and may do it otherwise."""
    size: StoredSide | tuple[StoredSide, StoredSide] | None = None
    """The size of what is stored, which only in format 2 may be (width, height) instead of the side
    of a square; a whole image just covers it."""
    filter: Literal["bilinear"] | None = None
    """The resize: antialiased bilinear, as torchvision's Resize and DALI's TRIANGULAR."""
    quality: Annotated[int, Field(ge=1, le=100)] | None = None
    """The JPEG quality of `jpeg` stores."""
    checked: bool = True
    """Whether every image was decoded before it went in."""

    @property
    def format(self) -> Literal[1, 2]:
        """The format of a set of this recipe, as far as the recipe decides on it."""
        return 2 if any(self._later_fields().values()) or isinstance(self.size, tuple) else 1

    @field_validator("size")
    @classmethod
    def _in_one_form(cls, size: ImageSize | None) -> ImageSize | None:
        return None if size is None else image_size(*sides(size))

    def describe(self) -> str:
        """The recipe as options of the packing command; of format 1, as they once were."""
        words = [f"--store {self.store}"]
        in_fit = self.format == 2 and self.crop == "centre"
        words += [] if in_fit else [f"--crop {self.crop}"]
        words += [f"--fit {self.fit}"] if in_fit or self.fit != CROP else []
        words += [] if self.size is None else [f"--size {size_text(self.size)}"]
        words += [] if self.quality is None else [f"--quality {self.quality}"]
        return " ".join(words)

    @property
    def is_whole(self) -> bool:
        """Whether images are stored whole, for readers to fit them."""
        return self.store == "original" or (self.crop == "none" and self.fit == CROP)

    @property
    def reader_crop(self) -> int | None:
        """Side of the middle square that readers have to cut out themselves, if they have to."""
        return self.crop if self.store == "original" and isinstance(self.crop, int) else None

    @property
    def extension(self) -> str:
        """The extension of a sample's component."""
        return "raw" if self.store == "raw" else "jpg"


def make_recipe(
    store: Literal["original", "jpeg", "raw"],
    size: ImageSize | str | None,
    crop: str | None,
    quality: int | None,
    fit: str | None = None,
    *,
    checked: bool,
) -> Recipe:
    """Turn the packing command's options into a recipe; None is an option that was not given.

    Raises:
        UserError: options that contradict one another, or a value out of range.
    """
    size = None if size is None else parse_size(size, "--size")
    given = {"--size": None if size is None else size_text(size), "--quality": quality}
    useless = {"original": ("--size", "--quality"), "jpeg": (), "raw": ("--quality",)}[store]
    for flag in useless:
        if given[flag] is not None:
            raise UserError(
                f"{flag} {given[flag]}",
                f"--store {store}",
                "a store that it has a meaning for",
                f"leave {flag} out, or choose --store jpeg",
            )
    fitted = parse_fit(fit)
    cropping = _crop(crop, store, fitted)
    if store == "original":
        return Recipe(crop=cropping, fit=fitted or CROP, checked=checked)
    size = DEFAULT_SIZE if size is None else size
    quality = (DEFAULT_QUALITY if quality is None else quality) if store == "jpeg" else None
    if quality is not None:
        _require_range("--quality", quality, 1, 100)
    if isinstance(cropping, int) and cropping < max(sides(size)):
        raise UserError(
            f"--crop {cropping}",
            f"--size {size_text(size)}",
            "a crop of at least the size that is stored",
            f"use --size {cropping} or less, or a larger --crop",
        )
    return Recipe(
        store=store,
        crop=cropping,
        fit=fitted or CROP,
        size=size,
        filter="bilinear",
        quality=quality,
        checked=checked,
    )


def _crop(text: str | None, store: str, fit: str | None) -> Literal["none", "centre"] | int:
    """What is cut out first; or where that is nothing, whether the middle is taken in the end."""
    if text is None or text == "none":
        if text is None and fit is None and store != "original":
            fit = CROP
        if store == "raw" and fit is None:
            raise UserError(
                "--crop none",
                "--store raw, without --fit",
                "images of one size",
                "add --fit crop, pad or stretch, or choose --store jpeg",
            )
        return "centre" if fit == CROP else "none"
    if text == "centre":
        remedy = "write --fit crop in its place"
        raise UserError("--crop centre", "what is now a fit", "none, or a number of pixels", remedy)
    if not text.isdecimal():
        raise UserError(
            f"--crop {text}",
            "neither none nor a number",
            "none, or a number of pixels",
            "for CelebA, --crop 108 and --crop 148 are common",
        )
    _require_range("--crop", int(text), 8, 1 << 16)
    return int(text)


def _require_range(flag: str, value: int, least: int, most: int) -> None:
    if not least <= value <= most:
        raise UserError(f"{flag} {value}", "out of range", f"{least} to {most}", "correct it")


class Shard(_Record):
    """One tar and its index."""

    name: Annotated[str, Field(pattern=r"^shard-[0-9]{6}$")]
    samples: Positive
    bytes: Positive
    """The size of the tar file."""
    tar_sha256: Digest
    index_sha256: Digest

    @property
    def digests(self) -> dict[str, str]:
        """The SHA-256 of each of its files, by name."""
        return {f"{self.name}.tar": self.tar_sha256, f"{self.name}.idx": self.index_sha256}


class Labels(_Record):
    """What the images of a set are labelled with; `labels.npy` has each image's own."""

    kind: Literal["classes", "attributes"]
    """One class for an image, or several yes/no attributes."""
    names: Annotated[tuple[LabelName, ...], Field(min_length=1, max_length=MAX_CLASSES)]
    """Of the classes, by their number, or of the attributes."""
    counts: Annotated[tuple[Count, ...], Field(min_length=1, max_length=MAX_CLASSES)]
    """Images of each class, or those that have each attribute."""
    sha256: Digest
    """Of `labels.npy`."""

    @model_validator(mode="after")
    def _adds_up(self) -> Self:
        if self.kind == "attributes" and len(self.names) > MAX_ATTRIBUTES:
            raise ValueError(f"more than {MAX_ATTRIBUTES:,} attributes")
        if len(set(self.names)) != len(self.names):
            raise ValueError("a label is named twice")
        if len(self.counts) != len(self.names):
            raise ValueError("as many counts as names are wanted")
        return self


class Manifest(_Record):
    """What `manifest.json` holds; sizes are (width, height) in pixels."""

    format: Literal[1, 2] = 1
    """2 if the set has something that readers of format 1 would misread."""
    recipe: Recipe
    seed: Annotated[int, Field(ge=0)]
    samples: Positive
    rejected: Count
    """Images of the source that are not in the set; `rejects.csv` lists them."""
    image_bytes: Positive
    """All stored images together, without the tar's headers."""
    largest_image: Size
    smallest_image: Size
    """The extremes of each side: no image need have either size."""
    shards: Annotated[tuple[Shard, ...], Field(min_length=1, fail_fast=True)]
    labels: Annotated[Labels | None, FROM_2] = None
    samples_sha256: Annotated[Digest | None, SINCE_0_2] = None
    """Of `samples.csv`."""
    rejects_sha256: Annotated[Digest | None, SINCE_0_2] = None
    """Of `rejects.csv`, if images were rejected."""

    @model_validator(mode="after")
    def _adds_up(self) -> Self:
        if sum(shard.samples for shard in self.shards) != self.samples:
            raise ValueError("the shards' samples do not add up to the set's")
        if len({shard.name for shard in self.shards}) != len(self.shards):
            raise ValueError("a shard is named twice")
        later = any(self._later_fields().values()) or self.recipe.format == 2
        if later != (self.format == 2):
            raise ValueError(f"format {self.format}, with fields of another")
        if self.recipe.store == "raw" and self.recipe.size is None:
            raise ValueError("raw pixels without a size")
        if self.labels is not None:
            counts, classes = self.labels.counts, self.labels.kind == "classes"
            if max(counts) > self.samples or (classes and sum(counts) != self.samples):
                raise ValueError("the labels' counts do not add up to the samples")
        return self

    @property
    def extensions(self) -> tuple[str, ...]:
        """The extensions of a sample's components, the image's first."""
        labels = () if self.labels is None else (LABEL_EXTENSION[self.labels.kind],)
        return (self.recipe.extension, *labels)

    @property
    def fingerprint(self) -> str:
        """A digest of what it says of the images, all tars' digests among that."""
        older = dict.fromkeys(self._later_fields(SINCE_0_2))
        return digest(self.model_copy(update=older).model_dump_json().encode())[:16]

    @property
    def digests(self) -> dict[str, str]:
        """The SHA-256 of each file of the set, by its name, as far as it is known."""
        known: dict[str, str] = {}
        for shard in self.shards:
            known |= shard.digests
        labels = None if self.labels is None else self.labels.sha256
        others = {LABELS: labels, SAMPLES: self.samples_sha256, REJECTS: self.rejects_sha256}
        return known | {name: sha256 for name, sha256 in others.items() if sha256 is not None}

    def sizes(self) -> str:
        """The one size of all images, or the range of each side, in words."""
        if self.smallest_image == self.largest_image:
            return "×".join(map(str, self.largest_image)) + " pixels"
        extremes = zip(("width", "height"), self.smallest_image, self.largest_image, strict=True)
        return " and ".join(
            f"{side} {least:,}" if least == most else f"{side}s {least:,}–{most:,}"
            for side, least, most in extremes
        )


def parse_manifest(data: bytes, path: object, again: str) -> Manifest:
    """Read a manifest; `again` is the command that packs the set again.

    Raises:
        UserError: it is none, or of another format.
    """
    try:
        return Manifest.model_validate_json(data)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in first["loc"]) or "the whole file"
        if place == "format":
            raise UserError(
                path,
                f"a shard set of format {str(first['input'])[:40]}",
                "format 1 or 2, which is what this version reads",
                f"pack again with this version: {again}",
            ) from None
        found = f"{place:.200}: {first['msg']:.200}"
        raise UserError(
            path, found, "a manifest as it was written", f"pack again: {again}"
        ) from None
