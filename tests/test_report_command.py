"""dcgan-report as a command: where it writes, what it refuses, and what it leaves alone."""

import pytest
from typer.testing import CliRunner

from dcgan.report import app, report, write_page
from dcgan.reporting.compare import MOST_RUNS
from dcgan.reporting.page import LIMIT
from dcgan.rundir.folder import append_line
from pipeline.errors import UserError
from tests.report_runs import metric_of, save_plain, write_run
from tests.running import assert_four_parts, contents


def test_the_command_writes_where_it_is_told(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = write_run(tmp_path / "faces")
    other = write_run(tmp_path / "other", seed=1)
    append_line(other.metrics, metric_of(1920, 71.5, label="cats"))
    assert CliRunner().invoke(app, ["faces"]).output == "report   faces/report.html\n"
    assert run.report.stat().st_size < LIMIT
    both = CliRunner().invoke(app, ["faces", "other"])
    assert both.output == "report   comparison.html\n"
    page = (tmp_path / "comparison.html").read_text()
    assert "2 runs compared" in page
    assert "SWD, cats" in page
    assert "71.50" in page


def test_help_names_what_is_reported():
    told = CliRunner().invoke(app, ["--help"]).output
    assert "[OPTIONS] RUN...\n" in "\n".join(map(str.strip, told.splitlines())) + "\n"
    assert "list[" not in told


def test_what_cannot_be_reported_is_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    save_plain(tmp_path / "empty" / "holiday.png", 1)
    run = write_run(tmp_path / "faces")
    out = tmp_path / "x.html"
    out.write_text("mine")
    refused = {
        "no config.json": ([tmp_path / "empty"], out),
        "no such folder": ([run.path, tmp_path / "gone"], out),
        "or directory": ([run.path], tmp_path / "gone" / "x.html"),
        f"{MOST_RUNS + 1} runs": ([run.path] * (MOST_RUNS + 1), out),
    }
    for said, (paths, page) in refused.items():
        with pytest.raises(UserError) as caught:
            write_page(paths, page)
        assert_four_parts(caught.value, said)
    assert out.read_text() == "mine"


@pytest.mark.parametrize("name", ["page.pdf", "config.json", "page"])
def test_a_page_is_not_written_under_the_name_of_something_else(tmp_path, name):
    run = write_run(tmp_path / "faces")
    before = contents(tmp_path)
    with pytest.raises(UserError) as error:
        report(runs=[run.path], out=tmp_path / name)
    assert_four_parts(error.value, f"--out {tmp_path / name}\n", ".html")
    assert contents(tmp_path) == before
