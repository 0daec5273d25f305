"""The error that people see: four parts, exit status 1, and no traceback."""

import pickle

import pytest

from pipeline.errors import UserError, told_plainly

ERROR = UserError("--out x", "a file", "a folder", "choose another --out")


def test_the_four_parts_stand_on_their_own_lines():
    assert str(ERROR).splitlines() == [
        "--out x",
        "  found   a file",
        "  wanted  a folder",
        "  do      choose another --out",
    ]


def test_it_crosses_a_process_border_whole():
    copy = pickle.loads(pickle.dumps(ERROR))
    assert type(copy) is UserError
    assert str(copy) == str(ERROR)
    assert (copy.where, copy.found, copy.wanted, copy.remedy) == (
        "--out x",
        "a file",
        "a folder",
        "choose another --out",
    )


def test_told_plainly_prints_and_exits_with_1(capsys):
    with pytest.raises(SystemExit) as exit_, told_plainly():
        raise ERROR
    assert exit_.value.code == 1
    captured = capsys.readouterr()
    assert captured.err == f"error: {ERROR}\n"
    assert captured.out == ""


def test_told_plainly_hides_no_error_of_ours():
    with pytest.raises(ZeroDivisionError), told_plainly():
        1 / 0  # noqa: B018
