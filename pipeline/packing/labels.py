"""Where labels come from when a set is packed: folders, a file, CelebA's list, or the source."""

from __future__ import annotations

import hashlib
from typing import NamedTuple

from pipeline.images.labels import Kind, LabelSpace
from pipeline.shards.labels import Values, component
from pipeline.shards.manifest import LABEL_EXTENSION


class LabelTable(NamedTuple):
    """The labels of a list of members."""

    kind: Kind
    names: tuple[str, ...]
    """Of the classes by number, or of the attributes."""
    values: Values
    """int32 (n,) classes, or bool (n, k) attributes; in the members' order."""

    def component(self, place: int) -> tuple[str, bytes]:
        """Extension and bytes of the component that labels the member at a place."""
        space = LabelSpace(self.kind, self.names)
        return LABEL_EXTENSION[self.kind], component(space, self.values[place])

    def digest(self) -> str:
        """A digest of all of it."""
        whole = hashlib.sha256(repr((self.kind, self.names, self.values.shape)).encode())
        whole.update(self.values.tobytes())
        return whole.hexdigest()
