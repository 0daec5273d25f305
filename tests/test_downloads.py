"""Files that are no archive of images: each is told apart, with what to type."""

import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from pipeline.errors import UserError
from pipeline.packing.sources.open import open_source
from tests.archives import tar_of, zip_of
from tests.pictures import encode, names_in, smooth, write_pictures

JPEG = encode(smooth(20, 24))
TAR = tar_of({"1.jpg": JPEG, "2.jpg": JPEG})
FACES = zip_of({"faces/1.jpg": JPEG, "faces/2.jpg": JPEG})

# Of Google's pages, what tells them apart
SCAN = """<!DOCTYPE html><html><head><title>Google Drive - Virus scan warning</title></head><body>
<p>Google Drive can't scan this file for viruses.</p><form id="download-form"
action="https://drive.usercontent.google.com/download" method="get">
<input type="hidden" name="id" value="0B7EVK8r0v71pZjFTYXZWM3FlRnM"></form></body></html>"""
QUOTA = """<!DOCTYPE html><html><head><title>Google Drive - Quota exceeded</title></head><body>
<p>Sorry, you can't view or download this file at this time.</p><p>Too many users have viewed or
downloaded this file recently. Please try accessing the file again later.</p></body></html>"""
LOGIN = """<html><head><title>Kaggle login</title><script>var antivirus = quota;</script></head>
<form id="download-form" action="/login"></form></html>"""
SIGN_IN = "\ufeff<html><head><title>Sign in - Google Accounts</title></head></html>"
PAGES = {
    "scan": (SCAN, "Virus scan warning", "gdown 0B7EVK8r0v71pZjFTYXZWM3FlRnM", "tomorrow"),
    "scan-in-german": (
        SCAN.replace("Virus scan warning", "Virenscanwarnung").replace("for viruses", "auf Viren"),
        "Virenscanwarnung",
        "gdown 0B7EVK8r0v71pZjFTYXZWM3FlRnM",
        "tomorrow",
    ),
    "quota": (QUOTA, "Quota exceeded", "tomorrow", "gdown"),
    "login": (LOGIN, "Kaggle login", "see what the page asks for", "gdown"),
    "commented": (
        "<!-- a --> <!-- b -->\n" + LOGIN,
        "Kaggle login",
        "see what the page asks",
        "gdown",
    ),
    "xhtml": ('<?xml version="1.0"?>\n' + QUOTA, "Quota exceeded", "tomorrow", "gdown"),
    "sign-in": (SIGN_IN, "Sign in - Google Accounts", "in a browser", "tomorrow"),
}


@pytest.mark.parametrize(("page", "title", "remedy", "not_said"), PAGES.values(), ids=PAGES)
def test_web_pages_are_told_apart_by_what_they_say(tmp_path, page, title, remedy, not_said):
    (tmp_path / "img_align_celeba.zip").write_text(page, encoding="utf-8")
    with pytest.raises(UserError, match="a web page of") as error:
        open_source(tmp_path)
    assert title in error.value.found
    assert remedy in error.value.remedy
    assert not_said not in error.value.remedy


S3 = b"""<?xml version="1.0" encoding="UTF-8"?>
<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"""
STAND_INS = {
    "utf-16": (QUOTA.encode("utf-16"), "a web page of 548 bytes", "tomorrow"),
    "s3": (S3, "error message of 111 bytes (AccessDenied)", "has not expired"),
    "json": (
        b'{"code":403,"message":"no"}',
        'JSON ({"code":403,"message":"no"})',
        "has not expired",
    ),
    "lfs": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:a",
        "a Git LFS",
        "git lfs pull",
    ),
    "empty": (b"", "an empty file", "download it again"),
}


@pytest.mark.parametrize(("data", "found", "remedy"), STAND_INS.values(), ids=STAND_INS)
def test_what_was_saved_in_place_of_an_archive_is_named(tmp_path, data, found, remedy):
    write_pictures(tmp_path, {"img_align_celeba.zip": data, "preview.jpg": JPEG})
    for source in (tmp_path, tmp_path / "img_align_celeba.zip"):
        with pytest.raises(UserError) as error:
            open_source(source)
        assert found in error.value.found
        assert remedy in error.value.remedy


