"""Zips and tars, read where they lie; what is damaged in them, and what no reader should trust."""

import gzip
import os
import shutil
import stat
import subprocess
import tarfile
import zipfile
from collections import namedtuple

import pytest

from pipeline.errors import UserError
from pipeline.packing.selection import in_classes
from pipeline.packing.sources.base import DamagedError
from pipeline.packing.sources.open import open_source
from tests.archives import PACKERS, changed, tar_of, zip_of
from tests.needs import require
from tests.pictures import encode, smooth, write_pictures

PICTURES = {f"img_align_celeba/{k:06d}.jpg": encode(smooth(20 + k, 24)) for k in (3, 1, 2)}
CLUTTER = {"._1.jpg": b"fork", "__MACOSX/a/1.jpg": b"fork", ".git/1.jpg": b"x", "list.txt": b"3"}
FORMATS = {
    "zip-stored": zip_of(CLUTTER | PICTURES | {"img_align_celeba/": b""}),
    "zip-deflated": zip_of(CLUTTER | PICTURES, compression=zipfile.ZIP_DEFLATED),
    "tar-pax": tar_of(CLUTTER | PICTURES),
    "tar-gnu": tar_of(CLUTTER | PICTURES, form=tarfile.GNU_FORMAT),
    "tar-ustar": tar_of(CLUTTER | PICTURES, form=tarfile.USTAR_FORMAT),
    "tar-of-a-dot": tar_of({f"./{name}": data for name, data in (CLUTTER | PICTURES).items()}),
}


def written(tmp_path, data, name="archive"):
    path = tmp_path / name
    path.write_bytes(data)
    return path


def everything(path):
    """Every image's bytes by name."""
    source = open_source(path)
    return {member.name: source.read(member) for member in source.members()}


@pytest.mark.parametrize("data", FORMATS.values(), ids=FORMATS)
def test_archives_are_read_where_they_lie(tmp_path, data):
    found = everything(written(tmp_path, data))
    assert found == PICTURES
    assert list(found) == sorted(PICTURES)
    assert [entry.name for entry in tmp_path.iterdir()] == ["archive"]


@pytest.mark.parametrize(("data", "name"), [("zip-stored", "a.tar"), ("tar-pax", "a.zip")])
def test_what_it_is_tells_the_contents_not_the_name(tmp_path, data, name):
    assert everything(written(tmp_path, FORMATS[data], name)) == PICTURES


def test_what_the_tar_program_makes_is_read(tmp_path):
    require("tar")
    write_pictures(tmp_path / "in", PICTURES | CLUTTER)
    command = ["tar", "-cf", tmp_path / "a.tar", "-C", tmp_path / "in", "."]
    subprocess.run(command, check=True)
    assert everything(tmp_path / "a.tar") == PICTURES


