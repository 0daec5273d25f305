"""Whose the output folder is, and what is refused before anything in it is touched."""

import collections
import gzip
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.errors import UserError
from pipeline.files import file_digest
from pipeline.loading.open import open_loader
from pipeline.loading.options import LoaderOptions
from pipeline.packing.outdir import NEW, PLAN
from pipeline.shards.manifest import MANIFEST, PROGRESS, Recipe
from pipeline.shards.shard_set import ShardSet
from tests.archives import tar_of
from tests.packing_runs import in_process, pack_folder, state, tree
from tests.pictures import names_in, numbered_pictures, write_pictures

__all__ = ["in_process"]  # a fixture

pytestmark = pytest.mark.usefixtures("in_process")


@pytest.fixture
def pictures(tmp_path):
    return write_pictures(tmp_path / "pictures", numbered_pictures(9))


@pytest.fixture
def unfinished(pictures, tmp_path, monkeypatch):
    """The folder of a set whose manifest was never written."""
    with monkeypatch.context() as patch:
        patch.setattr("pipeline.packing.pack.merge", stop)
        with pytest.raises(KeyboardInterrupt):
            pack_folder(pictures, tmp_path / "set", per_shard=4)
    assert state(tmp_path / "set") == "unfinished"
    return tmp_path / "set"


def stop(*arguments, **options):
    raise KeyboardInterrupt


def refusal(pictures, out, **options):
    """The error of a packing that must leave the folder as it is."""
    before = tree(out) if out.is_dir() else out.read_bytes()
    with pytest.raises(UserError) as caught:
        pack_folder(pictures, out, **options)
    assert (tree(out) if out.is_dir() else out.read_bytes()) == before
    return caught.value


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize(
    "names",
    [
        ["holiday.jpg"],
        ["manifest.json"],
        ["samples.csv", "rejects.csv"],
        ["shard-000000.tar", "shard-000000.idx", "notes.txt"],
        ["sub/manifest.json"],
        [".hidden"],
    ],
    ids=str,
)
def test_somebody_elses_folder_is_left_alone(pictures, tmp_path, names, overwrite):
    out = write_pictures(tmp_path / "theirs", dict.fromkeys(names, b'{"format": "web app"}'))
    error = refusal(pictures, out, overwrite=overwrite)
    assert "other entries" in error.found
    assert error.remedy == "choose another --out"


def test_a_file_added_to_a_set_is_not_swept_away_with_it(pictures, tmp_path):
    pack_folder(pictures, tmp_path / "set")
    (tmp_path / "set" / "thesis.pdf").write_bytes(b"years of work")
    assert "thesis.pdf" in refusal(pictures, tmp_path / "set", overwrite=True).found


@pytest.mark.parametrize("overwrite", [False, True])
def test_readme_and_gitignore_may_stand_there_and_stay(pictures, tmp_path, overwrite):
    kept = {"README.md": b"what goes here", ".gitignore": b"*.tar"}
    out = write_pictures(tmp_path / "set", kept)
    pack_folder(pictures, out, overwrite=overwrite)
    pack_folder(pictures, out, overwrite=True, seed=3)
    assert {name: (out / name).read_bytes() for name in kept} == kept
    assert ShardSet.open(out).manifest.seed == 3


def test_a_complete_set_is_replaced_only_when_told_to(pictures, tmp_path):
    pack_folder(pictures, tmp_path / "set", per_shard=2)
    for seed in (0, 1):
        error = refusal(pictures, tmp_path / "set", per_shard=2, seed=seed)
        assert error.found == "a complete shard set"
        assert "--overwrite" in error.remedy
    pack_folder(pictures, tmp_path / "new", per_shard=4)
    pack_folder(pictures, tmp_path / "set", per_shard=4, overwrite=True)
    assert tree(tmp_path / "set") == tree(tmp_path / "new")  # and nothing of the shards before


def test_an_unfinished_set_is_gone_on_with_only_by_its_own_plan(pictures, unfinished):
    error = refusal(pictures, unfinished, per_shard=5, seed=2)
    assert error.found == "an unfinished set with other options: seed 0, per_shard 4"
    assert error.wanted == "seed 2, per_shard 5"
    assert "--overwrite" in error.remedy
    more = write_pictures(pictures.parent / "more", numbered_pictures(10))
    found = refusal(more, unfinished, per_shard=4).found
    assert all(name in found for name in ("source", "images 9", "contents"))
    assert pack_folder(pictures, unfinished, per_shard=4, max_rejects=1.0, workers=5).resumed == 3


