"""The index of a tar, against DALI's own tool and against the bytes that it points to."""

import importlib
import io
import tarfile

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pipeline.shards.tar import index_text, read_index
from tests.needs import require


def write_tar(path, members):
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as archive:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


MEMBERS = {f"{7 * number:08d}.jpg": bytes([number]) * (509 + number) for number in range(6)}
"""Sizes on both sides of tar's 512-byte blocks."""


def test_it_is_what_dalis_own_tool_writes(tmp_path, numbered_set):
    require("dali")
    require("tar")
    # import_module: the tool is a script of DALI's wheel, outside its package
    creator = importlib.import_module("wds2idx").IndexCreator
    shards = numbered_set(12, 5)
    labelled = {f"{stem}.{end}": b"7" for stem in ("000", "001") for end in ("jpg", "cls")}
    tars = [shards.tars[0], write_tar(tmp_path / "a.tar", MEMBERS)]
    tars.append(write_tar(tmp_path / "b.tar", labelled))
    assert len(tars) == 3
    for tar in tars:
        with creator(str(tar), str(tmp_path / "theirs.idx"), verbose=False) as theirs:
            theirs.create_index()
        assert index_text(tar) == (tmp_path / "theirs.idx").read_text()
    for tar, index in zip(shards.tars, shards.indexes, strict=True):
        assert index.read_text() == index_text(tar)


def test_a_tar_that_ends_inside_a_member_is_an_error(tmp_path):
    tar = write_tar(tmp_path / "a.tar", MEMBERS)
    tar.write_bytes(tar.read_bytes()[:900])  # inside the first member's data
    with pytest.raises(tarfile.TarError):
        index_text(tar)


# Reading it

numbers = st.integers(0, 2**62)


@given(st.lists(st.tuples(numbers, numbers, st.integers(0, 99_999_999)), min_size=1, max_size=20))
def test_what_was_written_is_read(rows):
    lines = [f"jpg {offset} {size} {key:08d}.jpg\n" for offset, size, key in rows]
    places = read_index(f"v1.2 {len(rows)}\n{''.join(lines)}".encode(), "jpg")
    assert list(zip(*(column.tolist() for column in places), strict=True)) == rows
    assert all(column.dtype == np.int64 for column in places)


@pytest.mark.parametrize("extension", ["jpg", "raw"])
def test_the_index_of_a_tar_is_read(tmp_path, extension):
    members = {name.replace("jpg", extension): data for name, data in MEMBERS.items()}
    tar = write_tar(tmp_path / "a.tar", members)
    offsets, sizes, keys = read_index(index_text(tar).encode(), extension)
    whole = tar.read_bytes()
    found = [whole[start : start + size] for start, size in zip(offsets, sizes, strict=True)]
    assert found == list(members.values())
    assert [f"{key:08d}.{extension}" for key in keys] == list(members)


LABELLED = b"v1.2 2\njpg 0 700 3.jpg cls 1024 1 3.cls\njpg 1536 9 1.jpg cls 2048 1 1.cls\n"


def test_of_an_image_and_its_label_the_image_is_read():
    places = read_index(LABELLED, "jpg", "cls")
    assert [column.tolist() for column in places] == [[0, 1536], [700, 9], [3, 1]]
    for data in (
        LABELLED.replace(b"1.cls", b"2.cls"),
        LABELLED.replace(b"jpg 0 700 3.jpg cls 1024 1 3.cls", b"cls 1024 1 3.cls jpg 0 700 3.jpg"),
        LABELLED.replace(b" cls 1024 1 3.cls", b""),
        LABELLED.replace(b"cls", b"json"),
        GOOD,
    ):
        with pytest.raises(ValueError, match="lines that"):
            read_index(data, "jpg", "cls")
    with pytest.raises(ValueError, match="lines that"):
        read_index(LABELLED, "jpg")


GOOD = b"v1.2 2\njpg 512 700 00000003.jpg\njpg 1536 9 00000001.jpg\n"

HOSTILE = {
    "empty": b"",
    "only-a-header": b"v1.2 2\n",
    "header-of-nothing": b"v1.2 0\n",
    "no-header": GOOD.partition(b"\n")[2],
    "header-without-count": GOOD.replace(b"v1.2 2", b"v1.2"),
    "count-too-small": GOOD.replace(b"v1.2 2", b"v1.2 1"),
    "count-huge": GOOD.replace(b"v1.2 2", b"v1.2 " + b"9" * 5000),
    "one-line-missing": GOOD.rpartition(b"jpg 1536")[0],
    "other-extension": GOOD.replace(b"jpg", b"png"),
    "extra-component": GOOD.replace(b"\njpg 1536", b"\ncls 900 1 00000003.cls\njpg 1536"),
    "extra-component-counted": b"v1.2 2\njpg 512 700 00000003.jpg jpg 1536 9 00000003.jpg\n",
    "not-numeric": GOOD.replace(b"512", b"many"),
    "fraction": GOOD.replace(b"512", b"5.12"),
    "huge": GOOD.replace(b"512", b"9" * 40),
    "name-not-numeric": GOOD.replace(b"00000003", b"face"),
    "no-name": GOOD.replace(b" 00000003.jpg", b""),
    "cut-short": GOOD[:-1],
    "nul-in-a-number": GOOD.replace(b"512", b"5\x0012"),
    "comments-only": b"v1.2 0\n#jpg \n",  # of which nothing is left for NumPy's parser
    "not-ascii": GOOD.replace(b"512", b"\xff\xfe"),
}


@pytest.mark.parametrize("data", HOSTILE.values(), ids=HOSTILE)
def test_what_is_no_index_is_a_value_error(data):
    assert len(read_index(GOOD, "jpg").keys) == 2
    with pytest.raises(ValueError, match=r"lines that|the header|no samples"):
        read_index(data, "jpg")


FRAGMENTS = (
    b'v1.2 |jpg |jpg|.jpg|\n|\r| |\t|\0|-|#|"|\xff|0|1|512|00000003|9999999999999999999|1.5|\x85'
)
PIECES = st.sampled_from(FRAGMENTS.split(b"|"))


@given(st.binary(max_size=200) | st.lists(PIECES, max_size=40).map(b"".join))
@example(b"\n\x85")  # white space in Latin-1
@example(b"\x1c\n \x0b")
def test_any_bytes_are_an_index_or_a_value_error(data):
    for candidate in (data, b"v1.2 1\njpg " + data, b"v1.2 1\njpg 1 2 3.jpg" + data + b"\n"):
        try:
            places = read_index(candidate, "jpg")
        except ValueError:
            continue
        header = candidate.partition(b"\n")[0]
        assert header == f"v1.2 {len(places.keys)}".encode()
        assert len(places.offsets) == len(places.sizes) == len(places.keys) > 0
