"""Hostile run folders: options, lines of JSON, tables, checkpoints whose sha256 agrees."""

import hashlib
import json
import os

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dcgan.metrics.reference_cache import kept
from dcgan.nets.models import Generator, init_weights
from dcgan.nets.weights import load_generator, read_state, refuse_inflated
from dcgan.reporting.page import run_page
from dcgan.reporting.read import read_run
from dcgan.rundir.folder import EXPORTED, MODEL_TYPE, RunFolder, read_lines
from dcgan.sampling.latents import read_latents
from dcgan.training.checkpoint import Checkpoints
from dcgan.training.records import Records
from dcgan.training.run import Plan
from dcgan.training.state import State
from pipeline.errors import UserError
from pipeline.images.labels import LabelSpace
from tests.fuzzing import VALUES, address_space, changed_bytes, changed_json, some, survives
from tests.hostile_nets import GONE, TENSORS, Hijacked, Opens, deflated, laughs, paths, replaced
from tests.running import new_trainer, tiny, train_here

STEPS = 3


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run that may go on: folder, files by name, the checkpoint's state, and a new step."""
    run = RunFolder(tmp_path_factory.mktemp("fuzz") / "run")
    train_here(tiny(run.path, max_steps=STEPS, log_every=2, conditional=True))
    files = {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()}
    (checkpoint,) = run.checkpoints.glob("*.pt")
    step = new_trainer(tiny(run.path.with_name("other"), conditional=True)).step
    return run, files, torch.load(checkpoint, weights_only=True), step


@pytest.fixture
def run(trained):
    """The run, as it was; to be altered at will."""
    restore(trained[1])
    return trained[0]


def restore(files):
    """Undo what an example did: of all examples, a fixture is one."""
    for path, data in files.items():
        path.write_bytes(data)


def seal(run, state):
    """Put a state, or bytes, in the place of the checkpoint, with the json that agrees."""
    (path,) = run.checkpoints.glob("*.pt")
    if isinstance(state, bytes):
        path.write_bytes(state)
    else:
        torch.save(state, path)
    data = path.read_bytes()
    told = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest(), "nimg": 24}
    path.with_suffix(".json").write_text(json.dumps(told))
    return path


def go_on(run):
    """What the same command does before its first step."""
    trainer = new_trainer(tiny(run.path, max_steps=STEPS + 2, log_every=2, conditional=True))
    trainer.records.begin(trainer.nimg)
    run.forget_after(trainer.nimg)
    trainer.batches.close()
    return trainer


def report(run):
    return run_page(read_run(run.path))


MARK = "</script><script>alert(1)</script>"

LINES = {
    "stats": {"step": 2, "nimg": 16, "epoch": 0, "loss_d": 1.0, "step_ms": 3.0},
    "metrics": {"nimg": 16, "metric": "swd", "value": 3.0, "scales": {"64": 1.0}, "net": "a"},
    "alarms": {"step": 2, "nimg": 16, "kind": MARK, "message": MARK, "action": "rollback"},
}


@given(data=st.data())
@some(0.15)
def test_any_lines_are_read_or_left_out(run, data):
    for name, line in LINES.items():
        texts = [data.draw(changed_json(line)) for _ in range(2)] + [json.dumps(line)]
        text = "\n".join(texts).encode(errors="surrogatepass") + b"\n"
        getattr(run, name).write_bytes(text)
    path = data.draw(st.sampled_from([run.stats, run.metrics, run.alarms]))
    path.write_bytes(path.read_bytes() + data.draw(changed_bytes(path.read_bytes())))
    survives("jsonl", lambda: read_lines(path), UserError)
    records = Records(tiny(run.path), run, Plan(5, 5, 8), print)
    survives("records", lambda: records.begin(16), UserError)
    survives("report", lambda: read_run(run.path), UserError)


@given(data=st.data())
@some(0.02)
def test_no_line_or_option_breaks_the_page_or_runs_in_it(trained, run, data):
    options = json.loads(trained[1][run.config]) | {"a": MARK}
    run.config.write_text(data.draw(changed_json(options)))
    for name, line in LINES.items():
        getattr(run, name).write_text(
            data.draw(changed_json(line)) + "\n" + json.dumps(line) + "\n"
        )
    page = survives("page", lambda: report(run), UserError)
    assert MARK not in page
    assert "alert(1)" in page


