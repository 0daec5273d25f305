"""dcgan-report as a command: where it writes, what it refuses, and what it leaves alone."""

import sys

import pytest

from dcgan.report import report, write_page
from dcgan.reporting.compare import MOST_RUNS
from dcgan.reporting.page import LIMIT
from pipeline.errors import UserError
from tests.report_runs import save_plain, write_run
from tests.running import assert_four_parts, contents, run_command


def test_the_command_writes_where_it_is_told(tmp_path):
    run, other = write_run(tmp_path / "faces"), write_run(tmp_path / "other", seed=1)
    command = (sys.executable, "-m", "dcgan.report")
    alone = run_command(*command, "faces", cwd=tmp_path)
    assert (alone.returncode, alone.stdout) == (0, "report   faces/report.html\n"), alone.stderr
    assert run.report.stat().st_size < LIMIT
    both = run_command(*command, "faces", "other", cwd=tmp_path)
    assert (both.returncode, both.stdout) == (0, "report   comparison.html\n")
    assert "2 runs compared" in (tmp_path / "comparison.html").read_text()
    (other.path / "mine.html").write_text("mine")
    before = contents(other.path)
    wrong = run_command(*command, "other", "nowhere", "--out", "other/mine.html", cwd=tmp_path)
    assert wrong.returncode == 1
    assert "Traceback" not in wrong.stderr
    assert wrong.stderr.startswith("error: nowhere\n  found   no such folder")
    assert contents(other.path) == before


def test_what_cannot_be_reported_is_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    save_plain(tmp_path / "empty" / "holiday.png", 1)
    run = write_run(tmp_path / "faces")
    refused = {
        "no config.json": ([tmp_path / "empty"], tmp_path / "x.html"),
        "no such folder": ([tmp_path / "gone"], tmp_path / "x.html"),
        "or directory": ([run.path], tmp_path / "gone" / "x.html"),
        f"{MOST_RUNS + 1} runs": ([run.path] * (MOST_RUNS + 1), tmp_path / "x.html"),
    }
    for said, (paths, out) in refused.items():
        with pytest.raises(UserError) as caught:
            write_page(paths, out)
        assert_four_parts(caught.value, said)
    assert not (tmp_path / "x.html").exists()


@pytest.mark.parametrize("name", ["page.pdf", "config.json", "page"])
def test_a_page_is_not_written_under_the_name_of_something_else(tmp_path, name):
    run = write_run(tmp_path / "faces")
    before = contents(tmp_path)
    with pytest.raises(UserError) as error:
        report(runs=[run.path], out=tmp_path / name)
    assert_four_parts(error.value, f"--out {tmp_path / name}\n", ".html")
    assert contents(tmp_path) == before