@pytest.mark.parametrize("program", PACKERS)
def test_a_compressed_tar_is_read_like_any_and_leaves_nothing(tmp_path, program):
    data = PACKERS[program](FORMATS["tar-pax"])
    path = written(tmp_path, data, "celeba.tar")  # by contents, not by name
    source = open_source(path, scratch=tmp_path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["celeba.tar"]
    assert source.path == path
    assert {member.name: source.read(member) for member in source.members()} == PICTURES


@pytest.mark.parametrize("program", PACKERS)
def test_no_cut_of_a_compressed_tar_passes(tmp_path, program):
    whole = PACKERS[program](FORMATS["tar-pax"])
    for length in (4, 20, len(whole) // 2, len(whole) - 1):
        with pytest.raises(UserError, match=r"damaged|else"):
            open_source(written(tmp_path, whole[:length]), scratch=tmp_path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["archive"]


def test_a_compressed_tar_takes_no_more_than_the_disk_has(tmp_path, monkeypatch):
    path = written(tmp_path, gzip.compress(tar_of({"a.jpg": bytes(30_000_000)})))
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage(0, 0, 20_000_000))
    with pytest.raises(UserError, match=r"unpacks to more than 0\.02 GB"):
        open_source(path, scratch=tmp_path)


def test_compressed_without_a_tar_in_it_is_told(tmp_path):
    with pytest.raises(UserError, match="a compressed file of"):
        open_source(written(tmp_path, gzip.compress(b"000001.jpg 1\n" * 99)))


def v7(data):
    """A tar whose first header is as it was before POSIX: no magic, no version, no names."""
    head = bytearray(data[:512])
    head[257:500] = bytes(243)
    head[148:156] = b" " * 8
    head[148:156] = b"%06o\0 " % sum(head)
    return bytes(head) + data[512:]


def test_a_tar_of_1979_is_read(tmp_path):
    files = {"a.jpg": LAST}
    data = v7(tar_of(files, form=tarfile.USTAR_FORMAT))
    assert b"ustar" not in data
    assert everything(written(tmp_path, data)) == files
    assert everything(written(tmp_path, gzip.compress(data))) == files


@pytest.mark.parametrize("archive", [zip_of, tar_of])
def test_backslashes_part_folders(tmp_path, archive):
    files = {"pets\\cats\\1.jpg": LAST, "pets/dogs/2.jpg": LAST, "pets\\@eaDir\\1.jpg": LAST}
    path = written(tmp_path, archive(files | {"__MACOSX\\3.jpg": LAST}))
    members = open_source(path).members()
    assert [member.name for member in members] == ["pets/cats/1.jpg", "pets/dogs/2.jpg"]
    assert in_classes(members, ["cats"], path) == members[:1]
    assert open_source(path).listing.left_out == {"@eaDir": 1, "__MACOSX": 1}


def test_links_in_archives_are_left_out_and_counted(tmp_path):
    linked = zipfile.ZipInfo("a.jpg")
    linked.create_system, linked.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "links.zip", "w") as archive:
        archive.writestr("b.jpg", LAST)
        archive.writestr(linked, "b.jpg")
    others = [special("a.jpg", tarfile.SYMTYPE, "b.jpg"), special("c.jpg", tarfile.SYMTYPE, "b")]
    tar = written(tmp_path, tar_of({"b.jpg": LAST}, [*others, special("d.jpg", tarfile.FIFOTYPE)]))
    for path, links, left_out in [(tmp_path / "links.zip", 1, {}), (tar, 2, {"special": 1})]:
        assert everything(path) == {"b.jpg": LAST}
        listing = open_source(path).listing
        assert (listing.links, listing.left_out) == ({"left out": links}, left_out)


# What only tars have


def special(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    entry = tarfile.TarInfo(name)
    entry.type, entry.linkname = kind, target
    return entry


def test_a_hard_link_in_a_tar_is_the_file_that_it_names(tmp_path):
    files = {"./a.jpg": LAST, "b.bin": LAST, ".cache/c.jpg": LAST, "list.txt": b"1"}
    links = {"d.jpg": "./a.jpg", "e/e.jpg": "d.jpg", "f.jpg": "b.bin", "g.jpg": ".cache/c.jpg"}
    links |= {"h.txt": "list.txt", "i.jpg": "gone.jpg"}
    others = [special(name, tarfile.LNKTYPE, target) for name, target in links.items()]
    path = written(tmp_path, tar_of(files, others))
    assert everything(path) == dict.fromkeys(["a.jpg", "d.jpg", "e/e.jpg", "f.jpg", "g.jpg"], LAST)
    listing = open_source(path).listing
    assert listing.links == {"to nothing (i.jpg)": 1}
    assert listing.left_out[".txt"] == 2


def test_a_sparse_file_in_a_tar_is_a_reject_by_name(tmp_path):
    sparse = special("a.jpg", tarfile.GNUTYPE_SPARSE)
    source = open_source(written(tmp_path, tar_of({"b.jpg": LAST}, [sparse])))
    bad, good = source.members()
    assert source.read(good) == LAST
    with pytest.raises(DamagedError, match="a sparse file"):
        source.read(bad)


def test_of_equal_names_in_a_tar_the_last_one_counts(tmp_path):
    old, new = encode(smooth(8, 8)), encode(smooth(9, 9))
    path = written(tmp_path, tar_of([("a.jpg", old), ("./b.jpg", new), ("./a.jpg", new)]))
    assert everything(path) == {"a.jpg": new, "b.jpg": new}


def test_long_names_are_read(tmp_path):
    files = {"/".join(["deep" * 20] * 5) + "/ä.jpg": encode(smooth(8, 8))}
    for form in (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT):
        assert everything(written(tmp_path, tar_of(files, form=form))) == files


# Damage

WHOLE_ZIP = zip_of(PICTURES)
LAST = PICTURES["img_align_celeba/000002.jpg"]
CENTRAL = WHOLE_ZIP.rindex(b"PK\x01\x02")  # the central directory's last entry, 000002
LOCAL = WHOLE_ZIP.rindex(b"PK\x03\x04")  # the same image's local header
DEFLATED = zip_of(PICTURES, compression=zipfile.ZIP_DEFLATED)
BODY = DEFLATED.rindex(b"000002.jpg", 0, DEFLATED.rindex(b"PK\x01\x02")) + len("000002.jpg")

MEMBER_FAULTS = {
    # the archive, and what is said of its image 000002; the other two can be read
    "bad-crc": (changed(WHOLE_ZIP, WHOLE_ZIP.rindex(LAST) + 99, 0xAA), "checksum"),
    "other-crc-in-directory": (changed(WHOLE_ZIP, CENTRAL + 16, 0), "checksum"),
    "no-local-header": (changed(WHOLE_ZIP, LOCAL, 0), "no local header"),
    "undeflatable": (changed(DEFLATED, BODY, 0xFF), "cannot be decompressed"),
    "larger-than-promised": (changed(DEFLATED, DEFLATED.rindex(b"PK\x01\x02") + 24, 9), "checksum"),
}


@pytest.mark.parametrize(("data", "found"), MEMBER_FAULTS.values(), ids=MEMBER_FAULTS)
def test_one_damaged_member_is_told_and_the_others_are_read(tmp_path, data, found):
    source = open_source(written(tmp_path, data))
    *good, bad = [source.members()[rank] for rank in (0, 2, 1)]
    assert bad.name == "img_align_celeba/000002.jpg"
    assert [source.read(member) for member in good] == [PICTURES[member.name] for member in good]
    with pytest.raises(DamagedError, match=found):
        source.read(bad)


WHOLE_FAULTS = {
    "encrypted": (changed(WHOLE_ZIP, CENTRAL + 8, 1), "encrypted"),
    "unknown-compression": (changed(WHOLE_ZIP, CENTRAL + 10, 77), "compressed by method 77"),
}


@pytest.mark.parametrize(("data", "found"), WHOLE_FAULTS.values(), ids=WHOLE_FAULTS)
def test_a_zip_of_a_kind_that_is_not_read_is_told_at_once(tmp_path, data, found):
    path = written(tmp_path, data)
    with pytest.raises(UserError) as error:
        open_source(path)
    assert error.value.where.startswith(f"{path}: img_align_celeba/00000")
    assert error.value.found == found
    assert "extract it with another tool" in error.value.remedy


def test_other_files_in_a_zip_may_be_of_any_kind(tmp_path):
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("notes.txt", b"text", compress_type=zipfile.ZIP_LZMA)
        archive.writestr("a.jpg", LAST)
    assert everything(path) == {"a.jpg": LAST}


def test_a_zip_of_a_future_version_is_a_plain_error(tmp_path):
    path = written(tmp_path, changed(WHOLE_ZIP, CENTRAL + 6, 99))
    with pytest.raises(UserError, match="cut off or damaged"):
        open_source(path)


def test_no_cut_of_a_zip_passes(tmp_path):
    for length in range(0, len(WHOLE_ZIP), 31):
        with pytest.raises(UserError):
            open_source(written(tmp_path, WHOLE_ZIP[:length]))


TAR = tar_of(PICTURES, form=tarfile.USTAR_FORMAT)
BORDERS = [TAR.index(name.encode()) for name in PICTURES]
END = len(TAR.rstrip(b"\0")) // 512 * 512 + 512


def test_no_cut_of_a_tar_passes(tmp_path):
    for length in {*range(0, END + 1024, 173), *BORDERS, END, END + 512, END + 1023}:
        with pytest.raises(UserError):
            open_source(written(tmp_path, TAR[:length]))
    for length in (END + 1024, END + 1100, len(TAR)):
        assert everything(written(tmp_path, TAR[:length])) == PICTURES


DAMAGED_TARS = {
    "header": (TAR[: BORDERS[1]] + b"\x55" * 64 + TAR[BORDERS[1] + 64 :], "no header at byte"),
    "zeroed-header": (TAR[: BORDERS[1]] + bytes(512) + TAR[BORDERS[1] + 512 :], "no header at"),
    "cut-between": (TAR[: BORDERS[2]], "two blocks of zeros"),
    "other-data-behind": (TAR + b"signature", "no header at byte"),
    "second-cut": (TAR + TAR[: BORDERS[2]], "two blocks of zeros"),
}


@pytest.mark.parametrize(("data", "found"), DAMAGED_TARS.values(), ids=DAMAGED_TARS)
def test_a_damaged_tar_is_no_shorter_one(tmp_path, data, found):
    for stored in (data, gzip.compress(data)):
        with pytest.raises(UserError, match=f"cut off or damaged: .*{found}") as error:
            open_source(written(tmp_path, stored))
        assert "download it again" in error.value.remedy


def test_joined_tars_are_read_to_the_last(tmp_path):
    more = {"more.jpg": LAST}
    for behind in (tar_of(more), bytes(512) + tar_of(more) + bytes(777)):
        assert everything(written(tmp_path, TAR + behind)) == PICTURES | more
    both = gzip.compress(TAR) + gzip.compress(tar_of(more))
    assert everything(written(tmp_path, both)) == PICTURES | more


def test_an_archive_that_changes_after_it_was_listed_is_an_error_not_damage(tmp_path):
    for data in (FORMATS["tar-ustar"], WHOLE_ZIP):
        path = written(tmp_path, data)
        source = open_source(path)
        last = max(source.members(), key=lambda member: member.offset)
        os.truncate(path, last.offset + 200)
        with pytest.raises(OSError, match="changed while it was being read"):
            source.read(last)
