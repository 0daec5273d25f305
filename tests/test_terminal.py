"""Names from files reach the terminal as characters only, whatever they are made of."""

import csv
import re
import sys
import tarfile
from pathlib import Path

import pytest

from dcgan.metrics.tables import print_facts
from dcgan.rundir.log import Log
from pipeline.errors import UserError, counted, first_line, plain
from pipeline.shards.manifest import MANIFEST, REJECTS
from pipeline.shards.shard_set import ShardSet
from tests.packing_runs import in_process
from tests.pictures import numbered, numbered_pictures, write_pictures
from tests.test_check_shards import check
from tools import make_shards

__all__ = ["check", "in_process"]  # fixtures

EVIL = "a\x1b[2J\x1b]0;title\x07\r\n\x9b1m\u202eb"
"""Clears the screen, sets the window's title, begins a line anew, colours, turns the direction."""
SHOWN = r"a\x1b[2J\x1b]0;title\x07\r\n\x9b1m\u202eb"

ACTING = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")


@pytest.mark.parametrize("code", [0, 0x1B, 0x7F, 0x9F, 0x202E, 0xDC80])
def test_what_acts_is_escaped(code):
    shown = plain(f"a{chr(code)}b")
    assert shown.isprintable()
    assert shown.isascii()
    assert shown == f"a{chr(code)!r}b".replace("'", "")


@pytest.mark.parametrize("text", ["C:\\new\\table", "naïve 178×218 – µ", "写真", "👩\u200d🚀", ""])
def test_what_is_seen_stays_as_it_is(text):
    assert plain(text) == text


def test_an_error_of_hostile_names_has_its_four_parts_and_no_more():
    error = UserError(Path(EVIL), EVIL, EVIL, EVIL, [EVIL, EVIL])
    assert str(error).splitlines() == [
        SHOWN,
        f"  found   {SHOWN}",
        f"          {SHOWN}",
        f"          {SHOWN}",
        f"  wanted  {SHOWN}",
        f"  do      {SHOWN}",
    ]


def test_a_run_says_and_logs_its_lines_only(tmp_path, capsys):
    log = Log()
    log.write_to(tmp_path / "log.txt")
    log(f"run      {EVIL.replace(chr(10), '')}\nand a line of ours")
    log.close()
    printed = capsys.readouterr().out
    assert printed == f"run      {SHOWN.replace(chr(92) + 'n', '')}\nand a line of ours\n"
    assert (tmp_path / "log.txt").read_text() == printed


def test_other_places_that_print_names(capsys):
    print_facts({"reals": EVIL})
    assert capsys.readouterr().out == f"reals    {SHOWN}\n"
    assert counted({EVIL: 3}) == f"3 {SHOWN}"
    assert first_line(OSError(EVIL.replace("\r\n", ""))) == SHOWN.replace(r"\r\n", "")


def packed(monkeypatch, capsys, *words):
    """The packing command in this process: its status, and what it printed."""
    monkeypatch.setattr(sys, "argv", ["make_shards.py", *map(str, words)])
    with pytest.raises(SystemExit) as ended:
        make_shards.main()
    printed = capsys.readouterr()
    return ended.value.code, printed.out + printed.err


@pytest.mark.usefixtures("in_process")
@pytest.mark.parametrize("words", [["--strict"], ["--max-rejects", "1"]])
def test_names_of_a_source_that_is_packed(tmp_path, monkeypatch, capsys, words):
    files = {f"{EVIL}/{EVIL}.jpg": b"no image", "good.jpg": numbered(1)}
    archive = tmp_path / "source" / f"{EVIL}.tar"
    archive.parent.mkdir()
    pictures = write_pictures(tmp_path / "pictures", files)
    with tarfile.open(archive, "w") as tar:
        tar.add(pictures, "")
    status, printed = packed(monkeypatch, capsys, archive.parent, "--out", tmp_path / "set", *words)
    assert status == (0 if "--max-rejects" in words else 1)
    assert not ACTING.search(printed)
    assert SHOWN in printed


@pytest.mark.usefixtures("in_process")
def test_names_in_a_set_that_is_checked(tmp_path, monkeypatch, capsys, check):
    pictures = write_pictures(tmp_path / "pictures", numbered_pictures(3) | {"bad.jpg": b"bad"})
    words = (pictures, "--out", tmp_path / "set", "--max-rejects", "1")
    assert packed(monkeypatch, capsys, *words)[0] == 0
    shards = ShardSet.open(tmp_path / "set")
    with (shards.folder / REJECTS).open("w", newline="", encoding="utf-8") as table:
        csv.writer(table).writerows([["source", "reason", "bytes"], ["bad.jpg", EVIL, "3"]])
    older = shards.manifest.model_copy(update={"rejects_sha256": None})
    (shards.folder / MANIFEST).write_text(older.model_dump_json())
    status, out, err = check(shards.folder)
    assert (status, err) == (0, [])
    assert f"reject  1 {SHOWN}: see rejects.csv" in out
    name = EVIL.encode()
    tar = bytearray(shards.tars[0].read_bytes())
    tar[: len(name)] = name
    tar[148:156] = b" " * 8
    tar[148:156] = b"%06o\0 " % sum(tar[:512])
    shards.tars[0].write_bytes(tar)
    status, _, err = check(shards.folder)
    assert status == 1
    assert SHOWN.partition(".")[0] in err[2]
    assert not ACTING.search("\n".join(err))
