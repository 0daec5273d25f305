"""TensorBoard's events, read back by TensorBoard; and runs where they cannot be written."""

import html.parser
import importlib.util
import resource
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from dcgan.rundir.tensorboard import Tracking
from dcgan.sampling.pictures import save_grid
from tests.pictures import decode

RECORD: dict[str, Any] = {"step": 50, "epoch": 1, "nimg": 6400}
RECORD |= {"loss_d": 0.25, "loss_g": 4.5, "d_x": 0.875, "d_gz1": 0.125, "d_gz2": None}
RECORD |= {"step_ms": 187.5, "img_per_s": 681.0, "data_wait_pct": 0.5}
"""A line of stats.jsonl; the numbers are float32's, as events have them."""

INSTALLED = importlib.util.find_spec("tensorboard") is not None
needs_tensorboard = pytest.mark.skipif(not INSTALLED, reason="tensorboard is not installed")


def refuse(said: str) -> None:
    raise AssertionError(f"said {said!r}")


@contextmanager
def tracking(
    folder: Path, step: int = 0, say: Callable[[str], object] = refuse
) -> Iterator[Tracking]:
    opened = Tracking.open(folder, step, say)
    assert opened is not None
    try:
        yield opened
    finally:
        opened.close()


def read(folder: Path) -> Any:
    """All events of a folder, as TensorBoard takes them."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    everything = dict.fromkeys(("scalars", "images", "tensors"), 0)
    return EventAccumulator(str(folder), size_guidance=everything).Reload()


def scalars(folder: Path) -> dict[str, dict[int, float]]:
    """For each tag, the value at each step; a step told twice is a fault."""
    found = read(folder)
    values = {}
    for tag in found.Tags()["scalars"]:
        events = found.Scalars(tag)
        values[tag] = {event.step: event.value for event in events}
        assert len(values[tag]) == len(events)
    return values


def at(step: int, **changes: Any) -> dict[str, Any]:
    return RECORD | {"step": step} | changes


@needs_tensorboard
def test_a_tick_becomes_curves_in_groups(tmp_path):
    with tracking(tmp_path / "events") as events:
        events.tick(RECORD)
        events.tick(at(100, loss_d=0.5, d_gz2=0.0625, d_x=float("nan"), grade=2.0))
    assert scalars(tmp_path / "events") == {
        "losses/loss_d": {50: 0.25, 100: 0.5},
        "losses/loss_g": {50: 4.5, 100: 4.5},
        "judgement/d_x": {50: 0.875},
        "judgement/d_gz1": {50: 0.125, 100: 0.125},
        "judgement/d_gz2": {100: 0.0625},
        "progress/epoch": {50: 1, 100: 1},
        "progress/nimg": {50: 6400, 100: 6400},
        "pace/step_ms": {50: 187.5, 100: 187.5},
        "pace/img_per_s": {50: 681, 100: 681},
        "pace/data_wait_pct": {50: 0.5, 100: 0.5},
        "other/grade": {100: 2},
    }


@needs_tensorboard
def test_metrics_with_floor_and_scales(tmp_path):
    swd = {"metric": "swd", "value": 12.5, "floor": 3.0, "scales": {"64": 9.0, "32": 16.0}}
    with tracking(tmp_path) as events:
        events.metric(swd | {"floor_scales": {"64": 2.5, "32": 3.5}, "n": 2048}, 500)
        events.metric({"metric": "fid", "value": 80.0, "floor": None}, 500)
        events.metric({"metric": "kid", "value": None, "scales": None}, 500)
    assert scalars(tmp_path) == {
        "metrics/swd": {500: 12.5},
        "metrics/swd_floor": {500: 3},
        "metrics/swd_64": {500: 9},
        "metrics/swd_32": {500: 16},
        "metrics/swd_64_floor": {500: 2.5},
        "metrics/swd_32_floor": {500: 3.5},
        "metrics/fid": {500: 80},
    }


@needs_tensorboard
@pytest.mark.parametrize("channels", [1, 3])
def test_grids_are_the_files_as_they_are(tmp_path, channels):
    random = torch.Generator().manual_seed(0)
    with tracking(tmp_path / "events") as events:
        for step in (0, 500):
            images = torch.randint(0, 256, (11, 32, 32, channels), generator=random)
            save_grid(images.to(torch.uint8), tmp_path / f"{step}.png")
            events.grid("samples", tmp_path / f"{step}.png", step)
    shown = read(tmp_path / "events").Images("samples")
    assert [event.step for event in shown] == [0, 500]
    for event in shown:
        assert (event.height, event.width) == decode(event.encoded_image_string).shape[:2]
        file = (tmp_path / f"{event.step}.png").read_bytes()
        assert event.encoded_image_string == file


class Cells(html.parser.HTMLParser):
    """The texts of a table's cells, and the names of all tags."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.cells: list[str] = []
        self.tags: set[str] = set()
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.tags.add(tag)
        if tag in ("td", "th"):
            self.cells.append("")

    def handle_data(self, data: str) -> None:
        if self.cells:
            self.cells[-1] += data.strip("\n")


@needs_tensorboard
@pytest.mark.filterwarnings("ignore:html5lib's sanitizer is deprecated:DeprecationWarning")
def test_options_are_a_table_that_nothing_breaks_out_of(tmp_path):
    from tensorboard.plugin_util import markdown_to_safe_html

    odd = r"a|b \ `c` *d* _e_ <b>f</b> &lt; [g](http://h.i) ![](j) $k$ é"
    options = {"batch_size": 128, "run": odd, "netG": None, "_lr_": 2e-4, "raw": "a\ud800b"}
    with tracking(tmp_path, step=7) as events:
        events.options(options)
    (event,) = read(tmp_path).Tensors("options/text_summary")
    assert event.step == 7
    (text,) = event.tensor_proto.string_val
    table = Cells(markdown_to_safe_html(text))
    assert table.tags == {"table", "thead", "tbody", "tr", "th", "td"}
    wanted = ["option", "value", "batch_size", "128", "run", odd, "netG", "None", "_lr_", "0.0002"]
    assert table.cells[:10] == wanted
    assert len(table.cells) == 12


