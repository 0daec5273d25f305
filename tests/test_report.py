"""The report's reading, thinning, pictures and words; what a browser makes of it is elsewhere."""

import json
import math

import pytest

from dcgan.report import write_page
from dcgan.reporting import page as report_page
from dcgan.reporting.charts import losses
from dcgan.reporting.compare import differing
from dcgan.reporting.images import pack_pictures
from dcgan.reporting.page import LIMIT, run_page
from dcgan.reporting.read import read_run, read_runs
from dcgan.reporting.words import MOST_ROWS, duration, number, plain
from pipeline.errors import UserError
from tests.report_runs import (
    BATCH,
    alarm_of,
    metric_of,
    save_noise,
    write_lines,
    write_run,
)
from tests.running import assert_four_parts

HOSTILE = "</script><img src=x onerror=alert(1)>"


@pytest.fixture
def without_plotly(monkeypatch):
    """Pages without five megabytes of script."""
    monkeypatch.setattr(report_page, "plotly_script", lambda: "/* plotly */")


def test_a_run_is_read_as_it_was_written(tmp_path):
    run = write_run(tmp_path / "faces")
    write_lines(run.metrics, [metric_of(1920, 18.0), metric_of(960, 20.0)])
    write_lines(run.alarms, [alarm_of(40)])
    record = read_run(run.path)
    assert (record.name, record.status, record.notes) == ("faces", "Training finished", [])
    assert (record.nimg, record.steps_done, record.images_per_step) == (1920, 120, BATCH)
    assert record.steps.tolist() == list(range(1, 121))
    assert record.curves["loss_d"][-1] == record.ticks[-1].loss_d
    assert record.seconds == pytest.approx(20 * record.of_ticks("step_ms").sum() / 1e3)
    assert record.median("img_per_s") == 780
    assert [each.value for each in record.measured("swd")] == [20.0, 18.0]
    assert [each.step for each in record.alarms] == [40]


def test_a_half_written_last_line_is_skipped_in_silence(tmp_path):
    run = write_run(tmp_path / "faces")
    for path in (run.stats, run.losses_csv):
        text = path.read_text()
        path.write_text(text[: len(text) - 4])
    record = read_run(run.path)
    assert (record.ticks[-1].step, record.steps[-1]) == (100, 119)
    assert record.notes == []


def test_damaged_lines_are_left_out_and_counted(tmp_path):
    run = write_run(tmp_path / "faces")
    absurd = (
        *('{"step": 1e300, "nimg": 1}', '{"step": 9, "nimg": 1, "loss_d": NaN}'),
        *('{"step": -1, "nimg": 1}', "[]", '{"nimg": 3}', ""),
    )
    run.stats.write_text("\n".join(absurd) + run.stats.read_text())
    run.losses_csv.write_text(run.losses_csv.read_text() + "nan,1,1,1,1,1\n7,x\n")
    run.config.write_text("[1")
    record = read_run(run.path)
    assert (len(record.ticks), len(record.steps)) == (6, 120)
    assert record.notes == [
        "stats.jsonl: lines that make no sense and were left out: 5.",
        "losses.csv: lines that make no sense and were left out: 2.",
        "config.json cannot be read: it is damaged.",
    ]


@pytest.mark.parametrize(
    ("log", "status"),
    [
        ("Starting training\n[0/1] …\n", "running, or killed"),
        ("Starting training\nStopped by SIGTERM: 3 steps\nResuming training\n", "running, or"),
        ("Starting training\nTime is up: 3 steps, 48 images\n", "Time is up"),
        ("Starting training\nTraining broke off: no: space\nWhat", "Training broke off: no: space"),
        ("run      runs/0001\n", "not started"),
        (None, "unknown"),
    ],
)
def test_the_log_tells_how_a_run_ended(tmp_path, log, status):
    run = write_run(tmp_path / "faces")
    run.log.unlink()
    if log is not None:
        run.log.write_text(log)
    record = read_run(run.path)
    assert record.status.startswith(status)
    assert record.notes == ([] if log is not None else ["log.txt is not there."])


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("config.json", "No options"),
        ("env.json", "No environment"),
        ("log.txt", "log.txt is not there."),
        ("stats.jsonl", "No throughput"),
        ("losses.csv", "Means of each tick"),
        ("reals.png", "No real images"),
        ("metrics.jsonl", "Not measured"),
        ("alarms.jsonl", "No alarm was recorded"),
        ("samples", "No sample grid yet"),
    ],
)
def test_what_is_absent_is_said_in_words(tmp_path, without_plotly, name, words):
    run = write_run(tmp_path / "faces")
    write_lines(run.metrics, [metric_of(960, 20.0), metric_of(1920, 12.0)])
    write_lines(run.alarms, [alarm_of(40)])
    assert words not in run_page(read_run(run.path))
    path = run.path / name
    path.rename(tmp_path / "lost")
    assert words in run_page(read_run(run.path))


