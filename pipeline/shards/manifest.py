"""The shard set: what is in its folder, how it was made, and whether it is all there.

A set is a folder of `shard-000000.tar` … with `shard-000000.idx` (DALI's index) beside each, and
`manifest.json`, which is written last: without it the set does not exist.
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path
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
from pipeline.files import digest, file_digest
from pipeline.images.fit import CROP, PATTERN, parse_fit
from pipeline.images.labels import MAX_CLASSES
from pipeline.images.size import (
    LEAST,
    MOST,
    ImageSize,
    image_size,
    parse_size,
    shown_size,
    sides,
    size_text,
)

MANIFEST = "manifest.json"
SAMPLES = "samples.csv"
SAMPLES_HEADER = "key,shard,source,crc32"
REJECTS = "rejects.csv"
REJECTS_HEADER = "source,reason,bytes"
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

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:")
"""The start of a URL (RFC 3986, section 3.1), of two letters or more: drives have one."""


FROM_2 = "in sets of format 2 only"
"""Marks the fields that a set of format 1 does not have: there they keep their default."""


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    @model_serializer(mode="wrap")
    def _without_later_fields(self, dump: SerializerFunctionWrapHandler) -> dict[str, object]:
        """Leave out what a set of format 1 does not have, so that it keeps its fingerprint."""
        later = self._later_fields()
        return {name: value for name, value in dump(self).items() if later.get(name, True)}

    def _later_fields(self) -> dict[str, bool]:
        """Return the fields of format 2, and whether each is in use."""
        return {
            name: getattr(self, name) != field.default
            for name, field in type(self).model_fields.items()
            if FROM_2 in field.metadata
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

    def sizes(self) -> str:
        """The one size of all images, or the range of each side, in words."""
        if self.smallest_image == self.largest_image:
            return "×".join(map(str, self.largest_image)) + " pixels"
        extremes = zip(("width", "height"), self.smallest_image, self.largest_image, strict=True)
        return " and ".join(
            f"{side} {least:,}" if least == most else f"{side}s {least:,}–{most:,}"
            for side, least, most in extremes
        )


@dataclass(frozen=True)
class ShardSet:
    """A complete set on disk."""

    folder: Path
    manifest: Manifest

    def __len__(self) -> int:
        return self.manifest.samples

    @property
    def tars(self) -> list[Path]:
        return [self.folder / f"{shard.name}.tar" for shard in self.manifest.shards]

    @property
    def indexes(self) -> list[Path]:
        return [self.folder / f"{shard.name}.idx" for shard in self.manifest.shards]

    @classmethod
    def open(cls, folder: Path) -> ShardSet:
        """Open a set for reading; compares tar sizes and index digests, and reads no image.

        That much is needed before DALI may map the files: an index that points past the end of
        its tar ends the process with a segmentation fault.

        Raises:
            UserError: the set is missing, unfinished, of another format, or altered.
        """
        if is_url(str(folder)):
            # webdataset, which dcgan-profile compares with, would run what follows `pipe:`
            raise UserError(
                folder, "a URL", "a folder of this machine", "name a folder of that name from /"
            )
        manifest = _read_manifest(folder)
        for shard in manifest.shards:
            _check_shard(folder, shard)
        if manifest.labels is not None:
            _require_file(folder / LABELS)
        return cls(folder, manifest)

    def require_size(self, image_size: ImageSize) -> None:
        """Refuse to enlarge what was made small on purpose.

        Raises:
            UserError: this set's recipe leaves fewer pixels than asked for.
        """
        recipe = self.manifest.recipe
        crop = recipe.crop if isinstance(recipe.crop, int) else None
        limit = recipe.size if recipe.size is not None else crop
        if limit is None:
            return
        if any(side > most for side, most in zip(sides(image_size), sides(limit), strict=True)):
            most = size_text(limit)
            raise UserError(
                f"--image-size {size_text(image_size)}",
                f"{self.folder} holds images of {shown_size(limit)} pixels ({recipe.describe()})",
                f"at most {most}",
                f"train at --image-size {most} or less, or pack the source again for this size",
            )

    def fit_of(self, asked: str | None) -> str:
        """How readers are to fit this set's images.

        Args:
            asked: the fit that somebody asked for; None for the set's own.

        Raises:
            UserError: another one than was applied when it was packed.
        """
        recipe = self.manifest.recipe
        if asked is not None and asked != recipe.fit and not recipe.is_whole:
            raise UserError(
                f"--fit {asked}",
                f"{self.folder} holds images that are no longer whole ({recipe.describe()})",
                f"--fit {recipe.fit}, or a set of whole images, as --store original has them",
                f"leave --fit out, or pack the source again with --fit {asked}",
            )
        return asked or recipe.fit

    @property
    def fingerprint(self) -> str:
        """A digest of the manifest, and so of all tars: tells this set from every other."""
        return digest(self.manifest.model_dump_json().encode())[:16]


def is_url(name: str) -> bool:
    """Whether a name is that of a URL: webdataset would run what follows `pipe:`."""
    return _SCHEME.match(name) is not None


def pack_command(source: Path | str) -> str:
    """The command that packs a source, to paste."""
    return f"python tools/make_shards.py {shlex.quote(str(source))}"


def repack_command(folder: Path) -> str:
    """The command that makes a set in this folder, or makes it anew, for an error's remedy."""
    anew = " --overwrite" if folder.is_dir() and any(folder.iterdir()) else ""
    return f"{pack_command('celeba/')} --out {shlex.quote(str(folder))}{anew}"


