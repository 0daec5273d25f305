"""A shard set is opened whole or not at all."""

import json
import shutil
from pathlib import Path

import pytest

from pipeline.errors import UserError
from pipeline.shards.manifest import MANIFEST, PROGRESS
from pipeline.shards.shard_set import ShardSet, repack_command


def rewrite(change):
    """A damage that changes the manifest's values."""

    def apply(folder):
        path = folder / MANIFEST
        manifest = json.loads(path.read_text())
        change(manifest)
        path.write_text(json.dumps(manifest))

    return apply


def cut(name, size):
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:size])


def append(name, data):
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes() + data)


def replace_in(name, old, new):
    return lambda folder: (folder / name).write_bytes(
        (folder / name).read_bytes().replace(old, new, 1)
    )


def remove(name):
    return lambda folder: (folder / name).unlink()


def only_progress(folder):
    """What a run leaves that is cut off before its first shard."""
    for path in folder.iterdir():
        path.unlink()
    (folder / PROGRESS).mkdir()


FAULTS = {
    # name → the damage, the file that the message names ("" for the folder), what was found there
    "no-folder": (shutil.rmtree, "", "no such folder"),
    "unfinished": (remove(MANIFEST), "", f"shards but no {MANIFEST}: an unfinished set"),
    "barely-begun": (only_progress, "", f"shards but no {MANIFEST}: an unfinished set"),
    "another-folder": (
        lambda folder: [path.unlink() for path in folder.iterdir()],
        "",
        f"no {MANIFEST}: not a shard set",
    ),
    "other-format": (
        rewrite(lambda manifest: manifest.update(format=3)),
        MANIFEST,
        "a shard set of format 3",
    ),
    "cut-manifest": (cut(MANIFEST, 200), MANIFEST, "Invalid JSON"),
    "missing-value": (
        rewrite(lambda manifest: manifest.pop("samples")),
        MANIFEST,
        "samples: Field required",
    ),
    "no-shards": (rewrite(lambda manifest: manifest.update(shards=[])), MANIFEST, "shards:"),
    "path-as-shard": (
        rewrite(lambda manifest: manifest["shards"][1].update(name="../shard-000001")),
        MANIFEST,
        "shards.1.name:",
    ),
    "tar-shorter": (cut("shard-000001.tar", 5000), "shard-000001.tar", "5,000 bytes"),
    "index-missing": (remove("shard-000002.idx"), "shard-000002.idx", "no such file"),
    "index-altered": (
        replace_in("shard-000001.idx", b"512", b"513"),
        "shard-000001.idx",
        "other contents",
    ),
}


@pytest.mark.parametrize(("damage", "name", "found"), FAULTS.values(), ids=FAULTS)
def test_faults_name_their_file_and_the_command_that_packs(spare_set, damage, name, found):
    folder = spare_set.folder
    damage(folder)
    with pytest.raises(UserError) as error:
        ShardSet.open(folder)
    assert error.value.where == str(folder / name)
    assert found in error.value.found
    assert error.value.wanted
    assert repack_command(folder).removesuffix(" --overwrite") in error.value.remedy


def test_a_file_is_no_shard_set(tmp_path):
    path = tmp_path / "faces.zip"
    path.write_bytes(b"PK")
    with pytest.raises(UserError, match="a file"):
        ShardSet.open(path)


def test_a_monstrous_manifest_is_not_read(spare_set):
    with (spare_set.folder / MANIFEST).open("r+b") as file:
        file.truncate((64 << 20) + 1)
    with pytest.raises(UserError, match="more than 64 MiB"):
        ShardSet.open(spare_set.folder)


def test_a_whole_set_opens_with_its_counts(spare_set):
    assert len(spare_set) == 12
    assert [shard.samples for shard in spare_set.manifest.shards] == [5, 5, 2]
    assert [tar.name for tar in spare_set.tars] == [f"shard-00000{k}.tar" for k in range(3)]
    assert [index.name for index in spare_set.indexes] == [f"shard-00000{k}.idx" for k in range(3)]
    assert spare_set.manifest.largest_image == spare_set.manifest.smallest_image == (32, 32)


@pytest.mark.parametrize(
    ("smallest", "largest", "told"),
    [
        ((178, 218), (178, 218), "178×218 pixels"),
        ((1, 1), (20000, 20000), "widths 1–20,000 and heights 1–20,000"),
        ((64, 9), (64, 90), "width 64 and heights 9–90"),
    ],
)
def test_sizes_are_told_of_each_side_where_no_image_need_have_both(
    spare_set, smallest, largest, told
):
    sizes = {"smallest_image": smallest, "largest_image": largest}
    assert spare_set.manifest.model_copy(update=sizes).sizes() == told


def test_a_set_can_be_moved(spare_set, tmp_path):
    moved = spare_set.folder.rename(tmp_path / "elsewhere")
    assert ShardSet.open(moved).manifest == spare_set.manifest


@pytest.mark.parametrize(
    ("named", "remedy"),
    [
        ("my set/manifest.json", "name the folder that it is in, my set"),
        ("my set/shard-000000.tar", "name the folder that it is in, my set"),
        ("faces.zip", "pack it: python tools/make_shards.py faces.zip --out shards"),
        ("some faces", "pack them: python tools/make_shards.py 'some faces' --out shards"),
        (".", "name the set in it, my set"),
        ("new set", "pack your images first: python tools/make_shards.py celeba/ --out 'new set'"),
    ],
)
def test_what_is_no_set_leads_to_the_one_or_to_packing_it(
    tmp_path, monkeypatch, spare_set, named, remedy
):
    shutil.copytree(spare_set.folder, tmp_path / "my set")
    (tmp_path / "some faces").mkdir()
    (tmp_path / "some faces/000001.jpg").write_bytes(b"a face")
    (tmp_path / "faces.zip").write_bytes(b"PK")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as error:
        ShardSet.open(Path(named))
    assert error.value.where == str(Path(named))
    assert error.value.remedy.endswith(remedy)
