"""What a run says: the same on the terminal and in log.txt."""

import pytest

from dcgan.rundir.log import Log
from tests.running import OF_A_TERMINAL


@pytest.fixture(autouse=True)
def pipe(monkeypatch):
    """Start each test as in a pipe, whatever the tests themselves run in."""
    for name in OF_A_TERMINAL:
        monkeypatch.delenv(name, raising=False)


LINES = [
    "run      a/very/long/path/" + "x" * 200,  # not wrapped: it may be pasted
    "[0/5][50/1582]  D(G(z)): 0.1 / 0.2",  # no markup
    "[bold]not bold[/bold] :smile:",
    "Generator(\n  (main): Sequential(\n  )\n), 28,408 parameters",
    "",
    "178×218, 3.5 µs – naïve",
]


def test_log_file_has_what_was_printed_also_before_it_was_opened(tmp_path, capsys):
    path = tmp_path / "log.txt"
    log = Log()
    for line in LINES[:3]:
        log(line)
    assert not path.exists()
    log.write_to(path)
    for line in LINES[3:]:
        log(line)
    log.close()
    printed = capsys.readouterr().out
    assert printed == "\n".join(LINES) + "\n"
    assert path.read_text(encoding="utf-8") == printed


def test_each_line_is_in_the_file_as_soon_as_it_was_said(tmp_path):
    log = Log()
    log.write_to(tmp_path / "log.txt")
    for count, line in enumerate(LINES, 1):
        log(line)
        assert (tmp_path / "log.txt").read_text() == "\n".join(LINES[:count]) + "\n"
    log.close()


def go_through(log: Log) -> None:
    with log.progress(total=3) as advance:
        for number in range(3):
            log(f"line {number}")
            advance()


def test_no_bar_and_no_escape_codes_in_a_pipe(capsys):
    go_through(Log())
    assert capsys.readouterr().out == "line 0\nline 1\nline 2\n"


def test_a_bar_on_a_terminal_and_not_in_the_file(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    log = Log()
    log.write_to(tmp_path / "log.txt")
    go_through(log)
    log.close()
    printed = capsys.readouterr().out
    assert "\x1b[" in printed
    assert "training" in printed
    assert "3/3" in printed
    assert (tmp_path / "log.txt").read_text() == "line 0\nline 1\nline 2\n"
