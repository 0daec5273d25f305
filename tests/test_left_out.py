"""What of a source is not taken: nothing goes missing without a word."""

import errno
import os
import tempfile
from pathlib import Path

import pytest
from PIL import Image

from pipeline.errors import UserError
from pipeline.images.formats import FORMATS
from pipeline.packing.sources.open import open_source
from pipeline.packing.sources.sieve import IMAGE_SUFFIXES
from tests.archives import tar_of, zip_of
from tests.needs import within
from tests.pictures import encode, smooth, write_pictures

JPEG = encode(smooth(20, 24))


def test_every_suffix_of_the_formats_that_are_decoded_is_an_images():
    Image.init()
    suffixes = {end for end, form in Image.registered_extensions().items() if form in FORMATS}
    assert len(suffixes) > len(FORMATS)
    assert suffixes <= IMAGE_SUFFIXES


def test_what_is_passed_over_is_counted_by_suffix(tmp_path):
    names = ["a.HEIC", "b.heic", "c/list.txt", "c/README", "d.jpg", "e.jpg?width=200"]
    write_pictures(tmp_path, dict.fromkeys(names, JPEG))
    listing = open_source(tmp_path).listing
    assert [member.name for member in listing.members] == ["d.jpg"]
    expected = {".heic": 2, ".txt": 1, "without a suffix": 1, ".jpg?width=2…": 1}
    assert listing.left_out == expected


LITTER = ["@eaDir/1.jpg/SYNOPHOTO_THUMB_XL.jpg", "@eaDir/2.jpg", "a/@eaDir/3.jpg", "#recycle/4.jpg"]
LITTER += ["$RECYCLE.BIN/S-1-5/5.jpg", "$Recycle.Bin/6.jpg", "System Volume Information/7.jpg"]
LITTER += [".thumbnails/8.jpg", "a/._9.jpg", ".Trash-1000/files/10.jpg", "lost+found/11.jpg"]
LITTER += ["RECYCLER/S-1-5/13.jpg", "RECYCLED/14.jpg", "FOUND.000/15.jpg", "found.001/16.jpg"]
LITTER += ["Temporary Items/17.jpg", "@tmp/18.jpg", "@eaDir\\19.jpg"]
LITTER += ["Thumbs.db", "a/Thumbs.db", "desktop.ini", "PRIVATE/M4ROOT/THMBNL/12.JPG"]


@pytest.mark.parametrize("kind", ["folder", "zip", "tar"])
def test_what_systems_leave_among_images_is_left_out_and_counted(tmp_path, kind):
    files = dict.fromkeys(LITTER, JPEG) | {"a/recycled/1.jpg": JPEG, "thumbnails/2.jpg": JPEG}
    path = tmp_path / "in"
    if kind == "folder":
        write_pictures(path, files)
    else:
        path.write_bytes(zip_of(files) if kind == "zip" else tar_of(files))
    listing = open_source(path).listing
    assert [member.name for member in listing.members] == ["a/recycled/1.jpg", "thumbnails/2.jpg"]
    once = ["#recycle", "$RECYCLE.BIN", "$Recycle.Bin", "System Volume Information", "lost+found"]
    once += ["RECYCLER", "RECYCLED", "FOUND.000", "found.001", "Temporary Items", "@tmp"]
    counts = dict.fromkeys([*once, "desktop.ini", "THMBNL"], 1)
    counts |= {"hidden": 3, "@eaDir": 2, "Thumbs.db": 2}
    first = "images in hidden folders, the first .Trash-1000/files/10.jpg"
    assert listing.left_out == counts | {first: 2}


def test_links_of_a_kind_are_one_number_with_the_first_name(tmp_path):
    write_pictures(tmp_path, {"a/1.jpg": JPEG})
    for number in range(1, 21):
        (tmp_path / f"zz{number:02d}").symlink_to("a")
        (tmp_path / f"n{number:02d}.jpg").symlink_to("gone")
    listing = open_source(tmp_path).listing
    assert [member.name for member in listing.members] == ["a/1.jpg"]
    expected = {"to folders that are in already, the first zz01", "to nothing, the first n01.jpg"}
    assert listing.links == dict.fromkeys(expected, 20)


