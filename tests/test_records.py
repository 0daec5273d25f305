"""What a run writes of its progress: the status line, stats.jsonl, losses.csv."""

import io
import re
import subprocess
import sys

import numpy as np
import pytest
import torch

from dcgan.metrics import NAMES
from dcgan.rundir.folder import RunFolder, append_line
from dcgan.step import STATISTICS
from dcgan.training.clock import Spent
from dcgan.training.records import Records
from dcgan.training.run import Plan
from tests.markdown import assert_as_documented, blocks, documented, guide
from tests.needs import require
from tests.report_runs import metric_of
from tests.running import ROOT, STATUS, environment, read_losses, read_stats, tiny

SPENT = Spent(0.24008, 0.24008 * 0.0024)
"""On two steps: 120.04 ms each."""
ROWS = np.array([[1, 2, 0.5, 0.25, 0.125], [2, 4, 0.25, 0.75, 0.375]], dtype=np.float32)


def new_records(tmp_path, total_steps=25, steps_per_epoch=10):
    run = RunFolder.at(str(tmp_path / "run"))
    run.make()
    lines: list[str] = []
    plan = Plan(total_steps, steps_per_epoch, batch_size=16)
    records = Records(tiny(run.path), run, plan, lines.append)
    records.begin(0)
    return run, records, lines


def test_the_status_line_is_the_ancestors_with_the_pace(tmp_path):
    _, records, lines = new_records(tmp_path)
    records.add_tick(ROWS, SPENT)
    line = lines[-1]
    assert line == (
        "[0/3][2/10]  Loss_D: 1.5000  Loss_G: 3.0000  D(x): 0.3750  D(G(z)): 0.5000 / 0.2500"
        "  133 img/s  120.0 ms/step  data wait 0.2%  0:00:03 left"
    )
    assert re.fullmatch(STATUS, line)


@pytest.mark.parametrize(
    ("steps", "total", "place"),
    [
        (9, 25, "[0/3][9/10]"),
        (10, 25, "[1/3][0/10]"),
        (25, 25, "[2/3][5/10]"),
        (20, 20, "[2/2][0/10]"),
        (1, 1, "[0/1][1/10]"),
    ],
)
def test_epoch_and_step_of_the_status_line(tmp_path, steps, total, place):
    _, records, lines = new_records(tmp_path, total)
    records.add_tick(np.ones((steps, 5), np.float32), SPENT)
    assert lines[-1].startswith(place + "  ")


@pytest.mark.parametrize(
    ("total", "step_ms", "left"),
    [
        (2, 1000.0, "0:00:00"),
        (62, 1500.0, "0:01:30"),
        (86402, 2000.0, "2 days, 0:00:00"),
    ],
)
def test_time_left_is_the_rest_at_this_pace(tmp_path, total, step_ms, left):
    _, records, lines = new_records(tmp_path, total)
    records.add_tick(ROWS, Spent(2 * step_ms / 1e3))
    line = lines[-1]
    assert line.endswith(f"  {left} left")
    assert re.fullmatch(STATUS, line)


def test_a_line_a_tick_and_a_row_a_step(tmp_path):
    run, records, _ = new_records(tmp_path)
    records.add_tick(ROWS, SPENT)
    records.add_tick(ROWS[:1] * 2, SPENT)
    first, second = read_stats(run)
    assert list(first) == [
        *("step", "epoch", "nimg"),
        *STATISTICS,
        *("step_ms", "img_per_s", "data_wait_pct"),
    ]
    assert list(first) == list(documented(run.stats.name))
    assert_as_documented(first, run.stats.name)
    assert (first["step"], first["epoch"], first["nimg"]) == (2, 0, 32)
    assert (second["step"], second["epoch"], second["nimg"]) == (3, 0, 48)
    assert [first[name] for name in STATISTICS] == [1.5, 3, 0.375, 0.5, 0.25]
    assert [second[name] for name in STATISTICS] == [2, 4, 1, 0.5, 0.25]
    assert first["step_ms"] == pytest.approx(120.04)
    rows = read_losses(run)
    assert rows[:, 0].tolist() == [1, 2, 3]
    assert np.array_equal(rows[:, 1:], [*ROWS, ROWS[0] * 2])
    assert np.array_equal(records.history, [*ROWS, ROWS[0] * 2])


