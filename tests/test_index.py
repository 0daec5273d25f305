"""The index of a tar, against DALI's own tool and against the bytes that it points to."""

import importlib
import io
import tarfile

import pytest

from pipeline.index import index_text
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


def test_every_line_points_at_its_members_bytes(tmp_path):
    tar = write_tar(tmp_path / "a.tar", MEMBERS)
    header, *rows = index_text(tar).splitlines()
    assert header == "v1.2 6"
    assert len(rows) == 6
    whole = tar.read_bytes()
    for row, (name, data) in zip(rows, MEMBERS.items(), strict=True):
        extension, offset, size, listed = row.split(" ")
        assert (extension, listed) == ("jpg", name)
        assert whole[int(offset) : int(offset) + int(size)] == data


def test_it_is_what_dalis_own_tool_writes(tmp_path, numbered_set):
    require("dali")
    require("tar")
    # import_module: the tool is a script of DALI's wheel, outside its package
    creator = importlib.import_module("wds2idx").IndexCreator
    shards = numbered_set(12, 5)
    tars = [*shards.tars, write_tar(tmp_path / "a.tar", MEMBERS)]
    assert len(tars) == 4
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