def test_a_link_takes_no_folders_name_away(tmp_path):
    write_pictures(tmp_path, {"cats/1.jpg": JPEG, ".store/2.jpg": JPEG, "deep/dogs/3.jpg": JPEG})
    for name, target in {"aaa": "cats", "birds": ".store", "d": "deep", "e": "deep/dogs"}.items():
        (tmp_path / name).symlink_to(target)
    listing = open_source(tmp_path).listing
    names = ["birds/2.jpg", "cats/1.jpg", "deep/dogs/3.jpg"]  # what is hidden has no other name
    assert [member.name for member in listing.members] == names
    assert listing.links == {"to folders that are in already, the first aaa": 3, "followed": 1}


def test_only_links_to_nothing_is_no_empty_folder(tmp_path):
    (tmp_path / "a.jpg").symlink_to("gone")
    with pytest.raises(UserError, match=r"no images; links: 1 to nothing \(a\.jpg\)"):
        open_source(tmp_path)


def refusing(monkeypatch, name, number):
    """Have the system refuse to list folders of this name."""
    scandir = os.scandir

    def listed(path):
        if Path(path).name == name:
            raise OSError(number, os.strerror(number), os.fspath(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", listed)


@pytest.mark.parametrize("number", [errno.EACCES, errno.EIO, errno.ESTALE])
def test_a_sub_folder_that_cannot_be_listed_is_an_error_that_names_it(
    tmp_path, monkeypatch, number
):
    write_pictures(tmp_path, {"a.jpg": JPEG, "b/c/d.jpg": JPEG, "lost+found/e.jpg": JPEG})
    with monkeypatch.context() as patch:
        refusing(patch, "c", number)
        with pytest.raises(UserError, match="cannot be listed") as error:
            open_source(tmp_path)
    assert error.value.where == str(tmp_path / "b" / "c")
    assert os.strerror(number) in error.value.found
    refusing(monkeypatch, "lost+found", number)  # nobody's images
    assert len(open_source(tmp_path).members()) == 2


@pytest.mark.parametrize("mode", [0o000, 0o444], ids=["not-listed", "not-entered"])
def test_a_folder_of_somebody_else_is_an_error_that_names_it(mode):
    with tempfile.TemporaryDirectory() as name:  # pytest's own folders are closed to others
        folder = write_pictures(Path(name), {"a.jpg": JPEG, "b/c.jpg": JPEG})
        folder.chmod(0o755)
        (folder / "b").chmod(mode)
        root = os.geteuid() == 0
        try:
            if root:
                os.seteuid(65534)
            with pytest.raises(UserError, match="Permission denied: what is there") as error:
                open_source(folder)
        finally:
            if root:
                os.seteuid(0)
            (folder / "b").chmod(0o755)
        assert error.value.where.startswith(str(folder / "b"))


def test_links_to_folders_are_followed_and_circles_noticed(tmp_path):
    write_pictures(tmp_path, {"in/a/1.jpg": JPEG, "elsewhere/2.jpg": JPEG, "3.jpg": JPEG})
    (tmp_path / "in" / "b").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "in" / "c.jpg").symlink_to(tmp_path / "3.jpg")
    (tmp_path / "in" / "a" / "back").symlink_to(tmp_path / "in")
    (tmp_path / "in" / "itself").symlink_to("itself")
    (tmp_path / "in" / "share").symlink_to("/mnt/not-there")
    listing = within(5, lambda: open_source(tmp_path / "in").listing)
    assert [member.name for member in listing.members] == ["a/1.jpg", "b/2.jpg", "c.jpg"]
    counts = {"to a folder that is in already (a/back)": 1, "to nothing, the first itself": 2}
    assert listing.links == counts | {"followed": 2}
    assert not listing.left_out