def test_damaged_pictures_are_named_and_the_others_shown(tmp_path, without_plotly):
    run = write_run(tmp_path / "faces")
    run.reals.write_bytes(run.reals.read_bytes()[:60])
    run.fakes(1920).write_bytes(b"")
    page = run_page(read_run(run.path))
    assert "reals.png cannot be read" in page
    assert "fakes-000001920.png cannot be read" in page
    assert "After" in page
    assert "1,440 images" in page


def test_losses_that_are_not_finite_are_blank_and_counted(tmp_path, without_plotly):
    run = write_run(tmp_path / "faces")
    run.losses_csv.write_text(run.losses_csv.read_text() + "121,nan,inf,1,1,1\n")
    record = read_run(run.path)
    json.dumps(losses(record), allow_nan=False)
    assert "not finite, left blank: 1." in run_page(record)


def test_a_thinned_history_says_so(tmp_path, without_plotly):
    record = read_run(write_run(tmp_path / "faces", steps=2500, log_every=500).path)
    assert "Of 2,500 steps, 2,000 are drawn" in run_page(record)
    assert max(len(trace["x"]) for trace in losses(record)["data"]) == 2000


def test_pictures_shrink_until_they_fit(tmp_path):
    paths = [tmp_path / f"{seed}.png" for seed in range(3)]
    for seed, path in enumerate(paths):
        save_noise(path, 200, seed)
    large = pack_pictures(paths, 10**9)
    assert large.notes == []
    assert {picture.width for picture in large.pictures.values()} == {400}  # twice, pixel by pixel
    save_noise(tmp_path / "with-names.png", 300, 3)
    beside = pack_pictures([paths[0], tmp_path / "with-names.png"], 10**9)
    assert {picture.width for picture in beside.pictures.values()} == {200, 300}  # at one scale
    budget = sum(len(picture.src) for picture in large.pictures.values()) * 2 // 3
    small = pack_pictures([*paths, tmp_path / "absent.png"], budget)
    texts = [picture.src.partition(",")[2] for picture in small.pictures.values()]
    assert 0.3 * budget < sum(map(len, texts)) <= budget
    assert "of their size" in small.notes[0]


@pytest.mark.slow
def test_no_run_makes_a_page_of_more_than_15_megabytes(tmp_path):
    run = write_run(tmp_path / "faces", steps=20_000, grids=0)
    for number_ in range(60):
        save_noise(run.fakes(number_), 1040, number_)
    long = "<&\"'" * 10_000
    write_lines(run.alarms, [alarm_of(step, long) for step in range(500)])
    write_lines(run.metrics, [metric_of(n, 9.0, recipe=long, shards=long) for n in range(500)])
    run.config.write_text(json.dumps({f"{long}{k}": long for k in range(500)}))
    size = len(run_page(read_run(run.path)).encode())
    assert 0.6 * LIMIT < size <= LIMIT


def test_the_limit_counts_all_that_is_not_a_picture(tmp_path, monkeypatch):
    run = write_run(tmp_path / "faces", grids=0)
    for number_ in range(5):
        save_noise(run.fakes(number_), 300, number_)
    monkeypatch.setattr(report_page, "plotly_script", lambda: "/*" + "x" * 100_000 + "*/")
    monkeypatch.setattr(report_page, "LIMIT", 300_000)
    page = run_page(read_run(run.path))
    assert 200_000 < len(page.encode()) <= 300_000
    assert page.count("data:image/webp") == 6  # the reals too


