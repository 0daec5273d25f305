"""Folders: which images are found in them, and what is said where none are."""

import gzip
import os
import pickle
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pytest

from pipeline.errors import UserError
from pipeline.packing.selection import in_classes
from pipeline.packing.sources.base import DamagedError, Member
from pipeline.packing.sources.folder import FolderSource
from pipeline.packing.sources.open import open_source
from pipeline.shards import tar
from tests.archives import tar_of, zip_of
from tests.needs import within
from tests.pictures import encode, smooth, write_pictures

JPEG = encode(smooth(20, 24))
CLUTTER = {
    "._1.jpg": b"resource fork",
    ".thumbnails/1.jpg": b"thumbnail",
    "__MACOSX/1.jpg": b"resource fork",
    "deep/__MACOSX/1.jpg": b"resource fork",
    "list_attr_celeba.txt": b"202599",
    "README.md": b"faces",
}
CELEBA = {f"img_align_celeba/{number:06d}.jpg": JPEG for number in (3, 1, 2)}
SUFFIXES = ("jpg", "jpeg", "PNG", "webp", "BMP", "Gif", "tif", "tiff", "JFIF", "jpe", "apng", "dib")
LAYOUTS = {
    # files below the named folder → names found
    "flat": ({"b.jpg": JPEG, "a.JPG": JPEG, "c.jpeg": JPEG, "d.png": JPEG}, None),
    "every-suffix": ({f"{suffix}/1.{suffix}": JPEG for suffix in SUFFIXES}, None),
    "nested": ({"x/2.jpg": JPEG, "x/y/1.jpg": JPEG, "a/9.jpg": JPEG}, None),
    "doubled": ({f"img_align_celeba/{name}": JPEG for name in CELEBA}, None),
    "celeba-unpacked": (CELEBA, None),
    "celeba-zip-only": ({"img_align_celeba.zip": zip_of(CELEBA)}, CELEBA),
    "tar-only": ({"faces.tar": tar_of(CELEBA)}, CELEBA),
    "zip-beside-its-images": (CELEBA | {"img_align_celeba.zip": zip_of({"x.jpg": JPEG})}, CELEBA),
    "annotations-and-images": (
        {"Anno.zip": zip_of({"list.txt": b"1"}), "img.zip": zip_of(CELEBA), "z.7z": b"7z"},
        CELEBA,
    ),
    "compressed-tar-only": ({"faces.tar.gz": gzip.compress(tar_of(CELEBA))}, CELEBA),
    "zip-and-its-resource-fork": ({"a.zip": zip_of(CELEBA), "._a.zip": b"fork"}, CELEBA),
}


@pytest.mark.parametrize(("files", "expected"), LAYOUTS.values(), ids=LAYOUTS)
def test_images_are_found_wherever_they_lie(tmp_path, files, expected):
    write_pictures(tmp_path / "celeba", files | CLUTTER)
    source = open_source(tmp_path / "celeba")
    members = source.members()
    assert [member.name for member in members] == sorted(files if expected is None else expected)
    assert {member.size for member in members} == {len(JPEG)}
    assert {source.read(member) for member in members} == {JPEG}


def test_names_that_are_not_utf8_are_read(tmp_path):
    (tmp_path / "caf\udce9.jpg").write_bytes(JPEG)  # é in Latin-1
    source = open_source(tmp_path)
    (member,) = source.members()
    assert member.name == "caf\udce9.jpg"
    assert source.read(member) == JPEG