@needs_tensorboard
def test_steps_that_were_undone_vanish(tmp_path):
    grid = tmp_path / "grid.png"
    save_grid(torch.zeros(4, 32, 32, 3, dtype=torch.uint8), grid)
    folder = tmp_path / "events"
    with tracking(folder) as events:
        events.grid("samples", grid, 0)
        for step in (50, 100, 150, 200):
            events.tick(at(step, loss_d=step))
            events.grid("samples", grid, step)
    with tracking(folder, step=100) as events:
        events.tick(at(150, loss_d=1))
    with tracking(folder, step=100) as events:
        events.tick(at(150, loss_d=2))
        assert scalars(folder)["losses/loss_d"] == {50: 50, 100: 100, 150: 2}, "while it is open"
    assert [event.step for event in read(folder).Images("samples")] == [0, 50, 100]


@needs_tensorboard
def test_a_run_that_begins_anew_has_no_past(tmp_path):
    with tracking(tmp_path) as events:
        events.tick(at(0))
        events.tick(RECORD)
    with tracking(tmp_path) as events:
        events.tick(at(5))
    assert {step for values in scalars(tmp_path).values() for step in values} == {5}


@needs_tensorboard
def test_twelve_sessions_are_read_in_their_order(tmp_path):
    (tmp_path / "events.out.tfevents.of.another.tool").touch()
    for session in range(12):
        with tracking(tmp_path, step=session) as events:
            events.tick(at(session + 1, loss_d=session))
    assert scalars(tmp_path)["losses/loss_d"] == {step: step - 1 for step in range(1, 13)}


@needs_tensorboard
@pytest.mark.parametrize("cut", [1, 20, 200])
def test_a_file_cut_short_costs_its_end_alone(tmp_path, cut):
    with tracking(tmp_path) as events:
        for step in (50, 100):
            events.tick(at(step))
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:-cut])
    with tracking(tmp_path, step=50) as events:
        events.tick(at(60))
    assert set(scalars(tmp_path)["losses/loss_d"]) == {50, 60}


@contextmanager
def files_end_at(size: int) -> Iterator[None]:
    """Let no file grow longer: writing fails as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@needs_tensorboard
def test_a_full_disk_is_told_once_and_training_goes_on(tmp_path, capfd):
    said: list[str] = []
    with tracking(tmp_path / "events", say=said.append) as events:
        events.tick(RECORD)
        (file,) = (tmp_path / "events").iterdir()
        with files_end_at(file.stat().st_size + 10):
            events.tick(at(100))
        assert said == ["No more TensorBoard events: OSError: [Errno 27] File too large"]
        events.tick(at(150))
        events.options({"lr": 1})
    assert len(said) == 1
    assert capfd.readouterr() == ("", "")
    assert set(scalars(tmp_path / "events")["losses/loss_d"]) == {50}


@needs_tensorboard
def test_a_disk_full_from_the_start_is_told(tmp_path):
    said: list[str] = []
    with files_end_at(5):
        assert Tracking.open(tmp_path, 0, said.append) is None
    assert said == ["No TensorBoard events: OSError: [Errno 27] File too large"]


@needs_tensorboard
def test_a_folder_that_cannot_be_made_is_told(tmp_path):
    (tmp_path / "file").touch()
    said: list[str] = []
    assert Tracking.open(tmp_path / "file", 0, said.append) is None
    assert said[0].startswith("No TensorBoard events: FileExistsError")


@needs_tensorboard
def test_a_tensorboard_that_does_not_work_is_told(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboard.compat.proto.event_pb2", None)
    said: list[str] = []
    assert Tracking.open(tmp_path / "events", 0, said.append) is None
    assert said[0].startswith("No TensorBoard events: ModuleNotFoundError")
    assert not (tmp_path / "events").exists()


def test_without_tensorboard_nothing_is_written_or_said(tmp_path, monkeypatch):
    monkeypatch.setattr("dcgan.rundir.tensorboard.importlib.util.find_spec", lambda name: None)
    assert Tracking.open(tmp_path / "events", 0, refuse) is None
    assert not (tmp_path / "events").exists()


@needs_tensorboard
def test_what_is_told_starts_tensorboard_there(tmp_path):
    with tracking(tmp_path / "my runs") as events:
        assert events.told == f"tensorboard --logdir '{tmp_path}/my runs'"


@needs_tensorboard
def test_closing_twice_and_writing_afterwards_do_nothing(tmp_path):
    with tracking(tmp_path) as events:
        events.tick(RECORD)
        events.close()
        events.close()
        events.tick(at(100))
    assert set(scalars(tmp_path)["losses/loss_d"]) == {50}


@needs_tensorboard
def test_no_thread_is_left_running(tmp_path):
    before = threading.active_count()
    with tracking(tmp_path) as events:
        events.tick(RECORD)
        assert threading.active_count() == before


@needs_tensorboard
def test_the_import_is_left_until_a_run_begins():
    heavy = "{'torch', 'tensorboard'} & set(sys.modules)"
    code = f"import sys, dcgan.rundir.tensorboard; sys.exit(str({heavy}) if {heavy} else 0)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
