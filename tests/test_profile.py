"""`dcgan-profile` as people run it, on a set of a few pictures."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from dcgan.options import MeasuringSet
from dcgan.profile import app
from dcgan.profiling.measuring import Contender, Round, Spread
from dcgan.profiling.report import Bars, Report, publish
from dcgan.profiling.stages import find_costs
from dcgan.profiling.train import train_round
from pipeline.errors import UserError
from tests.needs import require
from tests.packing_runs import serially, waited
from tests.pictures import CELEBA, encode, pack_pictures, smooth
from tests.running import ROOT, assert_four_parts, environment, flags

CPU = torch.device("cpu")
TINY = {
    "batch_size": 4,
    "image_size": 32,
    "rounds": 2,
    "seconds": 0,
    "workers": 1,
    "device": "cpu",
}
FACES = {f"{number:02d}.jpg": encode(smooth(*CELEBA, number)) for number in range(16)}


@pytest.fixture(scope="module")
def patched():
    with pytest.MonkeyPatch.context() as patches:
        patches.setattr("pipeline.packing.pack._written", serially)
        patches.setattr("dcgan.profiling.measuring.AHEAD_FACTOR", 2)
        patches.setattr("dcgan.profiling.measuring.POLL_SECONDS", 0.01)
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # several wait for each other wherever the machine is busy
        yield patches
        torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def shards(patched, tmp_path_factory):
    return pack_pictures(tmp_path_factory.mktemp("faces"), FACES, per_shard=8)


@pytest.fixture(scope="module")
def run(patched, shards, tmp_path_factory):
    """Run a command once, in this process; what it printed and wrote."""
    done = {}

    def run_once(command, folder=shards.folder, **changes):
        key = (command, folder, *changes.items())
        if key not in done:
            place = tmp_path_factory.mktemp(command)
            rest = place / "temporary"
            rest.mkdir()
            patched.setattr(tempfile, "tempdir", str(rest))
            files = {"json": place / "found.json", "plot": place / "found.png"}
            nets = {"ngf": 4, "ndf": 4} if command == "train" else {}
            words = flags(shards=folder, **(TINY | nets | changes | files))
            result = CliRunner().invoke(app, [command, *words], catch_exceptions=False)
            assert result.exit_code == 0, result.output
            assert not list(rest.glob("dcgan-profile-*"))  # torch has files of its own there
            with Image.open(files["plot"]) as picture:
                picture.load()
                assert picture.format == "PNG"
                assert picture.width > 500
            found = json.loads(files["json"].read_text())
            assert_told(command, result.output, found)
            done[key] = SimpleNamespace(said=result.output, found=found)
        return done[key]

    return run_once


def assert_told(command, said, found):
    """What every command tells of what was measured on what."""
    for words in ("cpu: ", "torch ", "16, of ", "each, in turn", "batches  of 4, 32×32"):
        assert words in said
    assert (found["command"], found["options"]["batch_size"]) == (command, 4)
    assert found["set"]["images"] == 16
    for line in found["conclusions"]:
        assert line in said


def assert_rounds(rounds, names):
    assert list(rounds) == names
    for turns in rounds.values():
        assert len(turns) == 2
        for turn in turns:
            assert set(turn) == {"batches", "img_per_s", "cpu_us_per_image"}
            assert turn["batches"] >= 8
            assert turn["img_per_s"] > 0


def test_the_loader_by_itself(run):
    found = run("loader").found
    assert found["environment"]["packages"]["torch"]
    assert_rounds(found["rounds"], ["the set"])
    assert set(found["seconds"]) == {"open_the_set", "make_the_loader", "first_batch"}
    assert all(0 < seconds < 60 for seconds in found["seconds"].values())
    assert found["resident_bytes"]["after"] > 50e6
    assert found["copy_ms"] == []  # CUDA only


def test_stages_and_what_would_save_them(run):
    require("dali")
    found = run("stages", workers=2).found
    stages = ["read", "decode", "resize", "normalise"]
    remedies = ["the set, float, --workers 1", "--store jpeg, float", "--store raw, float"]
    remedies += ["--store raw, uint8", "the cache, float", "the cache, uint8"]
    assert_rounds(found["rounds"], stages + remedies)
    assert list(found["stages"]) == stages
    assert sum(cost["share"] for cost in found["stages"].values()) == pytest.approx(1)
    assert list(found["gains"]) == remedies
    said = "\n".join(found["conclusions"])
    assert " bounds the loader: " in said
    assert "nothing to copy" in said


def test_compare(run):
    require("dali")
    ran = run("compare")
    others = ["tutorial", "webdataset", "plain DALI"]
    ours = ["the set", "--store raw", "the cache"]
    names = [*others, *(f"{name}, {form}" for name in ours for form in ("float", "uint8"))]
    assert_rounds(ran.found["rounds"], names)
    assert ran.found["left_out"] == []
    for ratios in (ran.found["wall_ratios"], ran.found["cpu_ratios"]):
        assert list(ratios) == names
        assert {tuple(row) for row in ratios.values()} == {(others[0], others[2])}
        assert ratios[others[2]][others[2]] == {"median": 1, "low": 1, "high": 1}
    mine, other = (ran.found["rounds"][name] for name in ("the cache, float", "plain DALI"))
    cpu = [b["cpu_us_per_image"] / a["cpu_us_per_image"] for a, b in zip(mine, other, strict=True)]
    spread = ran.found["cpu_ratios"]["the cache, float"]["plain DALI"]
    assert spread["median"] == pytest.approx(sum(cpu) / 2)  # of two rounds


def test_compare_goes_on_without_the_loaders_that_need_shared_memory(run, patched):
    require("dali")
    with patched.context() as patch:
        patch.setattr("dcgan.profiling.compare.shared_memory_lack", lambda wanted: "none, alas")
        ran = run("compare", rounds=1)
    assert next(iter(ran.found["rounds"])) == "plain DALI"
    (told,) = ran.found["left_out"]
    assert "webdataset" in told
    assert "none, alas" in told
    assert told in ran.said


def test_a_raw_set_is_compared_as_far_as_it_goes(run, patched, shards, tmp_path_factory):
    from pipeline.shards.manifest import Recipe

    recipe = Recipe(store="raw", crop="centre", size=32, filter="bilinear")
    raw = pack_pictures(tmp_path_factory.mktemp("raw"), FACES, recipe=recipe, per_shard=8)
    ran = run("compare", raw.folder)
    names = ["the set, float", "the set, uint8", "the cache, float", "the cache, uint8"]
    assert_rounds(ran.found["rounds"], names)
    assert "Left out, because the set holds pixels" in ran.said
    stages = run("stages", raw.folder).found
    assert list(stages["stages"]) == ["read", "decode", "normalise"]
    assert list(stages["gains"]) == ["the cache, float", "the cache, uint8"]


def test_training(run):
    found = run("train").found
    names = ["free data", "the set, uint8", "the cache, uint8"]
    assert list(found["together"]) == names
    for paces in found["together"].values():
        assert len(paces) == 2
        for pace in paces:
            assert 0 <= pace["data_wait_pct"] <= 100
            assert pace["step_ms"] > 0 < pace["img_per_s"]
    assert_rounds(found["loaders_alone"], names[1:])
    assert found["steps_per_round"] >= 4
    assert all("is the bottleneck" in line for line in found["conclusions"])


def test_a_set_in_a_store(run, shards):
    found = run("store", shards.folder.as_uri(), seconds=0.01).found
    caches = [f"a store, {state} shard cache" for state in ("empty", "full")]
    assert list(found["rounds"]) == ["a folder", *caches]
    fetched = {}
    for name, turns in found["rounds"].items():
        assert len(turns) == 2
        for turn in turns:
            assert turn["first"]["batches"] == 4
            assert turn["later"]["batches"] >= 4
            assert min(turn["first"]["cpu_us_per_image"], turn["later"]["img_per_s"]) > 0
            assert 0 < turn["first_batch_s"] < 60
        fetched[name] = {(turn["fetched_bytes"], turn["fetched_later_bytes"]) for turn in turns}
    size = sum(path.stat().st_size for path in (*shards.tars, *shards.indexes))
    assert list(fetched.values()) == [{(0, 0)}, {(size, 0)}, {(0, 0)}]


# What it concludes, from made-up loaders and rounds whose truth is known


def test_a_slow_loader_is_seen_in_the_data_wait():
    def batches(seconds):
        while True:
            time.sleep(seconds)
            yield torch.zeros(1)

    slow, quick = (
        train_round(
            Contender("x", batches(seconds), 4, 0, lambda: None),
            lambda real: time.sleep(0.005),
            10,
            CPU,
        )
        for seconds in (0.02, 0)
    )
    assert 50 < slow.data_wait_pct < 100
    assert slow.step_ms >= 25
    assert quick.data_wait_pct < 50


def test_what_a_loader_had_ready_does_not_count_as_its_pace():
    taken = []

    def batches():
        while True:
            taken.append(1)
            yield 0

    stepped: list[object] = []
    train_round(Contender("x", batches(), 4, 6, lambda: None), stepped.append, 3, CPU)
    assert (len(taken), len(stepped)) == (6 + 1 + 3, 1 + 3)


def test_costs_are_differences_within_a_round():
    def rounds(*cpu):
        return [Round(8, 1e6 / (value / 2), value) for value in cpu]

    taken = {"read": rounds(10, 20), "decode": rounds(110, 120), "resize": rounds(108, 119)}
    costs = find_costs(taken, by_wall=False)
    assert costs["decode"].cpu_us == Spread(100, 100, 100)
    assert costs["decode"].wall_us.median == pytest.approx(50)
    assert costs["decode"].share == pytest.approx(100 / 115)
    assert costs["resize"].share == 0  # noise made it cheaper than nothing


# How it begins and ends


def options(**changes):
    return MeasuringSet(**({"shards": str(ROOT)} | changes))


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("seconds", float("nan"), "--seconds"),
        ("json_file", ROOT / "nowhere" / "found.json", "--json"),
        ("plot_file", ROOT / "found.svg", "end its name in .png"),
        ("shards", "synthetic", "dcgan-profile step"),
    ],
)
def test_options_that_cannot_be_are_refused(field, value, said):
    with pytest.raises(UserError) as refused:
        options(**{field: value})
    assert_four_parts(refused.value, str(value), said)


def test_a_file_that_cannot_be_written_is_told(tmp_path):
    report = Report("loader", CPU, {}, [], [], [Bars("", "", {})], {})
    with pytest.raises(UserError) as refused:
        publish(report, options(json_file=tmp_path / ("x" * 255)))
    assert_four_parts(refused.value, "xxx")


@pytest.mark.parametrize(
    ("command", "change", "said"),
    [
        ("loader", {"shards": "nowhere"}, "no such folder"),
        ("store", {}, "no URL"),
        ("compare", {"batch_size": 17}, "--batch-size 17"),
        ("train", {"device": "abacus"}, "--device abacus"),
    ],
)
def test_what_cannot_be_measured_is_told_before_anything_is_done(
    patched, shards, tmp_path, command, change, said
):
    patched.setattr(tempfile, "tempdir", str(tmp_path))
    words = flags(**({"shards": shards.folder} | TINY | change))
    result = CliRunner().invoke(app, [command, *words])
    assert isinstance(result.exception, UserError)
    assert_four_parts(result.exception, said)
    assert not list(tmp_path.glob("dcgan-profile-*"))


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
@pytest.mark.parametrize(
    "number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)]
)
def test_stopped_in_the_middle_it_leaves_nothing(shards, tmp_path, number):
    words = flags(shards=shards.folder, **(TINY | {"seconds": 30}))
    process = subprocess.Popen(
        [sys.executable, "-m", "dcgan.profile", "compare", *words],
        env=environment() | {"TMPDIR": str(tmp_path)},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    with process:
        try:
            # Files are written and packed, and the rounds or what leads to them go on
            assert waited(lambda: list(tmp_path.glob("dcgan-profile-*/raw/manifest.json")), 60)
            # To all of them, as a terminal does
            os.killpg(process.pid, number)
            _, said = process.communicate(timeout=60)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 130
    assert "stopped; nothing was left behind" in said
    assert "Traceback" not in said
    assert not list(tmp_path.glob("dcgan-profile-*"))
