"""Hostile zips, tars and lists of CelebA: read, or refused, and never believed."""

import gzip
import os
import struct
import tarfile
import zipfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import UserError
from pipeline.packing.selection import in_split, with_attributes
from pipeline.packing.sources.archives import TarSource, ZipSource
from pipeline.packing.sources.base import DamagedError, Member
from pipeline.packing.sources.lsun import DATA
from pipeline.packing.sources.open import open_source
from pipeline.shards.tar import headers
from tests.archives import tar_of, zip_of
from tests.data_sets import write_lsun
from tests.fuzzing import changed_bytes, some, survives
from tests.pictures import encode, smooth

FILES = {f"{name}.jpg": encode(smooth(16, 16, seed)) for seed, name in enumerate(["a", "b/c", "d"])}
FILES["long/" + "x" * 120 + ".png"] = b"no image"
ZIPS = [zip_of(FILES), zip_of(FILES, compression=zipfile.ZIP_DEFLATED)]
TARS = [tar_of(FILES, form=form) for form in (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT)]
VALID = {"zip": ZIPS, "tar": TARS, "tar.gz": [gzip.compress(tar) for tar in TARS]}


def read_all(path):
    """Everything in a source; what a member cannot give is one reject."""
    source = open_source(path)
    read = {}
    for member in source.members():
        try:
            read[member.name] = source.read(member)
        except DamagedError:
            read[member.name] = b""
    return read


@pytest.mark.parametrize("kind", VALID)
@given(data=st.data())
@some(1)
def test_any_archive_is_read_or_refused(tmp_path, kind, data):
    path = tmp_path / "any"
    valid = data.draw(st.sampled_from(VALID[kind]))
    path.write_bytes(data.draw(changed_bytes(valid)))
    survives(kind, lambda: read_all(path), UserError)


LABELLED = {f"{name}.{end}": b"%d" % len(name) for name in "abd" for end in ("jpg", "cls")}
WEBDATASETS = [
    tar_of(LABELLED),
    tar_of(LABELLED | {"a.json": b'{"a": 1}'}),
    tar_of({"a.jpg": b"a", "a.json": b'{"a": 1}'}),
]


@given(data=st.data())
@some(1)
def test_any_webdataset_is_labelled_or_refused(tmp_path, data):
    path = tmp_path / "any.tar"
    path.write_bytes(data.draw(changed_bytes(data.draw(st.sampled_from(WEBDATASETS)))))

    def labels():
        source = open_source(path)
        return source.labels(source.members())

    survives("webdataset", labels, UserError)


@pytest.fixture(scope="module")
def database(tmp_path_factory):
    """The bytes of a database in LSUN's way, with large values and small ones."""
    images = {
        f"{number:03d}": bytes([number]) * (99 if number % 3 else 9000) for number in range(60)
    }
    folder = write_lsun(tmp_path_factory.mktemp("lsun") / "whole", images)
    return (folder / DATA).read_bytes()


@given(data=st.data())
@some(1)
def test_any_database_is_read_or_refused(tmp_path, database, data):
    folder = tmp_path / "any_lmdb"
    folder.mkdir(exist_ok=True)
    (folder / DATA).write_bytes(data.draw(changed_bytes(database)))
    survives("database", lambda: read_all(folder), UserError)


def header(size, kind=tarfile.REGTYPE, name="a.jpg"):
    """A tar header whose size field is these twelve bytes, with its checksum right."""
    block = bytearray(tarfile.TarInfo(name).tobuf(tarfile.USTAR_FORMAT))
    block[124:136], block[156:157] = size, kind
    block[148:156] = b" " * 8
    block[148:155] = b"%06o\0" % sum(block)
    return bytes(block)


BACK = b"\xff" * 10 + b"\xfc\x00"
"""-1024, in base 256."""

GIANT = b"\x80" + b"\0" * 3 + b"\x7f" + b"\xff" * 7
"""2^63 - 1 bytes."""

HOSTILE_TARS = {
    "back": header(b"%011o\0" % 512) + bytes(512) + header(BACK),
    "giant": header(GIANT),
    "giant-name": header(b"%011o\0" % (6 << 30), tarfile.GNUTYPE_LONGNAME),
    "giant-pax": header(b"%011o\0" % (6 << 30), tarfile.XHDTYPE),
    "beyond-any": header(b"\x80" + b"\xff" * 11),
    "digits": header(b"%011o\0" % (1 << 20), tarfile.XHDTYPE) + b"1" * (1 << 20) + bytes(1024),
    "chain": header(b"%011o\0" % 0, tarfile.GNUTYPE_LONGNAME) * 3000 + bytes(1024),
    "half-a-map": header(b"%011o\0" % 0, tarfile.GNUTYPE_SPARSE),
}