def _read_manifest(folder: Path) -> Manifest:
    path = folder / MANIFEST
    again = repack_command(folder)
    if not folder.is_dir():
        if folder.exists():
            raise UserError(folder, "a file", "a shard set, which is a folder", _of_file(folder))
        remedy = f"pack your images first: {again}"
        raise UserError(folder, "no such folder", "a shard set", remedy)
    if not path.is_file():
        raise UserError(folder, *_no_manifest(folder))
    if path.stat().st_size > MAX_MANIFEST_BYTES:
        raise UserError(path, "more than 64 MiB", "a manifest", f"pack again: {again}")
    try:
        return Manifest.model_validate_json(path.read_bytes())
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


def _of_file(path: Path) -> str:
    """The remedy for a file in place of a set's folder: it may be part of a set, or a source."""
    if (path.parent / MANIFEST).is_file():
        return f"name the folder that it is in, {path.parent}"
    return f"if it is an archive of images, pack it: {pack_command(path)} --out shards"


def _no_manifest(folder: Path) -> tuple[str, str, str]:
    """What a folder without a manifest is, what was wanted, and the remedy."""
    wanted, missing = "a complete shard set", f"no {MANIFEST}: not a shard set"
    names = {entry.name for entry in folder.iterdir()}
    if PROGRESS in names:
        again = f"{pack_command('celeba/')} --out {shlex.quote(str(folder))}"
        found = f"shards but no {MANIFEST}: an unfinished set"
        return found, wanted, f"give the command that packed it again, to finish it: {again}"
    if any(re.match(r"shard-.*\.tar", name) for name in names):
        found = f"shards but no {MANIFEST}: an unfinished set"
        return found, wanted, f"pack your images: {repack_command(folder)}"
    inside = sorted(name for name in names if (folder / name / MANIFEST).is_file())
    if inside:
        return missing, wanted, f"name the set in it, {folder / inside[0]}"
    if names:  # somebody's: nothing may be packed into it, and perhaps it is the source
        remedy = "name the set, or if these are your images, pack them"
        return missing, wanted, f"{remedy}: {pack_command(folder)} --out shards"
    return missing, wanted, f"pack your images: {repack_command(folder)}"


def _copy_again(folder: Path) -> str:
    return f"copy the set again, or pack it again: {repack_command(folder)}"


def _require_file(path: Path) -> None:
    if not path.is_file():
        wanted, remedy = f"the file named in {MANIFEST}", _copy_again(path.parent)
        raise UserError(path, "no such file", wanted, remedy)


def _check_shard(folder: Path, shard: Shard) -> None:
    tar, index = folder / f"{shard.name}.tar", folder / f"{shard.name}.idx"
    remedy = _copy_again(folder)
    for path in (tar, index):
        _require_file(path)
    if tar.stat().st_size != shard.bytes:
        found = f"{tar.stat().st_size:,} bytes"
        raise UserError(tar, found, f"{shard.bytes:,} bytes, as {MANIFEST} says", remedy)
    if index.stat().st_size > MAX_INDEX_BYTES:
        raise UserError(index, f"more than {MAX_INDEX_BYTES:,} bytes", "an index", remedy)
    if file_digest(index) != shard.index_sha256:
        raise UserError(index, "other contents", f"the index recorded in {MANIFEST}", remedy)