def test_seven_digits_of_each_number_are_kept(tmp_path):
    run, records, _ = new_records(tmp_path)
    rows = np.random.default_rng(0).lognormal(0, 9, (25, 5)).astype(np.float32)
    records.add_tick(rows, SPENT)
    np.testing.assert_allclose(read_losses(run)[:, 1:], rows, rtol=5e-7)


def test_means_are_not_taken_in_float32(tmp_path):
    run, records, _ = new_records(tmp_path, total_steps=40_000)
    rows = np.full((40_000, 5), 1.0, np.float32)
    rows[0] = 2**25  # beside which a float32 sum does not notice a 1
    records.add_tick(rows, SPENT)
    assert read_stats(run)[0]["loss_d"] == pytest.approx((2**25 + 39_999) / 40_000, rel=1e-12)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_null_in_json_and_stays_in_the_table(tmp_path, value):
    run, records, lines = new_records(tmp_path)
    rows = ROWS.copy()
    rows[1, 0] = value
    records.add_tick(rows, SPENT)
    line = lines[-1]
    assert f"Loss_D: {value:.4f}  Loss_G: 3.0000" in line
    (record,) = read_stats(run)
    assert_as_documented(record, run.stats.name)
    assert record["loss_d"] is None
    assert record["loss_g"] == 3
    np.testing.assert_array_equal(read_losses(run)[:, 1], [1, value])


def test_the_table_has_its_heading_before_the_first_step(tmp_path):
    run, _, _ = new_records(tmp_path)
    assert read_losses(run).shape == (0, 6)


def test_a_history_of_many_ticks_is_whole_and_copied_few_times(tmp_path):
    _, records, _ = new_records(tmp_path)
    rows = np.random.default_rng(0).random((600, 5), dtype=np.float32)
    rooms = set()
    for place in range(0, 600, 2):
        records.add_tick(rows[place : place + 2], SPENT)
        rooms.add(id(records.history.base))
    assert np.array_equal(records.history, rows)
    assert len(rooms) < 20  # not one for each of 300 ticks
    saved = io.BytesIO()
    torch.save(torch.from_numpy(records.history), saved)
    assert len(saved.getvalue()) < rows.nbytes + 4000  # the room beyond is not saved


def test_a_history_goes_on_from_one_that_was_saved(tmp_path):
    _, records, _ = new_records(tmp_path)
    saved = np.ones((2, 5), dtype=np.float32)
    records.history = saved
    records.add_tick(np.full((1, 5), 2, dtype=np.float32), SPENT)
    assert records.history[:, 0].tolist() == [1, 1, 2]
    assert saved.tolist() == np.ones((2, 5)).tolist()


# The page about them, and its program

PAGE = guide("records")
TRACK = ROOT / "docs/examples/track.py"


def test_the_page_names_each_metric_and_shows_the_program():
    rows = re.findall(r"^\| `(\w+)` \|[^|]+\|[^|]+\|$", PAGE.read_text(), re.MULTILINE)
    assert sorted(rows) == sorted(NAMES)
    assert blocks(PAGE, "python") == [TRACK.read_text()]


def test_the_program_fills_mlflows_file_store(tmp_path):
    require("mlflow")
    run, records, _ = new_records(tmp_path)
    run.config.write_text('{"lr": 0.1}')
    records.add_tick(ROWS, SPENT)
    with run.stats.open("a") as file:
        file.write('{"step": 3, "epoch": 0, "ni')  # cut off
    append_line(run.metrics, metric_of(32, 9.0))
    append_line(run.metrics, metric_of(32, 8.0, label="Smiling=1"))
    (block,) = blocks(PAGE, "sh")
    export, _ = block.splitlines()
    variables = dict(word.split("=") for word in export.removeprefix("export ").split())
    done = subprocess.run(
        [sys.executable, TRACK, run.path],
        cwd=tmp_path,
        env=environment() | variables | {"MLFLOW_DISABLE_TELEMETRY": "true"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    (found,) = tmp_path.glob("mlruns/0/*/metrics")
    names = {path.relative_to(found).as_posix() for path in found.rglob("*") if path.is_file()}
    assert {"training/loss_d", "training/img_per_s", "swd/value", "swd/floor"} <= names
    for name, value in (("training/loss_d", "1.5"), ("swd/value", "9.0")):
        assert (found / name).read_text().split()[1:] == [value, "32"]
    assert [path.name for path in tmp_path.glob("mlruns/0/*/artifacts/*")] == ["config.json"]
