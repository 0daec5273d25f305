"""Images that are in a source twice: counted, and packed as before."""

import pytest

from pipeline.packing.merge import Copies
from pipeline.packing.shard import DIGESTS
from pipeline.shards.manifest import PROGRESS
from tests.packing_runs import in_process, pack_folder, tree
from tests.pictures import encode, numbered_pictures, smooth, write_pictures
from tests.test_outdir import stop

__all__ = ["in_process"]  # a fixture

pytestmark = pytest.mark.usefixtures("in_process")

ONCE = numbered_pictures(6)
PNG = encode(smooth(20, 24), "PNG")
TWICE = ONCE | {"a/2.jpg": ONCE["002.jpg"], "b.jpg": ONCE["002.jpg"], "c.png": PNG, "d.png": PNG}


@pytest.mark.parametrize(
    ("files", "copies"),
    [
        (ONCE, Copies(0, "", "")),
        (TWICE, Copies(3, "a/2.jpg", "002.jpg")),
        (TWICE | {"x.jpg": b"no image", "y.jpg": b"no image"}, Copies(3, "a/2.jpg", "002.jpg")),
        (ONCE | {"x.jpg": ONCE["001.jpg"] + b"\0"}, Copies(0, "", "")),
    ],
    ids=["none", "three", "rejects-are-not-packed", "one-more-byte"],
)
def test_copies_are_counted_by_their_sources_bytes(tmp_path, files, copies):
    pictures = write_pictures(tmp_path / "in", files)
    packed = pack_folder(pictures, tmp_path / "set", per_shard=2, max_rejects=1)
    assert packed.copies == copies
    assert packed.manifest.samples == len(files) - sum(packed.rejected.values())


@pytest.mark.parametrize("damage", ["as-before", "none", "cut"])
def test_shards_of_an_earlier_version_are_gone_on_with(tmp_path, monkeypatch, damage):
    pictures = write_pictures(tmp_path / "in", TWICE)
    plain = pack_folder(pictures, tmp_path / "plain", per_shard=3)
    with monkeypatch.context() as patch:
        patch.setattr("pipeline.packing.pack.merge", stop)
        with pytest.raises(KeyboardInterrupt):
            pack_folder(pictures, tmp_path / "set", per_shard=3)
    path = tmp_path / "set" / PROGRESS / f"shard-000001.{DIGESTS}"
    if damage == "none":
        path.unlink()
    elif damage == "cut":
        path.write_bytes(path.read_bytes()[:-1])
    packed = pack_folder(pictures, tmp_path / "set", per_shard=3)
    assert packed.resumed == 4
    assert packed.copies == (plain.copies if damage == "as-before" else None)
    assert tree(tmp_path / "set") == tree(tmp_path / "plain")