def test_an_unfinished_set_of_a_compressed_tar_is_gone_on_with(tmp_path, monkeypatch):
    path = tmp_path / "faces.tar.gz"
    path.write_bytes(gzip.compress(tar_of(numbered_pictures(9))))
    with monkeypatch.context() as patch:
        patch.setattr("pipeline.packing.pack.merge", stop)
        with pytest.raises(KeyboardInterrupt):
            pack_folder(path, tmp_path / "set", per_shard=4)
    assert pack_folder(path, tmp_path / "set", per_shard=4).resumed == 3
    assert names_in(tmp_path) == ["faces.tar.gz", "set"]


def test_overwrite_starts_an_unfinished_set_anew(pictures, unfinished, tmp_path):
    done = pack_folder(pictures, unfinished, per_shard=2, seed=2, overwrite=True)
    assert (done.resumed, done.written) == (0, 9)
    pack_folder(pictures, tmp_path / "plain", per_shard=2, seed=2)
    assert tree(unfinished) == tree(tmp_path / "plain")


def test_an_unfinished_replacement_is_not_mixed_with_another(pictures, tmp_path, monkeypatch):
    pack_folder(pictures, tmp_path / "set", per_shard=4)
    before = tree(tmp_path / "set")
    with monkeypatch.context() as patch:
        patch.setattr("pipeline.packing.pack.merge", stop)
        with pytest.raises(KeyboardInterrupt):
            pack_folder(pictures, tmp_path / "set", per_shard=4, seed=1, overwrite=True)
    assert {k: v for k, v in tree(tmp_path / "set").items() if NEW not in k} == before
    assert state(tmp_path / "set") == "complete"
    pack_folder(pictures, tmp_path / "plain", per_shard=4, seed=2)
    done = pack_folder(pictures, tmp_path / "set", per_shard=4, seed=2, overwrite=True)
    assert done.resumed == 0
    assert tree(tmp_path / "set") == tree(tmp_path / "plain")


@pytest.mark.parametrize("damage", [b"{", b"[1]"])
def test_a_plan_that_cannot_be_read_is_another_one(pictures, unfinished, damage):
    (unfinished / PROGRESS / PLAN).write_bytes(damage)
    assert "other options" in refusal(pictures, unfinished, per_shard=4).found


@pytest.mark.parametrize("name", ["shard-000001.tar", "shard-000001.idx", "shard-000001.json"])
@pytest.mark.parametrize("how", ["gone", "cut"])
def test_a_shard_that_is_no_longer_whole_is_written_again(pictures, unfinished, name, how):
    path = unfinished / (PROGRESS if name.endswith("json") else "") / name
    if how == "gone":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-1])
    assert pack_folder(pictures, unfinished, per_shard=4).resumed == 2
    whole = ShardSet.open(unfinished)
    written = [shard.tar_sha256 for shard in whole.manifest.shards]
    assert [file_digest(tar) for tar in whole.tars] == written


def test_a_file_as_output_folder(pictures, tmp_path):
    (tmp_path / "file").write_bytes(b"kept")
    error = refusal(pictures, tmp_path / "file", overwrite=True)
    assert (error.found, error.wanted) == ("a file", "a folder")
    with pytest.raises(UserError) as caught:
        pack_folder(pictures, tmp_path / "file" / "set")
    assert caught.value.wanted == "a folder that can be written"


def refuse_writing(path, *arguments, **options):
    raise PermissionError(13, "Permission denied", str(path))


@pytest.mark.parametrize("call", ["mkdir", "iterdir"])
def test_a_folder_that_may_not_be_written_or_listed(pictures, tmp_path, monkeypatch, call):
    (tmp_path / "set").mkdir()
    monkeypatch.setattr(Path, call, refuse_writing)
    with pytest.raises(UserError) as caught:
        pack_folder(pictures, tmp_path / "set")  # lists its source by os.scandir: not patched
    assert caught.value.found == "Permission denied"
    assert str(tmp_path / "set") in caught.value.where