HTML = b"\n <!DOCTYPE html><html><title>Google Drive - Quota exceeded</title></html>"
WHOLE = zip_of(CELEBA)
FAULTS = {
    # name → files, what is opened, words of `found`, words of `do`
    "missing": ({}, "nope", "no such file or folder", "check the spelling"),
    "empty-folder": ({}, ".", "no images; it is empty", "name the folder"),
    "imageless": (
        {"a.txt": b"", "b.csv": b""},
        ".",
        "no images; it holds 1 .csv, 1 .txt",
        "name the folder",
    ),
    "only-clutter": (
        CLUTTER,
        ".",
        "no images; it holds 2 __MACOSX, 2 hidden, 1 .md, 1 .txt, 1 image in a hidden folder",
        "name the folder",
    ),
    "cut-zip": ({"a.zip": WHOLE[:-30]}, "a.zip", "cut off or damaged", "download it again"),
    "no-zip": ({"a.tar": bytes(999)}, "a.tar", "999 bytes of something else", "name the folder"),
    "one-image": ({"a.jpg": JPEG}, "a.jpg", "one image", "name its folder: python tools/make"),
    "tar-of-texts": (
        {"a.tar": tar_of({"a.txt": b"text", "b.txt": b"text"})},
        "a.tar",
        "no images; it holds 2 .txt",
        "name the folder",
    ),
    "two-archives": (
        {"a.zip": WHOLE, "b.tar": tar_of(CELEBA)},
        ".",
        "no images, but several archives with some: a.zip, b.tar",
        "name the archive to pack: python tools/make_shards.py",
    ),
    "stray-picture": (
        {"preview.jpg": JPEG, "faces.zip": WHOLE},
        ".",
        "1 image (preview.jpg), and beside them faces.zip with 3",
        "name the archive: python tools/make_shards.py",
    ),
    "stray-picture-above": (
        {"preview.jpg": JPEG, "Img/faces.zip": WHOLE},
        ".",
        "1 image (preview.jpg), and beside them Img/faces.zip with 3",
        "name the archive: python tools/make_shards.py",
    ),
    "stray-picture-around-a-zip": (
        {"a.zip": zip_of({"sample.jpg": JPEG, "celeba/faces.zip": WHOLE})},
        "a.zip",
        "1 image (sample.jpg), and an archive again: celeba/faces.zip",
        "unpack the outer one: unzip",
    ),
    "stray-picture-beside-a-zip-in-a-zip": (
        {"preview.jpg": JPEG, "a.zip": zip_of({"faces.zip": WHOLE})},
        ".",
        "an archive again: faces.zip; and beside it 1 image (preview.jpg)",
        "unpack the outer one: unzip",
    ),
    "stray-picture-beside-a-page": (
        {"preview.jpg": JPEG * 9, "Img/faces.zip": HTML},
        ".",
        "(Google Drive - Quota exceeded); and beside it 1 image (preview.jpg)",
        "for the images beside it, move it away, or name their folder",
    ),
    "stray-picture-in-a-zip-beside-a-page": (
        {"Anno.zip": zip_of({"preview.jpg": JPEG * 9}), "img.zip": HTML},
        ".",
        "(Google Drive - Quota exceeded)",
        "for those of the other, python tools/make_shards.py",
    ),
    "page-beside-a-zip-of-texts": (
        {"Anno.zip": zip_of({"list.txt": b"1"}), "Img/img.zip": HTML},
        ".",
        "(Google Drive - Quota exceeded)",
        "tomorrow",
    ),
    "rar-beside-images": (
        {"faces/1.jpg": JPEG, "all.rar": b"Rar!\x1a\x07\1\0" + bytes(9999)},
        ".",
        "a rar archive; and beside it 1 image (faces/1.jpg)",
        "for the images beside it, move it away, or name their folder",
    ),
    "stray-picture-in-the-other-zip": (
        {"Anno.zip": zip_of({"preview.png": b"x" * 99}), "img.zip": WHOLE[:-30]},
        ".",
        "cut off or damaged",
        "download it again",
    ),
    "archive-in-a-sub-folder": (
        {"Anno/list.txt": b"1", "Img/faces.zip": WHOLE},
        ".",
        "no images, but Img/faces.zip",
        "name the archive: python tools/make_shards.py",
    ),
}


@pytest.mark.parametrize(("files", "opened", "found", "remedy"), FAULTS.values(), ids=FAULTS)
def test_errors_name_the_source_and_what_stands_there(tmp_path, files, opened, found, remedy):
    write_pictures(tmp_path, files)
    with pytest.raises(UserError) as error:
        open_source(tmp_path / opened)
    assert error.value.where.startswith(f"SOURCE {tmp_path / opened}")
    assert found in error.value.found
    assert error.value.wanted
    assert remedy in error.value.remedy


# What is no file, and what no image file can be


def test_a_pipe_is_not_waited_for(tmp_path):
    write_pictures(tmp_path, {"a.jpg": JPEG})
    os.mkfifo(tmp_path / "b.jpg")
    os.mkfifo(tmp_path / "c.zip")
    source = open_source(tmp_path)
    good, pipe = source.members()
    assert source.read(good) == JPEG
    with pytest.raises(DamagedError, match="not a regular file"):
        within(5, lambda: source.read(pipe))


