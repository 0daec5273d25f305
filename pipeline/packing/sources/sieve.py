"""Which files of a source are images, by their names, and counts of the others."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from pathlib import PurePosixPath

from pipeline.packing.downloads import is_archive
from pipeline.packing.sources.base import Listing, Member

IMAGE_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".jfi", ".jif", ".mpo"}
    | {".png", ".apng", ".webp", ".bmp", ".dib", ".gif", ".tif", ".tiff"}
    | {".pbm", ".pgm", ".ppm", ".pnm"}
    | {".avif", ".avifs", ".jp2", ".j2k", ".jpf", ".jpx", ".j2c", ".jpc"}
)

LITTER = frozenset(
    {"@eadir", "@recycle", "@recently-snapshot", "#recycle", "#snapshot", "lost+found"}  # NAS
    | {"$recycle.bin", "system volume information", "thumbs.db", "ehthumbs.db", "desktop.ini"}
    | {"__macosx", "network trash folder", "temporary items", "@tmp"}
    | {"thmbnl"}  # a camera's thumbnails
)
"""Files and folders, in lower case, that systems leave among the user's. Names that begin with a
dot are litter too: macOS's `._` files, `.thumbnails`, `.Trash-1000`."""

_LITTER_AS_WRITTEN = re.compile(r"RECYCLER|RECYCLED|(?i:FOUND)\.\d{3}")
"""What Windows leaves. In lower case, the first two may be classes of the user's."""

SUFFIX_SHOWN = 12
"""Characters of a suffix: what follows a dot may be a sentence."""

LEFT_OUT = "left out"
FOLLOWED = "followed"
TO_NOTHING = "to nothing"
IN_ALREADY = "to a folder that is in already"
HIDDEN_IMAGE = "image in a hidden folder"
"""Kinds that `Sieve` counts."""

_OF_SEVERAL = {
    IN_ALREADY: "to folders that are in already",
    HIDDEN_IMAGE: "images in hidden folders",
}


class Sieve:
    """Tells images from other files by name, relative to the source, and counts the others."""

    def __init__(self) -> None:
        self._left_out: Counter[str] = Counter()
        self._links: Counter[str] = Counter()
        self._first: dict[str, str] = {}
        self._archives: dict[str, int] = {}
        self._litter: set[str] = set()

    def link(self, kind: str, name: str = "", number: int = 1) -> None:
        """Count a link; its name is kept if the user has to see to it."""
        self._links[kind] += number
        self._note(kind, name)

    def special(self) -> None:
        """Count what is neither file, folder nor link."""
        self._left_out["special"] += 1

    def is_litter(self, name: str) -> bool:
        """Whether it is, or lies in, what a system left; a folder of litter counts as one.

        Images in hidden folders, which the user may have made, are counted too.
        """
        parts = name.replace("\\", "/").split("/")
        for depth, part in enumerate(parts, 1):
            if is_litter(part):
                hidden = part.startswith(".")
                place = "/".join(parts[:depth])
                if place not in self._litter:
                    self._litter.add(place)
                    self._left_out["hidden" if hidden else part] += 1
                inside = hidden and depth < len(parts) and not parts[-1].startswith(".")
                if inside and has_image_suffix(name):
                    self._left_out[HIDDEN_IMAGE] += 1
                    self._note(HIDDEN_IMAGE, name)
                return True
        return False

    def is_image(self, name: str, size: int = 0) -> bool:
        """Whether it ends as an image's name does."""
        if has_image_suffix(name):
            return True
        suffix = _suffix(name)
        if len(suffix) > SUFFIX_SHOWN:
            suffix = suffix[:SUFFIX_SHOWN] + "…"
        self._left_out[suffix or "without a suffix"] += 1
        if is_archive(name):
            self._archives[name] = size
        return False

    def listing(self, images: Iterable[Member]) -> Listing:
        """These images, and what was counted beside them."""
        return Listing(
            sorted(images),
            left_out=self._described(self._left_out),
            links=self._described(self._links),
            archives=dict(sorted(self._archives.items())),
        )

    def _note(self, kind: str, name: str) -> None:
        if name:
            self._first[kind] = min(name, self._first.get(kind, name))

    def _described(self, counts: Counter[str]) -> Counter[str]:
        return Counter({self._with_first(kind, count): count for kind, count in (+counts).items()})

    def _with_first(self, kind: str, count: int) -> str:
        if kind not in self._first:
            return kind
        if count == 1:
            return f"{kind} ({self._first[kind]})"
        return f"{_OF_SEVERAL.get(kind, kind)}, the first {self._first[kind]}"


def has_image_suffix(name: str) -> bool:
    """Whether a file of this name is taken for an image."""
    return _suffix(name) in IMAGE_SUFFIXES


def _suffix(name: str) -> str:
    return PurePosixPath(name).suffix.lower()


def is_litter(name: str) -> bool:
    """Whether a file or folder of this name is a system's rather than the user's."""
    if name.startswith("."):
        return name not in (".", "..")
    return name.lower() in LITTER or _LITTER_AS_WRITTEN.fullmatch(name) is not None
