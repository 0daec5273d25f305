"""Folders and zips: which images are found in them, and what is said where none are."""

import io
import pickle
import zipfile
from pathlib import Path

import pytest

from pipeline.errors import UserError
from pipeline.packing import pack
from pipeline.sources import FolderSource, ZipSource, in_classes, open_source
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


def zip_of(files, **options):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", **options) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return stream.getvalue()


CELEBA = {f"img_align_celeba/{number:06d}.jpg": JPEG for number in (3, 1, 2)}
LAYOUTS = {
    # files below the named folder → names found
    "flat": ({"b.jpg": JPEG, "a.JPG": JPEG, "c.jpeg": JPEG, "d.png": JPEG}, None),
    "nested": ({"x/2.jpg": JPEG, "x/y/1.jpg": JPEG, "a/9.jpg": JPEG}, None),
    "doubled": ({f"img_align_celeba/{name}": JPEG for name in CELEBA}, None),
    "celeba-unpacked": (CELEBA, None),
    "celeba-zip-only": ({"img_align_celeba.zip": zip_of(CELEBA)}, CELEBA),
    "zip-beside-its-images": (CELEBA | {"img_align_celeba.zip": zip_of({"x.jpg": JPEG})}, CELEBA),
    "zip-and-its-resource-fork": ({"a.zip": zip_of(CELEBA), "._a.zip": b"fork"}, CELEBA),
}


@pytest.mark.parametrize(("files", "expected"), LAYOUTS.values(), ids=LAYOUTS)
def test_images_are_found_wherever_they_lie(tmp_path, files, expected):
    write_pictures(tmp_path / "celeba", files | CLUTTER)
    source = open_source(tmp_path / "celeba")
    names = source.names()
    assert names == sorted(files if expected is None else expected)
    assert {source.read(name) for name in names} == {JPEG}
    assert source.total_bytes(names[:2]) == 2 * len(JPEG)


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_zip_is_read_where_it_lies(tmp_path, compression):
    folder = tmp_path / "download"
    files = CLUTTER | CELEBA | {"img_align_celeba/": b""}
    write_pictures(folder, {"faces.zip": zip_of(files, compression=compression)})
    source = open_source(folder / "faces.zip")
    assert source.names() == sorted(CELEBA)
    assert {source.read(name) for name in source.names()} == {JPEG}
    assert source.total_bytes(source.names()) == 3 * len(JPEG)
    assert [entry.name for entry in folder.iterdir()] == ["faces.zip"]


def test_a_zip_source_can_be_sent_to_a_worker_while_open(tmp_path):
    path = write_pictures(tmp_path, {"faces.zip": zip_of(CELEBA)}) / "faces.zip"
    source = ZipSource(path)
    name = source.names()[0]
    assert pickle.loads(pickle.dumps(source)).read(name) == JPEG


def test_names_that_are_not_utf8_are_read(tmp_path):
    (tmp_path / "caf\udce9.jpg").write_bytes(JPEG)  # é in Latin-1
    source = open_source(tmp_path)
    assert source.names() == ["caf\udce9.jpg"]
    assert source.read("caf\udce9.jpg") == JPEG