@given(data=st.data())
@some(0.15)
def test_any_table_of_losses_is_read_or_left_out(trained, run, data):
    for path in (run.losses_csv, run.log):
        path.write_bytes(data.draw(changed_bytes(trained[1][path])))
    record = survives("losses", lambda: read_run(run.path), UserError)
    assert len(record.steps) == len(record.curves["loss_d"])


@given(data=st.data())
@some(0.15)
def test_any_options_are_gone_on_with_or_refused(trained, run, data):
    restore(trained[1])
    options = json.loads(trained[1][run.config])
    run.config.write_bytes(data.draw(changed_json(options)).encode(errors="surrogatepass"))
    survives("options", lambda: go_on(run), UserError)


@given(data=st.data())
@some(0.15)
def test_any_seal_counts_or_does_not(trained, run, data):
    (path,) = run.checkpoints.glob("*.json")
    path.write_bytes(data.draw(changed_json(json.loads(trained[1][path]))).encode(errors="replace"))
    checkpoints = Checkpoints(run.checkpoints, 2, lambda text: None)
    survives("seal", checkpoints.newest, UserError)
    best = survives("seal", checkpoints.best)
    assert best is None or np.isfinite(best)


@given(data=st.data())
@some(0.25)
def test_any_bytes_that_their_seal_agrees_with_are_gone_on_with_or_refused(trained, run, data):
    (path,) = run.checkpoints.glob("*.pt")
    seal(run, data.draw(changed_bytes(trained[1][path])))
    survives("checkpoint bytes", lambda: go_on(run), UserError)


def checked(trained, state):
    """A state, if a run may go on from it."""
    run = trained[0].checkpoints
    State.read(state, run).require_fit(trained[3], run)


PARTS = st.one_of(VALUES, TENSORS, st.just(GONE), st.builds(laughs))


@given(data=st.data())
@some(0.35)
def test_any_state_that_its_seal_agrees_with_is_gone_on_with_or_refused(trained, run, data):
    state = trained[2]
    for _ in range(data.draw(st.integers(1, 2))):
        state = replaced(state, data.draw(st.sampled_from(paths(state))), data.draw(PARTS))
    found = survives("checkpoint state", lambda: checked(trained, state), UserError)
    if not isinstance(found, UserError):
        restore(trained[1])
        seal(run, state)
        survives("checkpoint gone on with", lambda: go_on(run), UserError)


def test_a_version_that_takes_for_ever_to_print_is_refused(trained, run):
    restore(trained[1])
    seal(run, trained[2] | {"version": laughs()})
    found = survives("checkpoint gone on with", lambda: go_on(run), UserError)
    assert "a checkpoint of version unknown" in str(found)


def test_each_part_of_a_state_is_checked(trained, run):
    parts = [path for path in paths(trained[2]) if path[0] not in ("options", "version")]
    assert len(parts) > 60
    for path in parts:
        if path[:2] != ("batches", "identity"):
            with pytest.raises(UserError):
                checked(trained, replaced(trained[2], path, "odd"))
    checked(trained, trained[2])
    seal(run, replaced(trained[2], ("step", "random"), "odd"))
    with pytest.raises(UserError, match=r"step\.random"):
        go_on(run)
    seal(run, trained[2])
    assert go_on(run).steps_done == STEPS


@pytest.mark.parametrize("path", [("step",), ("step", "generator"), ("batches",), ("watch",)])
def test_a_dict_brings_no_methods(trained, run, path):
    seal(run, replaced(trained[2], path, Hijacked()))
    found = survives("hijacked", lambda: go_on(run), UserError)
    assert isinstance(found, UserError)
    torch.save(Hijacked(), run.generator)
    survives("hijacked", lambda: load_generator(run.generator), UserError)


