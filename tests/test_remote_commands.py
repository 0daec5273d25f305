"""The commands on a set in a store: what each does with a URL, and that no password gets about."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ByteSize

from dcgan import doctor, evaluate, profile, train
from dcgan.checks import machine
from dcgan.checks.findings import Verdict, examine
from dcgan.metrics import evaluation
from dcgan.options import DoctorOptions, EvaluateOptions, TrainConfig
from pipeline.errors import UserError
from tests.fault_store import FaultStore
from tests.packing_runs import four_parts, run_here
from tests.running import assert_four_parts, tiny, train_here
from tests.sample_runs import make_run
from tools import check_shards, make_shards

SECRET = "hunter2"
WITH_SECRET = {
    "user": ["--shards", f"s3://me:{SECRET}@bucket/set"],
    "query": ["--shards", f"https://host/set?sig={SECRET}"],
    "other scheme": ["--shards", f"ftp://me:{SECRET}@host/set"],
    "endpoint": ["--shards", "s3://bucket/set", "--endpoint", f"http://me:{SECRET}@host"],
    "argument": [f"s3://me:{SECRET}@bucket/set"],
    "other option": ["--shards", "s3://bucket/set", f"--device=s3://me:{SECRET}@bucket"],
    "endpoint of a folder": ["--shards", "set", "--endpoint", f"http://me:{SECRET}@host"],
}
COMMANDS = {
    train: ["--run", "run"],
    profile: ["loader", "--json", "found.json"],
    doctor: ["--json", "-"],
    evaluate: ["kept"],
    check_shards: [],
    make_shards: ["pictures", "--out", "out"],
}


@pytest.fixture
def served(numbered_set, tmp_path):
    """A set of 40 pictures in a store that counts what is asked of it."""
    shutil.copytree(numbered_set(40, 8, "raw").folder, tmp_path / "root" / "set")
    with FaultStore(tmp_path / "root") as store:
        yield store


@pytest.mark.parametrize("words", WITH_SECRET.values(), ids=WITH_SECRET)
@pytest.mark.parametrize("module", COMMANDS, ids=lambda module: module.__name__)
def test_no_password_in_a_url_is_shown_or_kept(tmp_path, module, words):
    make_run(tmp_path / "kept")
    before = set(tmp_path.rglob("*"))
    if module is check_shards and len(words) > 1:  # its set has no flag
        words = words[1:]
    status, out, err = run_here(module.main, *COMMANDS[module], *words, cwd=tmp_path)
    assert (status, SECRET in out + err) == (1, False)
    assert four_parts(err)
    assert set(tmp_path.rglob("*")) == before


def test_nor_one_in_a_runs_options(tmp_path):
    run, *_ = make_run(tmp_path / "run")
    run.config.write_text(json.dumps({"shards": f"s3://me:{SECRET}@bucket/set"}))
    with pytest.raises(UserError) as refused:
        evaluation.evaluate(EvaluateOptions(net=run.path))
    assert SECRET not in str(refused.value)
    assert_four_parts(refused.value, "a user or a password")
    with pytest.raises(UserError) as refused:  # of what is missing, all that is there is known
        TrainConfig(endpoint=f"http://me:{SECRET}@host")  # type: ignore[call-arg]
    assert SECRET not in str(refused.value)


def test_how_a_set_is_reached_says_nothing_of_a_folder():
    options: dict[str, Any] = {"shard_cache": Path("cache"), "shard_cache_size": "1.5GB"}
    config = TrainConfig(shards="s3://bucket/set", **options)
    assert config.access.cache_size == config.to_json()["shard_cache_size"] == 1_500_000_000
    assert TrainConfig(shards="s3://bucket/set").differences(config.to_json()) == {}
    with pytest.raises(UserError) as refused:
        TrainConfig(shards="set", **options)
    assert_four_parts(refused.value, "--shard-cache and --shard-cache-size", "set", "leave")
    with pytest.raises(UserError, match="no --shards"):
        DoctorOptions(**options)
    with pytest.raises(UserError) as refused:
        TrainConfig(shards="s3://bucket/set", **options | {"shard_cache_size": "much"})
    assert_four_parts(refused.value, "--shard-cache-size", "much", "20GB")


@pytest.mark.usefixtures("undrawn")
def test_a_run_is_evaluated_on_its_own_set_though_the_store_is_gone(
    served, tmp_path, capsys, monkeypatch
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "kept"))
    monkeypatch.setattr("pipeline.remote.open.SOON", 0.1)
    url, cache = f"{served.url}/set", tmp_path / "cache"
    config = tiny(
        tmp_path / "run", shards=url, shard_cache=cache, max_steps=2, evaluate_every=2, ema_nimg=8
    )
    train_here(config)
    tars = [each.name for each in served.requests if each.name.endswith(".tar")]
    assert len(tars) == len(set(tars)) == 5
    served.go_away()
    capsys.readouterr()
    assert evaluation.evaluate(EvaluateOptions(net=tmp_path / "run", n=16)) == 0
    assert url in capsys.readouterr().out
    shutil.rmtree(cache)
    served.folder = tmp_path  # where no such set is
    served.come_back()
    with pytest.raises(UserError) as gone:
        evaluation.evaluate(EvaluateOptions(net=tmp_path / "run", n=16))
    assert_four_parts(gone.value, url)


def test_the_doctor_looks_at_store_and_cache(served, tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.remote.open.SOON", 0.1)
    url, cache = f"{served.url}/set", tmp_path / "cache"
    options = DoctorOptions(shards=url, shard_cache=cache, shard_cache_size=ByteSize(2 * 10**9))
    names = ("store", "shard cache", "shard set", "one batch")
    checks = {each.name: each for each in machine.checks(torch.device("cpu"), options)}
    looks = [checks[name] for name in names]
    found = list(examine(looks))
    assert {each.verdict for each in found} == {Verdict.OK}
    assert [each.name for each in found] == [
        "store",
        "shard cache",
        "shard set",
        "loader",
        names[3],
    ]
    assert "the manifest came after" in found[0].found
    assert found[1].found == f"{cache}: holds 0 MB, and may hold 2,000 MB"
    served.go_away()
    monkeypatch.setattr(machine, "STORE_PATIENCE", 0.1)
    gone = list(examine(looks))
    assert [each.verdict for each in gone[:3]] == [Verdict.FAIL, Verdict.OK, Verdict.WARNING]
    assert "does not answer" in gone[2].found


def test_a_set_is_checked_in_its_store(served, tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.remote.open.SOON", 0.1)
    words = (f"{served.url}/set", "--shard-cache", tmp_path / "cache")
    status, out, err = run_here(check_shards.main, *words, "--sheet", tmp_path / "sheet.png")
    assert (status, err) == (0, "")
    assert "fetched 0.6 MB" in out
    assert out.endswith("all is as it was packed\n")
    status, out, err = run_here(check_shards.main, *words)
    assert "fetched 0.0 MB" in out

    (served.folder / "set" / "shard-000002.tar").unlink()  # the cache has it
    status, _, err = run_here(check_shards.main, *words)
    assert status == 1
    assert "shard-000002.tar: not in the store" in err
    served.go_away()
    status, _, err = run_here(check_shards.main, *words)
    assert (status, "does not answer" in err) == (1, True)