@pytest.mark.parametrize(
    ("options", "needed"),
    [({}, 0), ({"store": "raw", "size": 4096}, 9 * 3 * 4096**2)],
    ids=["original", "raw"],
)
def test_a_disk_too_small_is_told_before_anything_is_packed(
    pictures, tmp_path, monkeypatch, options, needed
):
    recipe = Recipe(**options, crop="centre")
    usage = collections.namedtuple("usage", "total used free")
    needed = needed or sum(path.stat().st_size for path in pictures.iterdir())
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(0, 0, needed + 9 * 1024 - 1))
    with pytest.raises(UserError) as caught:
        pack_folder(pictures, tmp_path / "set", recipe=recipe)
    assert "GB free" in caught.value.found
    assert not list((tmp_path / "set").glob("shard-*"))
    if not options:
        monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(0, 0, needed + 9 * 1024))
        pack_folder(pictures, tmp_path / "set", recipe=recipe)


@pytest.mark.skipif(sys.platform != "linux" or os.getuid() != 0, reason="mounts a small tmpfs")
def test_a_disk_that_fills_in_the_middle_and_is_then_cleared(tmp_path, monkeypatch):
    pictures = write_pictures(tmp_path / "pictures", {f"{n:02}.jpg": JPEG for n in range(40)})
    mount = tmp_path / "small"
    mount.mkdir()
    mounting = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(mount)]
    if subprocess.run(mounting, capture_output=True, check=False).returncode:
        pytest.skip("mount is not allowed here")
    try:
        (mount / "ballast").write_bytes(bytes(1_600_000))
        usage = collections.namedtuple("usage", "total used free")
        with monkeypatch.context() as patch:  # as when another program takes it meanwhile
            patch.setattr(shutil, "disk_usage", lambda path: usage(0, 0, 1 << 30))
            with pytest.raises(UserError, match="No space left on device") as caught:
                pack_folder(pictures, mount / "set", per_shard=4)
        assert caught.value.where == str(mount / "set")
        assert not list((mount / "set").glob("*.partial"))
        (mount / "ballast").unlink()
        assert pack_folder(pictures, mount / "set", per_shard=4).resumed >= 1
        pack_folder(pictures, tmp_path / "plain", per_shard=4)
        assert tree(mount / "set") == tree(tmp_path / "plain")
    finally:
        subprocess.run(["umount", str(mount)], check=True)


JPEG = numbered_pictures(1)["000.jpg"] + bytes(20_000)  # after the image's end: as cameras do


def message(call):
    with pytest.raises(UserError) as caught:
        call()
    return caught.value


@pytest.mark.parametrize("cache", ["auto", "off"])
def test_every_reader_calls_an_unfinished_set_unfinished(unfinished, monkeypatch, cache):
    def open_batches():
        return open_loader(str(unfinished), LoaderOptions(2, 32, workers=1, cache=cache))

    messages = [message(lambda: ShardSet.open(unfinished)), message(open_batches)]
    monkeypatch.setattr("pipeline.loading.loader.why_not_dali", lambda device: "not wanted here")
    messages.append(message(open_batches))
    assert {str(error) for error in messages} == {str(messages[0])}
    assert messages[0].found == f"shards but no {MANIFEST}: an unfinished set"


def test_a_set_is_unfinished_from_its_first_moment_on(pictures, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("pipeline.packing.pack.Deal", stop)
        with pytest.raises(KeyboardInterrupt):
            pack_folder(pictures, tmp_path / "set")
    assert names_in(tmp_path / "set") == [PROGRESS]
    assert state(tmp_path / "set") == "unfinished"
    assert json.loads((tmp_path / "set" / PROGRESS / PLAN).read_bytes())["images"] == 9


@pytest.mark.parametrize("damage", ["lost manifest", "damaged manifest"])
def test_overwrite_makes_a_damaged_set_anew_as_its_error_advises(pictures, tmp_path, damage):
    whole, out = tmp_path / "whole", tmp_path / "set"
    pack_folder(pictures, whole)
    pack_folder(pictures, out)
    if damage == "lost manifest":
        (out / "manifest.json").unlink()
    else:
        (out / "manifest.json").write_bytes(b"{")
    with pytest.raises(UserError, match=r"--overwrite"):
        ShardSet.open(out)
    refusal(pictures, out)
    pack_folder(pictures, out, overwrite=True)
    assert tree(out) == tree(whole)
