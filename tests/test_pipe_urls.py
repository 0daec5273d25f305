"""No URL of a scheme that is not allowed is taken: webdataset would run what follows `pipe:`."""

import json
import re
import sys
from pathlib import Path

import pytest
import torch

from dcgan import doctor, evaluate, profile, train
from dcgan.checks.findings import Check, examine
from dcgan.checks.machine import one_batch, shard_set
from dcgan.profiling.contenders import webdataset_shards
from pipeline.loading.options import LoaderOptions
from pipeline.shards.shard_set import Folder, ShardSet
from tests.needs import take
from tests.packing_runs import in_process, pack_folder
from tests.pictures import numbered_pictures, write_pictures
from tests.sample_runs import make_run
from tools import check_shards

__all__ = ["in_process"]  # a fixture

URL = "pipe:touch pwned;"
"""Of a folder that is there, and of a command whose traces would be seen."""


@pytest.fixture(autouse=True)
def work(tmp_path, monkeypatch, in_process):
    """A current folder in which the set is; the command must leave nothing there."""
    pack_folder(write_pictures(tmp_path / "pictures", numbered_pictures(6)), tmp_path / URL)
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    assert not list(tmp_path.rglob("pwned"))


def told(monkeypatch, capsys, main, *words):
    """What a command prints that must end with status 1."""
    monkeypatch.setattr(sys, "argv", ["command", *words])
    with pytest.raises(SystemExit) as ended:
        main()
    printed = capsys.readouterr()
    assert ended.value.code == 1, printed
    return printed.out + printed.err


MEASURED = ["loader", "stages", "compare"]


@pytest.mark.parametrize(
    ("main", "words"),
    [
        (train.main, ["--shards", URL, "--run", "run", "--device", "cpu"]),
        (check_shards.main, [URL]),
        *((profile.main, [command, "--shards", URL, "--device", "cpu"]) for command in MEASURED),
        (profile.main, ["train", "--shards", URL, "--device", "cpu"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else value.__module__,
)
def test_no_command_takes_a_url(work, monkeypatch, capsys, main, words):
    printed = told(monkeypatch, capsys, main, *words)
    assert re.match("error: (--shards|SHARDS)\n  found   no URL", printed)
    assert not (work / "run").exists()


def test_the_doctor_takes_no_url(monkeypatch, capsys):
    assert "found   no URL" in told(monkeypatch, capsys, doctor.main, "--shards", URL)
    (finding,) = examine([Check("shard set", lambda: shard_set(URL))])
    assert finding.found == "--shards: no URL"
    (batch,) = one_batch(URL, torch.device("cpu"))
    assert batch.found == "the set does not open"


@pytest.mark.parametrize("words", [[], ["--shards", URL]], ids=["config.json", "--shards"])
def test_no_url_of_a_runs_options_is_taken(work, monkeypatch, capsys, words):
    run, *_ = make_run(work / "run")
    run.config.write_text(json.dumps({"shards": URL}))
    printed = told(monkeypatch, capsys, evaluate.main, "run", "--device", "cpu", *words)
    assert "found   no URL" in printed


@pytest.mark.slow
def test_webdataset_gets_absolute_paths(work):
    shards = ShardSet.open(work / URL)
    # As if it had been opened by the name that is refused
    relative = ShardSet(Folder(Path(URL)), shards.manifest)
    conditions = LoaderOptions(2, 32, workers=1)
    contender = webdataset_shards("webdataset", relative, conditions)
    try:
        assert take(contender.batches, 1)[0].shape == (2, 3, 32, 32)
    finally:
        contender.close()
