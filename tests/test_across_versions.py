"""`tests/across_versions.py` runs as a slow test, and what it compares with finds differences."""

import json
import shutil
import subprocess

import pytest
import torch

from tests import across_versions
from tests.running import ROOT
from tests.versions import differences


@pytest.mark.slow
def test_this_tree_gives_what_the_earlier_commit_gives():
    commit = f"{across_versions.BEFORE}^{{commit}}"
    known = subprocess.run(["git", "-C", ROOT, "cat-file", "-e", commit], capture_output=True)
    if known.returncode != 0:
        pytest.skip(f"no commit {across_versions.BEFORE} here: no clone, or a shallow one")
    assert across_versions.main([]) == 0


@pytest.fixture
def run(tmp_path):
    """A folder with a file of each kind, and a copy of it."""
    one = tmp_path / "one"
    (one / "checkpoints").mkdir(parents=True)
    (one / "log.txt").write_text("12:00")
    (one / "reals.png").write_bytes(b"picture")
    (one / "config.json").write_text('{"lr": 0.1, "run": "run"}')
    (one / "stats.jsonl").write_text('{"step": 1, "step_ms": 3.5}\n{"step": 2, "step_ms": 3.6}\n')
    weights = {"weight": torch.zeros(3), "bias": torch.tensor([1.0, torch.nan])}
    torch.save({"net": weights, "steps": 3, "seconds": 4.5}, one / "checkpoints/8.pt")
    (one / "checkpoints/8.json").write_text('{"nimg": 8, "sha256": "ab"}')
    shutil.copytree(one, tmp_path / "other")
    return one, tmp_path / "other"


def save(path, **changes):
    state = torch.load(path, weights_only=True)
    for name, value in changes.items():
        part = state if name in state else state["net"]
        part[name] = value
    torch.save(state, path)


def test_times_and_words_are_no_difference(run):
    one, other = run
    (other / "log.txt").write_text("13:00")
    (other / "config.json").write_text('{"run": "run", "lr": 0.1, "new": null}')
    text = (other / "stats.jsonl").read_text()
    (other / "stats.jsonl").write_text(text.replace("3.5", "99"))
    save(other / "checkpoints/8.pt", seconds=9.0)
    (other / "checkpoints/8.json").write_text('{"nimg": 8, "sha256": "cd"}')
    assert differences(one, other, "*") == (5, {})


@pytest.mark.parametrize(
    ("name", "change", "told"),
    [
        ("reals.png", lambda path: path.write_bytes(b"pictUre"), "reals.png"),
        ("config.json", lambda path: path.write_text('{"run": "run"}'), "config.json#lr"),
        ("stats.jsonl", lambda path: path.write_text('{"step": 1}\n'), "stats.jsonl#2/step"),
        ("checkpoints/8.json", lambda path: path.write_text(json.dumps({"nimg": 9})), "#nimg"),
        ("checkpoints/8.pt", lambda path: save(path, weight=-torch.zeros(3)), "#net/weight"),
    ],
)
def test_a_planted_difference_is_found_and_named(run, name, change, told):
    one, other = run
    change(other / name)
    _, found = differences(one, other, "*")
    assert len(found) == 1
    assert next(iter(found)).endswith(told)
    assert differences(one, other, "log.txt", "tensor*") == (0, {})
