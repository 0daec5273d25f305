"""`make recipes`: it goes on where it was stopped, and the page has what was measured."""

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest
import typer
from typer.testing import CliRunner

from dcgan.metrics.reals import Measured, Provenance
from dcgan.rundir.folder import RunFolder, append_line
from pipeline.errors import UserError
from tests.pictures import numbered_pictures, pack_pictures
from tests.running import ROOT, flags

VALUES = {"tutorial-1": 40.0, "tutorial-2": 50.0, "default-1": 15.0, "default-2": 16.0}


@pytest.fixture
def recipes(tmp_path, monkeypatch) -> ModuleType:
    """The program, whose commands pretend to train and to measure; the time ends in step 3."""
    spec = importlib.util.spec_from_file_location("recipes_page", ROOT / "docs/recipes.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    page = tmp_path / "recipes.md"
    page.write_text(f"before\n{module.BEGIN}old tables\n{module.END}after\n")
    monkeypatch.setattr(module, "PAGE", page)
    monkeypatch.setattr(module, "calls", [], raising=False)
    monkeypatch.setattr(module, "_call", lambda command, *words: pretend(module, command, words))
    return module


def pretend(module: ModuleType, command: str, words: tuple[object, ...]) -> int:
    given = list(map(str, words))
    module.calls.append((command, given))
    run = RunFolder(Path(given[given.index("--run") + 1] if command == "train" else given[0]))
    if command == "train":
        if len(module.calls) == 3:
            return int(module.OUT_OF_TIME)
        batch, steps = (
            int(given[given.index(name) + 1]) for name in ("--batch-size", "--max-steps")
        )
        run.path.mkdir(parents=True, exist_ok=True)
        shards = given[given.index("--shards") + 1]
        options = {"batch_size": batch, "precision": "fp32", "shards": shards}
        options |= {"image_size": 64, "shard_set": "abc"}
        run.config.write_text(json.dumps(options))
        run.environment.write_text(json.dumps({"cpus": 2, "device_name": "a CPU"}))
        append_line(run.stats, {"step": steps, "nimg": steps * batch, "step_ms": 60.0})
        return 0
    nimg = json.loads(run.stats.read_text().splitlines()[-1])["nimg"]
    source = Provenance("raw 64", "patches", None, True, "abc")
    measured = Measured("swd", VALUES[run.path.name], 7.0, 100, source)
    append_line(run.metrics, measured.record(nimg, "netG_ema.pt"))
    return 0


def rows(page: Path) -> list[list[str]]:
    lines = [line for line in page.read_text().splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_it_goes_on_and_writes_what_was_measured(recipes, tmp_path):
    shards = pack_pictures(tmp_path / "shards", numbered_pictures(8)).folder
    app = typer.Typer()
    app.command()(recipes.main)
    more = flags(out=tmp_path / "runs", seeds="1,2", budgets="2000,1000", faces=0)
    words = [str(shards), *more]
    first = CliRunner().invoke(app, words)
    assert "out of time" in first.output, first.exception
    assert [row[:3] for row in rows(recipes.PAGE)[2:]] == [["1,000", "tutorial", "1"]]
    CliRunner().invoke(app, words)
    made = [
        given[given.index("--max-steps") + 1] for name, given in recipes.calls if name == "train"
    ]
    assert made[:3] == ["16", "32", "32"]  # of 64 images; the second was begun twice
    assert len(made) == 9
    head, _, *table = rows(recipes.PAGE)
    assert head == ["images seen", "recipe", "seeds", "minutes", "SWD"]
    assert table == [
        ["1,000", "default", "2", "0.063 (0.063–0.063)", "15.5 (15–16)"],
        ["1,000", "tutorial", "2", "0.016 (0.016–0.016)", "45 (40–50)"],
        ["2,000", "default", "2", "0.125 (0.125–0.125)", "15.5 (15–16)"],
        ["2,000", "tutorial", "2", "0.032 (0.032–0.032)", "45 (40–50)"],
    ]
    text = recipes.PAGE.read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "old tables" not in text
    assert "8 images, raw 64" in text
    assert "SWD 7 (n = 100)" in text


@pytest.mark.parametrize(
    ("flag", "value"),
    [("--recipes", "default,best"), ("--seeds", "1,a"), ("--budgets", "1500"), ("--faces", "3")],
)
def test_what_makes_no_sense_is_refused_before_anything_is_trained(recipes, tmp_path, flag, value):
    shards = pack_pictures(tmp_path / "shards", numbered_pictures(8)).folder
    page = recipes.PAGE.read_text()
    app = typer.Typer()
    app.command()(recipes.main)
    done = CliRunner().invoke(app, [str(shards), flag, value])
    assert isinstance(done.exception, UserError)
    assert flag in str(done.exception)
    assert not recipes.calls
    assert recipes.PAGE.read_text() == page


def test_a_damaged_run_is_named_and_the_page_stays(recipes, tmp_path):
    page, run = recipes.PAGE.read_text(), RunFolder(tmp_path / "runs/shards/default-1")
    run.path.mkdir(parents=True)
    run.config.write_text("{}")
    append_line(run.metrics, {"nimg": 1000})
    with pytest.raises(UserError, match="cannot be read"):
        recipes.write(tmp_path / "runs")
    assert recipes.PAGE.read_text() == page


def test_without_a_result_the_page_stays(recipes, tmp_path):
    page = recipes.PAGE.read_text()
    recipes.write(tmp_path / "nothing")
    assert recipes.PAGE.read_text() == page