HTML = b"\n <!DOCTYPE html><html><title>Google Drive - Quota exceeded</title></html>"
WHOLE = zip_of(CELEBA)
FAULTS = {
    # name → files, what is opened, words of `found`, words of `do`
    "missing": ({}, "nope", "no such file or folder", "check the spelling"),
    "empty-folder": ({}, ".", "no images; it is empty", "name the folder"),
    "imageless": (
        {"a.txt": b"", "b.csv": b""},
        ".",
        "no images; it holds 2 entries: a.txt, b.csv",
        "name the folder",
    ),
    "only-clutter": (CLUTTER, ".", "no images; it holds 6 entries", "name the folder"),
    "web-page": ({"a.zip": HTML}, "a.zip", f"a web page of {len(HTML)} bytes", "quota"),
    "web-page-in-folder": ({"a.zip": HTML}, ".", "a web page of", "quota"),
    "cut-zip": ({"a.zip": WHOLE[:-30]}, "a.zip", "a zip that is cut off", "download it again"),
    "no-zip": ({"a.tar": bytes(999)}, "a.tar", "999 bytes of something else", "name the folder"),
    "no-bytes": ({"a.zip": b""}, "a.zip", "0 bytes of something else", "name the folder"),
    "zip-of-nothing": ({"a.zip": zip_of({})}, "a.zip", "no images; it is empty", "name the"),
    "zip-of-texts": (
        {"a.zip": zip_of(dict.fromkeys("abcdefg", b""))},
        "a.zip",
        "no images; it holds 7 entries: a, b, c, d, e, …",
        "name the folder",
    ),
    "two-zips": (
        {"a.zip": WHOLE, "b.zip": WHOLE},
        ".",
        "no images, but 2 zips (a.zip, b.zip)",
        "name the zip to pack: python tools/make_shards.py",
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


def test_no_cut_of_a_zip_passes(tmp_path):
    path = tmp_path / "a.zip"
    for length in range(0, len(WHOLE), 31):
        path.write_bytes(WHOLE[:length])
        with pytest.raises(UserError):
            open_source(path)


def changed(data: bytes, place: int, value: int) -> bytes:
    return data[:place] + bytes([value]) + data[place + 1 :]


CENTRAL = WHOLE.rindex(b"PK\x01\x02")  # the central directory's last entry, img_align_celeba/000002
MEMBER_FAULTS = {
    "bad-crc": (changed(WHOLE, WHOLE.rindex(JPEG) + 99, 0xAA), "Bad CRC-32"),
    "encrypted": (changed(WHOLE, CENTRAL + 8, 1), "encrypted"),
    "unknown-compression": (changed(WHOLE, CENTRAL + 10, 77), "compression"),
}


@pytest.mark.parametrize(("data", "found"), MEMBER_FAULTS.values(), ids=MEMBER_FAULTS)
def test_a_member_that_cannot_be_read_is_named(tmp_path, data, found):
    (tmp_path / "a.zip").write_bytes(data)
    source = open_source(tmp_path / "a.zip")
    assert source.read("img_align_celeba/000001.jpg") == JPEG
    with pytest.raises(UserError) as error:
        source.read("img_align_celeba/000002.jpg")
    assert error.value.where == f"{tmp_path / 'a.zip'}: img_align_celeba/000002.jpg"
    assert found in error.value.found
    assert error.value.wanted == "an intact, unencrypted member"
    assert "download the zip again" in error.value.remedy


def test_a_zip_of_a_future_version_is_a_plain_error(tmp_path):
    (tmp_path / "a.zip").write_bytes(changed(WHOLE, CENTRAL + 6, 99))
    with pytest.raises(UserError, match="cut off or damaged"):
        open_source(tmp_path / "a.zip")


def test_a_link_that_leads_nowhere_is_named(tmp_path):
    write_pictures(tmp_path / "in", {"a.jpg": JPEG})
    (tmp_path / "in" / "b.jpg").symlink_to(tmp_path / "gone.jpg")
    source = open_source(tmp_path / "in")
    with pytest.raises(UserError, match=r"b\.jpg\n  found   cannot be read"):
        pack(source, source.names(), tmp_path / "out")


NAMES = ["a/1.jpg", "a/x/2.jpg", "b/3.jpg", "c/x/4.jpg", "top.jpg"]


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
    assert in_classes(NAMES, classes, Path("faces")) == chosen


@pytest.mark.parametrize(
    ("names", "wanted"),
    [(NAMES, "some of: a, b, c, x"), (["top.jpg"], "a source with sub-folders")],
    ids=["sub-folders", "flat"],
)
def test_unknown_classes_list_the_known_ones(names, wanted):
    with pytest.raises(UserError) as error:
        in_classes(names, ["top.jpg"], Path("faces"))
    assert error.value.where == "--classes top.jpg"
    assert error.value.wanted == wanted
    assert "faces" in error.value.found


def test_folders_are_read_from_the_folder_named(tmp_path, monkeypatch):
    write_pictures(tmp_path, {"in/a.jpg": JPEG})
    monkeypatch.chdir(tmp_path)
    assert FolderSource(Path("in")).names() == ["a.jpg"]
    assert open_source(Path()).names() == ["in/a.jpg"]
