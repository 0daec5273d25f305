"""Files are whole or absent."""

import os

import pytest

from pipeline.files import PARTIAL, replacing, write_new, write_whole
from tests.pictures import names_in


def test_the_name_appears_only_when_the_file_is_complete(tmp_path):
    path = tmp_path / "a.bin"
    with replacing(path) as temporary:
        temporary.write_bytes(b"whole")
        assert not path.exists()
        assert temporary.name == "a.bin" + PARTIAL
    assert path.read_bytes() == b"whole"
    assert names_in(tmp_path) == ["a.bin"]


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path, error):
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")

    def fail() -> None:
        with replacing(path) as temporary:
            temporary.write_bytes(b"half")
            raise error

    with pytest.raises(error):
        fail()
    assert path.read_bytes() == b"old"
    assert names_in(tmp_path) == ["a.bin"]


def test_bytes_are_on_the_disk_before_the_name_changes(tmp_path, monkeypatch):
    events = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: events.append(os.fstat(descriptor).st_size))
    path = tmp_path / "a.bin"
    with replacing(path) as temporary:
        temporary.write_bytes(b"12345")
    assert events == [5]


def test_write_whole_replaces(tmp_path):
    path = tmp_path / "a.bin"
    for data in (b"first", b"second"):
        write_whole(path, data)
        assert path.read_bytes() == data
    assert names_in(tmp_path) == ["a.bin"]


def test_of_several_the_first_one_writes_a_new_file_with_links_or_without(tmp_path, monkeypatch):
    def no_links(source, target):
        raise PermissionError(1, "Operation not permitted")

    write_new(tmp_path / "with", b"first")
    monkeypatch.setattr("os.link", no_links)
    write_new(tmp_path / "without", b"first")
    for name in ("with", "without"):
        write_new(tmp_path / name, b"second")
        assert (tmp_path / name).read_bytes() == b"first"