@pytest.mark.parametrize("data", HOSTILE_TARS.values(), ids=HOSTILE_TARS)
def test_a_tar_made_to_do_damage_ends_at_once(tmp_path, data):
    path = tmp_path / "hostile.tar"
    path.write_bytes(data)
    found = survives("hostile tar", lambda: read_all(path), UserError)
    assert isinstance(found, UserError) or not any(found.values())


def test_many_entries_take_no_memory(tmp_path):
    path = tmp_path / "many.tar"
    path.write_bytes(header(b"%011o\0" % 0, name="a.txt") * 20_000 + bytes(1024))
    assert survives("hostile tar", lambda: sum(1 for _ in headers(path))) == 20_000


@pytest.mark.parametrize("source", [ZipSource, TarSource])
@pytest.mark.parametrize(
    ("offset", "size"), [(2**63, 8), (-5, 8), (0, -5), (0, 2**28 + 1), (100, 2**27), (2**70, 2**70)]
)
def test_a_member_outside_of_its_archive_is_damaged(tmp_path, source, offset, size):
    path = tmp_path / "archive"
    path.write_bytes(ZIPS[0] if source is ZipSource else TARS[0])
    member = Member("a.jpg", size, offset, packed=size)
    found = survives("member", lambda: source(path).read(member), DamagedError)
    assert isinstance(found, DamagedError)


def test_an_offset_of_64_bits_is_one_bad_member(tmp_path):
    data = bytearray(ZIPS[0])
    start = data.rindex(b"PK\1\2")
    extra = struct.pack("<HHQ", 1, 8, 2**64 - 1)
    name = int.from_bytes(data[start + 28 : start + 30], "little")
    data[start + 30 : start + 32] = struct.pack("<H", len(extra))
    data[start + 42 : start + 46] = b"\xff" * 4
    data[start + 46 + name : start + 46 + name] = extra
    end = data.rindex(b"PK\5\6")
    size = struct.unpack_from("<I", data, end + 12)[0]
    struct.pack_into("<I", data, end + 12, size + len(extra))
    path = tmp_path / "far.zip"
    path.write_bytes(data)
    read = survives("zip", lambda: read_all(path))
    assert list(map(len, read.values())).count(0) == 1
    assert len(read) == len(FILES)


def test_a_bomb_gives_what_its_directory_promised_at_most(tmp_path):
    data = bytearray(zip_of({"a.jpg": bytes(200 << 20)}, compression=zipfile.ZIP_DEFLATED))
    struct.pack_into("<I", data, data.rindex(b"PK\1\2") + 24, 1000)
    path = tmp_path / "bomb.zip"
    path.write_bytes(data)
    assert survives("bomb", lambda: read_all(path)) == {"a.jpg": b""}


def test_a_pipe_is_no_source(tmp_path):
    os.mkfifo(tmp_path / "faces.zip")
    with pytest.raises(UserError, match="neither a file nor a folder"):
        survives("pipe", lambda: open_source(tmp_path / "faces.zip"))


def test_nothing_is_written_where_names_point(tmp_path):
    names = ["../out.jpg", "/tmp/out.jpg", "a\\..\\out.jpg", "a/../../out.jpg"]
    (tmp_path / "in").mkdir()
    paths = {name.replace("\\", "/") for name in names}
    files = dict.fromkeys(names, b"x")
    for data in (zip_of(files), tar_of(files)):
        path = tmp_path / "in" / "names"
        path.write_bytes(data)
        assert set(read_all(path)) == paths
    assert [entry.name for entry in tmp_path.rglob("*")] == ["in", "names"]


PARTITION = b"a.jpg 0\nc.jpg 1\nd.jpg 2\n"
ATTRIBUTES = b"image_id,Smiling,Male\na.jpg,1,-1\nc.jpg,-1,-1\nd.jpg,1,1\n"


@given(data=st.data())
@some(1)
def test_any_list_is_read_or_refused(tmp_path, data):
    members = [Member(name, 1) for name in ("a.jpg", "c.jpg", "d.jpg")]
    (tmp_path / "list_eval_partition.txt").write_bytes(data.draw(changed_bytes(PARTITION)))
    (tmp_path / "list_attr_celeba.csv").write_bytes(data.draw(changed_bytes(ATTRIBUTES)))
    source = tmp_path / "x.zip"
    survives("list", lambda: in_split(members, source, "train"), UserError)
    survives("list", lambda: with_attributes(members, source, "Smiling=1"), UserError)


def test_a_list_of_one_endless_field_is_refused(tmp_path):
    (tmp_path / "list_attr_celeba.csv").write_bytes(b'image_id,Smiling\n"' + b"x" * 200_000)
    members = [Member("a.jpg", 1)]
    with pytest.raises(UserError, match="not CelebA's format"):
        with_attributes(members, tmp_path / "x.zip", "Smiling=1")