def test_nothing_from_a_file_is_markup(tmp_path, without_plotly):
    run = write_run(tmp_path / HOSTILE.replace("/", "∕"), config={HOSTILE: HOSTILE})
    run.environment.write_text(json.dumps({HOSTILE: {HOSTILE: [HOSTILE]}}))
    run.log.write_text(f"Training broke off: {HOSTILE}\n")
    strings = dict.fromkeys(("net", "metric", "recipe", "extractor", "digest", "shards"), HOSTILE)
    rows = [metric_of(1, 9.0, scales={HOSTILE: 1.0}, **strings)]
    rows += [metric_of(n, 9.0, net=HOSTILE) for n in (1, 2)]
    write_lines(run.metrics, rows)
    write_lines(run.alarms, [alarm_of(3, HOSTILE) | {"kind": HOSTILE, "action": HOSTILE}])
    for page in (
        run_page(read_run(run.path)),
        report_page.render("run.html", page_values(run.path)),
    ):
        assert "<img src=x" not in page
        assert page.count("</script>") == page.count("<script")
        assert "&lt;img src=x onerror=alert(1)&gt;" in page


def page_values(path):
    """A page's values, with remarks that are hostile too."""
    values = report_page.run_values(read_run(path))
    absent: dict[str, object] = dict.fromkeys(("reals", "neighbours"))
    return {**values, **absent, "grids": [], "left_out": HOSTILE, "notes": [HOSTILE]}


def test_half_a_character_does_not_stop_the_page(tmp_path, without_plotly):
    run = write_run(tmp_path / "faces", config={"note": "\ud800"})
    write_page([run.path], run.report)
    assert "note" in run.report.read_text(encoding="utf-8")


def test_options_that_differ_are_those_whose_values_do(tmp_path):
    long = "x" * 200
    one = write_run(tmp_path / "one", config={"lr": 1e-4, "shards": long + "1"})
    two = write_run(tmp_path / "two", config={"shards": long + "2", "new": True})
    rows = differing(read_runs([one.path, two.path]))
    cut = "x" * 80 + "…"
    assert rows == [
        ("shards", cut, cut),
        ("lr", "0.0001", "0.0002"),
        ("new", "–", "yes"),
    ]


@pytest.mark.parametrize("sets", [("a1", "a1"), ("a1", "b2"), ("a1", None)])
def test_a_set_is_compared_by_its_fingerprint(tmp_path, sets):
    for name, spelled, fingerprint in zip("xy", ("faces", "faces/"), sets, strict=True):
        known = {} if fingerprint is None else {"shard_set": fingerprint}
        write_run(tmp_path / name, config={"shards": spelled, **known})
    rows = differing(read_runs([tmp_path / "x", tmp_path / "y"]))
    both = ["shards", "shard_set"]
    assert [name for name, *_ in rows] == ([] if len({*sets}) == 1 else both)


def test_runs_of_one_name_are_told_apart_by_their_paths(tmp_path):
    paths = [write_run(tmp_path / where / "0001").path for where in ("a", "b")]
    assert [record.name for record in read_runs(paths)] == [str(path) for path in paths]
    with pytest.raises(UserError) as caught:
        read_runs([paths[0], tmp_path / "b" / ".." / "a" / "0001"])
    assert_four_parts(caught.value, "given twice")


def test_numbers_read_well():
    assert [number(v) for v in (0.0, 0.61523, 4616.5, 153_600.0, -1.5, 2e-7, math.nan, None)] == [
        *("0", "0.6152", "4,616", "153,600", "-1.500", "2.000e-07", "nan", "–")
    ]
    assert (duration(3403.2), duration(math.inf)) == ("0:56:43", "–")
    assert [plain(v) for v in (None, True, 0.1, ["a b", "c"], {"k": 1})] == [
        *("not given", "yes", "0.1", "'a b' c", '{"k": 1}')
    ]
    assert len(plain("x" * 10_000)) < 1000
    assert MOST_ROWS < 1000