def test_a_link_is_followed_and_one_that_leads_nowhere_is_told(tmp_path):
    write_pictures(tmp_path, {"in/a.jpg": JPEG, "elsewhere.jpg": JPEG})
    (tmp_path / "in" / "b.jpg").symlink_to(tmp_path / "gone.jpg")  # and is no image
    (tmp_path / "in" / "c.jpg").symlink_to(tmp_path / "elsewhere.jpg")
    source = open_source(tmp_path / "in")
    first, linked = source.members()
    assert source.read(first) == source.read(linked) == JPEG
    assert source.listing.links == {"followed": 1, "to nothing (b.jpg)": 1}


def test_a_folder_named_like_an_image_is_a_folder(tmp_path):
    write_pictures(tmp_path, {"a.jpg/b.jpg": JPEG})
    assert [member.name for member in open_source(tmp_path).members()] == ["a.jpg/b.jpg"]


def test_a_huge_file_is_refused_before_it_is_read(tmp_path, monkeypatch):
    write_pictures(tmp_path, {"a.jpg": JPEG})
    with (tmp_path / "b.jpg").open("wb") as file:
        file.truncate(tar.MAX_FILE_BYTES + 1)  # without a byte on the disk
    source = open_source(tmp_path)
    monkeypatch.setattr(Path, "read_bytes", lambda path: pytest.fail("read"))
    with pytest.raises(DamagedError, match="268,435,457 bytes, over 268,435,456"):
        source.read(source.members()[1])


def test_a_file_that_went_away_is_the_systems_error(tmp_path):
    write_pictures(tmp_path, {"a.jpg": JPEG})
    source = open_source(tmp_path)
    (member,) = source.members()
    (tmp_path / "a.jpg").unlink()
    with pytest.raises(FileNotFoundError):
        source.read(member)


# Worker processes

ARCHIVES = {"zip": zip_of(CELEBA), "tar": tar_of(CELEBA), "gzip": gzip.compress(tar_of(CELEBA))}


def test_a_source_can_be_sent_to_a_worker_while_in_use(tmp_path):
    write_pictures(tmp_path / "folder", CELEBA)
    write_pictures(tmp_path, ARCHIVES)
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        for kind in ("folder", *ARCHIVES):
            source = open_source(tmp_path / kind, scratch=tmp_path)
            members = source.members()
            assert source.read(members[0]) == JPEG
            assert list(pool.map(source.read, members)) == [JPEG] * 3
            assert len(pickle.dumps(source)) < 1000  # no directory, no bytes
            assert source.read(members[2]) == JPEG


# Classes

MEMBERS = [Member(name, 1) for name in ["a/1.jpg", "a/x/2.jpg", "b/3.jpg", "c/x/4.jpg", "top.jpg"]]


@pytest.mark.parametrize(
    ("classes", "chosen"),
    [
        (["a"], ["a/1.jpg", "a/x/2.jpg"]),
        (["x"], ["a/x/2.jpg", "c/x/4.jpg"]),
        (["b", "a"], ["a/1.jpg", "a/x/2.jpg", "b/3.jpg"]),
        (["a", "x"], ["a/1.jpg", "a/x/2.jpg", "c/x/4.jpg"]),
    ],
    ids=str,
)
def test_classes_are_sub_folders_at_any_depth(classes, chosen):
    found = in_classes(MEMBERS, classes, Path("faces"))
    assert found == [member for member in MEMBERS if member.name in chosen]
    assert len(found) == len(chosen)


@pytest.mark.parametrize(
    ("members", "wanted"),
    [(MEMBERS, "some of: a, b, c, x"), (MEMBERS[-1:], "a source with sub-folders")],
    ids=["sub-folders", "flat"],
)
def test_unknown_classes_list_the_known_ones(members, wanted):
    with pytest.raises(UserError) as error:
        in_classes(members, ["top.jpg"], Path("faces"))
    assert error.value.where == "--classes top.jpg"
    assert error.value.wanted == wanted
    assert "faces" in error.value.found


def test_folders_are_read_from_the_folder_named(tmp_path, monkeypatch):
    write_pictures(tmp_path, {"in/a.jpg": JPEG})
    monkeypatch.chdir(tmp_path)
    assert [member.name for member in FolderSource(Path("in")).members()] == ["a.jpg"]
    assert [member.name for member in open_source(Path()).members()] == ["in/a.jpg"]