SEVEN, RAR = b"7z\xbc\xaf\x27\x1c" + bytes(99), b"Rar!\x1a\x07\x01\0" + bytes(99)
ZSTD = b"\x28\xb5\x2f\xfd" + bytes(99)
KINDS = {
    # files → which is opened, its kind, what to type
    "7z": ({"a b.7z": SEVEN}, "a b.7z", "a 7z archive", "7z x 'a b.7z' -o'a b'"),
    "rar": ({"a.rar": RAR}, "a.rar", "a rar archive", "unrar x a.rar a/"),
    "zstd": ({"a.tar.zst": ZSTD}, "a.tar.zst", "compressed by zstd", "zstd -d a.tar.zst -o a.tar"),
    "lz4": (
        {"a.tar.lz4": b"\x04\x22\x4d\x18" + bytes(99)},
        ".",
        "compressed by lz4",
        "lz4 -d a.tar.lz4 a.tar",
    ),
    "compress": ({"a.tar.Z": b"\x1f\x9d" + bytes(99)}, ".", "compress", "gzip -dc a.tar.Z > a.tar"),
    "wrongly-named": ({"a.zip": SEVEN}, "a.zip", "a 7z archive", "7z x a.zip -oa"),
    "first-part": ({"a.zip.001": FACES[:200]}, "a.zip.001", "one part", "cat a.zip.* > a.zip"),
    "by-split": ({"a.tgz.aa": b"\x1f\x8b" + bytes(99)}, ".", "one part", "cat a.tgz.* > a.tgz"),
    "zip-part": (
        {"a.z01": FACES[:200], "a.zip": FACES[200:-40]},
        ".",
        "one part of a split zip",
        "zip -s 0 a.zip --out a-whole.zip",
    ),
    "rar-part": ({"a.part1.rar": RAR}, ".", "one part of a split rar", "unrar x a.part1.rar"),
    "zip-in-zip": ({"a.zip": zip_of({"in/b.zip": FACES})}, "a.zip", "in/b.zip", "unzip a.zip -d a"),
    "zip-in-tar": (
        {"a.tar": tar_of({"b.zip": FACES})},
        "a.tar",
        "an archive again: b.zip",
        "mkdir a && tar -xf a.tar -C a",
    ),
}


@pytest.mark.parametrize(("files", "opened", "found", "typed"), KINDS.values(), ids=KINDS)
def test_other_archives_are_named_with_what_to_type(
    tmp_path, monkeypatch, files, opened, found, typed
):
    write_pictures(tmp_path, files)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as error:
        open_source(Path(opened))
    assert found in error.value.found
    assert typed in error.value.remedy
    assert "&& python tools/make_shards.py " in error.value.remedy


def split(folder):
    """A zip in parts, as `split` cuts it."""
    (folder / "a.zip.001").write_bytes(FACES[:200])
    (folder / "a.zip.002").write_bytes(FACES[200:])
    return "a.zip.001"


def split_by_zip(folder):
    write_pictures(folder, {"big.jpg": JPEG + bytes(range(256)) * 600})
    command = ["zip", "-q", "-0", "-s", "64k", "a.zip", "big.jpg"]
    subprocess.run(command, cwd=folder, check=True)
    (folder / "big.jpg").unlink()
    assert names_in(folder) == ["a.z01", "a.z02", "a.zip"]
    return "a.zip"


def nested(folder):
    (folder / "a b.zip").write_bytes(zip_of({"in/b.zip": FACES}))
    return "a b.zip"


def zstd(folder):
    (folder / "a.tar").write_bytes(tar_of({"1.jpg": JPEG}))
    subprocess.run(["zstd", "-q", "--rm", "a.tar"], cwd=folder, check=True)
    return "a.tar.zst"


TYPED = {"cat": split, "zip": split_by_zip, "unzip": nested, "zstd": zstd}


@pytest.mark.parametrize(("program", "make"), TYPED.items(), ids=TYPED)
def test_what_is_to_be_typed_leads_to_the_images(tmp_path, monkeypatch, program, make):
    if shutil.which(program) is None:
        pytest.skip(f"no {program}")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as error:
        open_source(Path(make(tmp_path)))
    command = re.sub(r"^[\w ]+: ", "", error.value.remedy)
    unpacking, _, packing = command.rpartition(" && ")
    subprocess.run(unpacking, shell=True, check=True, capture_output=True)
    assert open_source(Path(shlex.split(packing)[-1])).members()
