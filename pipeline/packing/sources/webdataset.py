"""A webdataset of several tars, read as one source.

Webdataset itself reads tars from beginning to end; packing reads images in the order of a shuffle,
so the tars are listed once, and nothing in them is decoded or run.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from pipeline.errors import UserError
from pipeline.packing.sources.archives import TarSource
from pipeline.packing.sources.base import ImageFiles, Listing, Member
from pipeline.packing.sources.beside import labels_beside
from pipeline.shards.labels import LabelTable
from pipeline.shards.shard_set import pack_command


class TarsSource(ImageFiles):
    """The images of several tars, in which no name occurs twice."""

    def __init__(self, path: Path, tars: Sequence[TarSource]) -> None:
        """Join tars of a folder, or of a pattern of names.

        Raises:
            UserError: two have an image of one name.
        """
        self.path = path
        self._tars = tars
        members: list[Member] = []
        beside: dict[str, Member] = {}
        left_out, links = Counter[str](), Counter[str]()
        for part, tar in enumerate(tars):
            listing = tar.listing
            members += [member._replace(part=part) for member in listing.members]
            beside |= {name: file._replace(part=part) for name, file in listing.beside.items()}
            left_out.update(listing.left_out)
            links.update(listing.links)
        members.sort()
        self._require_own_names(members)
        self.listing = Listing(members, left_out, links, beside=beside)

    def _require_own_names(self, members: Sequence[Member]) -> None:
        for first, second in pairwise(members):
            if first.name == second.name and first.part != second.part:
                one, other = (self._tars[member.part].path for member in (first, second))
                raise UserError(
                    f"SOURCE {self.path}",
                    f"{first.name} in {one.name}, and in {other.name} too",
                    "tars in which every image has a name of its own",
                    "name each tar, and its name will stand before the images': "
                    f"{pack_command(one)} {other} …",
                )

    def labels(self, members: Sequence[Member]) -> LabelTable | None:
        return labels_beside(self, members, self._tars[0].path.parent)

    def where(self, member: Member) -> str:
        return self._tars[member.part].where(member)

    def read(self, member: Member) -> bytes:
        tar = self._tars[member.part]
        try:
            return tar.read(member)
        finally:
            tar.close()  # there may be more of them than a process may hold open
