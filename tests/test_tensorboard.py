"""TensorBoard's events, read back by TensorBoard; and runs where they cannot be written."""

import html.parser
import importlib
import importlib.util
import resource
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from dcgan.rundir.tensorboard import Events
from dcgan.sampling.pictures import save_grid
from tests.needs import within
from tests.pictures import decode

RECORD: dict[str, Any] = {"step": 50, "epoch": 1, "nimg": 6400}
RECORD |= {"loss_d": 0.25, "loss_g": 4.5, "d_x": 0.875, "d_gz1": 0.125, "d_gz2": None}
RECORD |= {"step_ms": 187.5, "img_per_s": 681.0, "data_wait_pct": 0.5}
"""A line of stats.jsonl; the numbers are float32's, as events have them."""

INSTALLED = importlib.util.find_spec("tensorboard") is not None
needs_tensorboard = pytest.mark.skipif(not INSTALLED, reason="tensorboard is not installed")


@contextmanager
def writing(
    folder: Path,
    step: int = 0,
    options: dict[str, Any] | None = None,
    log: Callable[[str], object] = lambda line: None,
) -> Iterator[Events]:
    events = Events(log)
    events.open(folder, step, options or {})
    try:
        yield events
    finally:
        within(10, events.close)


def read(folder: Path) -> Any:
    """All events of a folder, as TensorBoard takes them."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    everything = dict.fromkeys(("scalars", "images", "tensors"), 0)
    return EventAccumulator(str(folder), size_guidance=everything).Reload()


def scalars(folder: Path) -> dict[str, dict[int, float]]:
    """For each tag, the value at each step; two values of one step are a fault."""
    found = read(folder)
    values = {}
    for tag in found.Tags()["scalars"]:
        events = found.Scalars(tag)
        values[tag] = {event.step: event.value for event in events}
        assert len(values[tag]) == len(events)
    return values


def at(step: int, **changes: Any) -> dict[str, Any]:
    return RECORD | {"step": step} | changes


@pytest.fixture
def numbered_from_0(monkeypatch):
    """Count files anew: those of one second are read in the order of names, 10 before 9."""
    writer = importlib.import_module("tensorboard.summary.writer.event_file_writer")
    monkeypatch.setattr(writer, "_global_uid", writer.AtomicCounter(0))


@needs_tensorboard
def test_a_tick_becomes_curves_in_groups(tmp_path):
    with writing(tmp_path / "events") as events:
        events.tick(RECORD)
        events.tick(at(100, loss_d=0.5, d_gz2=0.0625, d_x=None, grade=2.0))
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
        }, "while the file is open"


@needs_tensorboard
def test_metrics_with_floor_and_scales(tmp_path):
    swd = {"metric": "swd", "value": 12.5, "floor": 3.0, "scales": {"64": 9.0, "32": 16.0}}
    with writing(tmp_path) as events:
        events.metric(swd | {"floor_scales": {"64": 2.5, "32": 3.5}, "n": 2048}, 500)
        events.metric({"metric": "fid", "value": 80.0, "floor": None, "scales": None}, 500)
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
def test_grids_keep_every_pixel(tmp_path):
    images = torch.randint(0, 256, (11, 32, 32, 3), generator=torch.Generator().manual_seed(0))
    save_grid(images.to(torch.uint8), tmp_path / "grid.png")
    with writing(tmp_path / "events") as events:
        events.grid("samples", tmp_path / "grid.png", 500)
    (event,) = read(tmp_path / "events").Images("samples")
    assert event.step == 500
    shown, saved = event.encoded_image_string, (tmp_path / "grid.png").read_bytes()
    assert (decode(shown) == decode(saved)).all()


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
    with writing(tmp_path, 7, options):
        pass
    (event,) = read(tmp_path).Tensors("options/text_summary")
    assert event.step == 7
    (text,) = event.tensor_proto.string_val
    table = Cells(markdown_to_safe_html(text))
    assert table.tags == {"table", "thead", "tbody", "tr", "th", "td"}
    wanted = ["option", "value", "batch_size", "128", "run", odd, "netG", "None", "_lr_", "0.0002"]
    assert table.cells[:10] == wanted
    assert len(table.cells) == 12


@needs_tensorboard
def test_steps_that_are_done_again_do_not_stand_twice(tmp_path, numbered_from_0):
    with writing(tmp_path) as events:
        for step in (50, 100, 150, 200):
            events.tick(at(step, loss_d=step))
    for attempt in (1, 2):
        with writing(tmp_path, step=100) as events:
            events.tick(at(150, loss_d=attempt))
    assert scalars(tmp_path)["losses/loss_d"] == {50: 50, 100: 100, 150: 2}
    with writing(tmp_path) as events:
        events.tick(at(5))
    assert scalars(tmp_path)["losses/loss_d"] == {5: 0.25}, "of a run that begins anew"


@needs_tensorboard
def test_a_file_of_an_earlier_version_comes_before_ours(tmp_path, numbered_from_0):
    with writing(tmp_path) as events:
        events.tick(at(50, loss_d=1))
        events.tick(at(100, loss_d=1))
    (file,) = tmp_path.iterdir()
    file.rename(tmp_path / "events.out.tfevents.000012")
    with writing(tmp_path, step=50) as events:
        events.tick(at(100, loss_d=2))
    assert scalars(tmp_path)["losses/loss_d"] == {50: 1, 100: 2}


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
def test_a_full_disk_is_logged_once_and_harms_nothing_else(tmp_path, capfd):
    hook, threads, log = threading.excepthook, threading.active_count(), list[str]()
    with writing(tmp_path / "events", log=log.append) as events:
        events.tick(RECORD)
        (file,) = (tmp_path / "events").iterdir()
        with files_end_at(file.stat().st_size + 10):
            within(10, lambda: events.tick(at(100)))
        events.tick(at(150))
        within(10, events.close)
        events.tick(at(200))
    assert log[1:] == ["No more TensorBoard events: [Errno 27] File too large"]
    assert capfd.readouterr() == ("", ""), "the writer's thread has its own traceback"
    assert set(scalars(tmp_path / "events")["losses/loss_g"]) == {50}
    assert (threading.excepthook, threading.active_count()) == (hook, threads)


@needs_tensorboard
def test_a_folder_that_cannot_be_made_is_logged(tmp_path, capfd):
    (tmp_path / "file").touch()
    log = list[str]()
    with writing(tmp_path / "file", log=log.append) as events:
        events.tick(RECORD)
    (line,) = log
    assert line.startswith("No more TensorBoard events: ")
    assert capfd.readouterr() == ("", "")


@needs_tensorboard
def test_a_tensorboard_that_does_not_work_is_logged(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    log = list[str]()
    with writing(tmp_path / "events", log=log.append) as events:
        events.tick(RECORD)
    (line,) = log
    assert line.startswith("No more TensorBoard events: ")


def test_without_tensorboard_nothing_is_written_or_logged(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    log = list[str]()
    with writing(tmp_path / "events", log=log.append) as events:
        events.tick(RECORD)
    assert log == []
    assert not (tmp_path / "events").exists()


@needs_tensorboard
def test_the_log_says_how_to_start_tensorboard(tmp_path):
    log = list[str]()
    with writing(tmp_path / "my runs", log=log.append):
        pass
    assert log == [f"events   tensorboard --logdir '{tmp_path}/my runs'"]