def test_no_code_of_a_checkpoint_is_run(trained, run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    seal(run, replaced(trained[2], ("watch",), Opens()))
    torch.save({"main.0.weight": Opens()}, run.generator)
    for call in (lambda: go_on(run), lambda: load_generator(run.generator)):
        assert isinstance(survives("pickle", call, UserError), UserError)
    assert not list(tmp_path.iterdir())


def test_an_inflated_file_of_tensors_is_refused(trained, run, tmp_path, monkeypatch):
    big = {"main.0.weight": torch.zeros(24 << 20)}
    torch.save(big, tmp_path / "net.pt")
    assert deflated(tmp_path / "net.pt").stat().st_size < 1 << 20
    path = seal(run, {**trained[2], "big": big})
    seal(run, deflated(path).read_bytes())
    with address_space(72 << 20):
        for call in (lambda: read_state(tmp_path / "net.pt", "net"), lambda: go_on(run)):
            assert isinstance(survives("bomb", call, UserError), UserError)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    kept({"a": 1}, lambda: {"b": np.zeros(4 << 20)})
    (cached,) = (tmp_path / "dcgan-shards").glob("*.npz")
    refuse_inflated(cached)
    deflated(cached)
    assert len(survives("bomb", lambda: kept({"a": 1}, lambda: {"b": np.ones(1)}))["b"]) == 1


def test_weights_that_are_one_number_are_refused(tmp_path):
    state = Generator(32, nz=8, ngf=4).state_dict()
    state["main.0.weight"] = torch.zeros(1, 1, 1, 1).expand(10**9, 16, 4, 4)
    torch.save(state, tmp_path / "net.pt")
    with address_space(1 << 30), pytest.raises(UserError, match="without storage"):
        load_generator(tmp_path / "net.pt")


@given(data=st.data())
@some(0.25)
def test_any_bytes_are_weights_or_refused(trained, tmp_path, data):
    run, files, *_ = trained
    path = tmp_path / "net.pt"
    path.write_bytes(data.draw(changed_bytes(files[run.generator])))
    survives("weights", lambda: load_generator(path), UserError)


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda path: path.symlink_to("x")])
@pytest.mark.parametrize("suffix", ["pt", "json"])
def test_what_is_no_file_is_no_checkpoint(run, make, suffix):
    odd = run.checkpoints / f"999999999.{suffix}"
    make(odd)
    beside = odd.with_suffix(".json" if suffix == "pt" else ".pt")
    beside.write_text(json.dumps({"bytes": odd.lstat().st_size, "sha256": ""}))
    try:
        assert survives("no file", lambda: go_on(run)).steps_done == STEPS
    finally:
        beside.unlink()
        odd.rmdir() if odd.is_dir() else odd.unlink()


def test_lines_without_end_take_no_memory(run):
    with run.alarms.open("wb") as file:
        file.truncate(100 << 20)
    assert survives("jsonl", lambda: read_lines(run.alarms)) == []
    assert survives("report", lambda: read_run(run.path)).alarms == []
    with run.alarms.open("wb") as file:
        file.truncate(2 << 30)
    with pytest.raises(UserError, match="more than"):
        read_lines(run.alarms)
    run.alarms.unlink()


@given(data=st.data())
@some(0.5)
def test_any_file_of_latents_is_read_or_refused(tmp_path, data):
    path = tmp_path / "z.npy"
    np.save(path, np.ones((3, 8), np.float32))
    path.write_bytes(data.draw(changed_bytes(path.read_bytes())))
    found = survives("latents", lambda: read_latents(path, 8), UserError)
    if not isinstance(found, UserError):
        assert all(row.isfinite().all() for row in found)


@pytest.fixture(scope="module")
def exported():
    """The files of an exported folder from which a conditional net is loaded."""
    from safetensors.torch import save

    space = LabelSpace("attributes", ("a", "b"))
    net = Generator(16, nz=2, ngf=1, labels=space)
    init_weights(net, torch.Generator().manual_seed(0))
    labels = {"kind": "attributes", "names": ["a", "b"], "rows": ["01", "11"]}
    return save(net.state_dict()), {"model_type": MODEL_TYPE, "format": 1, "labels": labels}


@given(data=st.data())
@some(0.3)
def test_any_exported_folder_is_loaded_or_refused(exported, tmp_path, data):
    weights, config = exported
    folder = tmp_path / "export"
    folder.mkdir(exist_ok=True)
    if data.draw(st.booleans()):
        (folder / EXPORTED).write_bytes(data.draw(changed_bytes(weights)))
        (folder / "config.json").write_text(json.dumps(config))
    else:
        (folder / EXPORTED).write_bytes(weights)
        text = data.draw(changed_json(config))
        (folder / "config.json").write_bytes(text.encode(errors="surrogatepass"))
    with address_space(1 << 30):
        found = survives("exported", lambda: load_generator(folder), UserError)
    if isinstance(found, Generator):
        assert all(tensor.isfinite().all() for tensor in found.state_dict().values())
