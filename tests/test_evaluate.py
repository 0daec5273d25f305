"""`dcgan-evaluate` and the metrics behind it: numbers, their floor, their origin, and the cache."""

import json
import shutil
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import dcgan.metrics.reals
from dcgan.evaluate import main
from dcgan.metrics import neighbours, swd
from dcgan.metrics.by_label import OfLabel, beside_others
from dcgan.metrics.evaluation import evaluate as measure
from dcgan.metrics.reals import Provenance, Reals, fake_blocks
from dcgan.metrics.swd import SwdMetric
from dcgan.nets.models import Generator, init_weights
from dcgan.nets.weights import load_generator, save_weights
from dcgan.options import EvaluateOptions
from dcgan.rundir.folder import RunFolder
from dcgan.sampling.generate import generate, latents
from dcgan.sampling.labels import Label
from pipeline.errors import UserError
from pipeline.files import cache_folder
from pipeline.images.labels import LabelSpace
from pipeline.loading.options import LoaderOptions
from pipeline.shards.shard_set import ShardSet
from tests.markdown import assert_as_documented
from tests.pictures import (
    encode,
    numbered,
    numbered_pictures,
    numbers,
    pack_pictures,
    smooth,
)
from tests.running import assert_four_parts, run_command, tiny, train_here

SMALL = LoaderOptions(dcgan.metrics.reals.BATCH, 32, workers=1)
"""How real images are read."""

FIELDS = (
    *("nimg", "net", "metric", "value", "floor", "n"),
    *("recipe", "extractor", "digest", "comparable", "shards"),
)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    torch.set_num_threads(1)  # several wait for each other wherever the machine is busy
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return cache_folder()


@pytest.fixture(scope="module")
def faces(tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    """Seventy smooth pictures, which are 35 a side: no whole number of batches."""
    pictures = {f"{seed:02d}.jpg": encode(smooth(40, 40, seed)) for seed in range(70)}
    return pack_pictures(tmp_path_factory.mktemp("faces"), pictures, per_shard=40)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, faces: ShardSet) -> RunFolder:
    """Four steps of 8 images; of the average there is a net too. To be read only."""
    path = tmp_path_factory.mktemp("runs") / "run"
    train_here(tiny(path, shards=str(faces.folder), max_steps=4, log_every=2, ema_nimg=8))
    return RunFolder.open(path)


def a_net(seed: int = 0) -> Generator:
    net = Generator(32, nz=8, ngf=4)
    init_weights(net, torch.Generator().manual_seed(seed))
    return net


def metric(shards: str | Path, n: int = 2048) -> SwdMetric:
    return SwdMetric(Reals(str(shards), SMALL, 2 * n), n)


# The distance


def test_a_number_and_all_that_comes_with_it(faces):
    found = metric(faces.folder).measure(a_net())
    record = found.record(1234, "netG_ema.pt")
    assert tuple(record) == (*FIELDS, "scales", "floor_scales")
    assert json.loads(json.dumps(record, allow_nan=False)) == record
    told = {name: record[name] for name in ("nimg", "net", "metric", "n", "digest", "comparable")}
    assert told == {
        "nimg": 1234,
        "net": "netG_ema.pt",
        "metric": "swd",
        "n": 35,
        "digest": None,
        "comparable": True,
    }
    assert record["shards"] == faces.fingerprint
    assert "--store original --crop none" in record["recipe"]
    assert "32×32×3" in record["recipe"]
    assert record["extractor"] == swd.RECIPE
    assert list(record["scales"]) == list(record["floor_scales"]) == ["32", "16"]
    assert record["value"] == pytest.approx(sum(record["scales"].values()) / 2)
    assert record["floor"] == pytest.approx(sum(record["floor_scales"].values()) / 2)
    assert 0 < record["floor"] < record["value"]


def test_it_compares_generated_images_with_real_ones_and_these_with_others(faces):
    reals = Reals(str(faces.folder), SMALL, 70)
    one, other = reals.halves(35)
    fakes = generate(a_net(), latents(range(1_000_000, 1_000_035), 8))
    found = metric(faces.folder).measure(a_net())
    assert found.scales == swd.distances(one, fakes)
    assert found.floor_scales == swd.distances(one, other)


def test_halves_are_disjoint_and_always_the_same(numbered_set):
    shards = numbered_set(70, 40, "raw")
    reals = Reals(str(shards.folder), replace(SMALL, image_size=64), 100)
    assert (reals.total, reals.at_most(50), reals.at_most(20)) == (70, 35, 20)
    one, other = (numbers(half) for half in reals.halves(20))
    assert len(set(one) | set(other)) == 40
    again = Reals(str(shards.folder), replace(SMALL, image_size=64), 100)
    assert numbers(torch.cat([*again.blocks(10, 30)])) == (one + other)[10:30]
    assert len(set(numbers(torch.cat([*again.blocks()])))) == 70


def test_the_net_and_the_random_state_stay_as_they_are(faces):
    net, distance = a_net().train(), metric(faces.folder)
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    state = torch.get_rng_state()
    distance.measure(net)
    assert torch.get_rng_state().equal(state)
    assert net.training
    assert all(tensor.equal(before[name]) for name, tensor in net.state_dict().items())


def test_another_net_has_another_number(faces):
    distance = metric(faces.folder)
    assert distance.measure(a_net(0)) == distance.measure(a_net(0)) != distance.measure(a_net(1))


def test_noise_can_stand_for_a_set():
    found = metric("synthetic", 40).measure(a_net())
    assert (found.n, found.source.shards) == (40, "synthetic")
    assert found.floor is not None
    assert 0 < found.floor < found.value


def test_a_set_of_one_image_is_refused(tmp_path):
    shards = pack_pictures(tmp_path, {"0.jpg": encode(smooth(40, 40))})
    with pytest.raises(UserError) as caught:
        metric(shards.folder)
    assert_four_parts(caught.value, "one image")


# The cache


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by one whenever real images are read."""
    calls: list[int] = []
    blocks = Reals.blocks

    def counting(self: Reals, *span: int) -> Iterator[torch.Tensor]:
        calls.append(1)
        return blocks(self, *span)

    monkeypatch.setattr(Reals, "blocks", counting)
    return calls


def test_what_was_kept_gives_the_same_to_the_bit(faces, read, cache):
    fresh = metric(faces.folder).measure(a_net())
    assert len(read) == 1
    assert metric(faces.folder).measure(a_net()) == fresh
    assert len(read) == 1
    assert len([*cache.iterdir()]) == 1


def test_another_n_or_another_set_is_not_taken_for_this_one(faces, tmp_path, read, cache):
    metric(faces.folder)
    metric(faces.folder, 20)
    pictures = {f"{seed}.jpg": encode(smooth(40, 40, seed)) for seed in range(66)}
    metric(pack_pictures(tmp_path, pictures).folder)
    assert len(read) == len([*cache.iterdir()]) == 3


@pytest.mark.parametrize("damage", ["cut", "flipped", "of another key"])
def test_a_damaged_file_is_made_anew(faces, read, cache, damage):
    fresh = metric(faces.folder).measure(a_net())
    (path,) = cache.iterdir()
    whole = path.read_bytes()
    if damage == "of another key":
        metric(faces.folder, 20)
        read.pop()
        (other,) = set(cache.iterdir()) - {path}
        path.write_bytes(other.read_bytes())
    else:
        middle = len(whole) // 2
        flipped = whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :]
        path.write_bytes({"cut": whole[:-50], "flipped": flipped}[damage])
    assert metric(faces.folder).measure(a_net()) == fresh
    assert len(read) == 2
    with np.load(path, allow_pickle=False) as kept:
        assert kept["images"].shape == (35, 32, 32, 3)


def test_a_cache_that_cannot_be_written_is_done_without(faces, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert metric(faces.folder).n == 35


def test_where_the_cache_is(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    for base in ("", "relative"):
        monkeypatch.setenv("XDG_CACHE_HOME", base)
        assert cache_folder() == tmp_path / ".cache" / "dcgan-shards"


# Neighbours


def test_fields_cover_images_of_any_shape():
    images = torch.zeros(2, 12, 40, 1, dtype=torch.uint8)
    images[1, -1, -1] = 60
    fields = neighbours.summary(images).view(2, 12, 16)
    assert fields[0].any() == fields[1, :, :-1].any() == fields[1, :-1].any()
    assert fields[1, -1, -1] == 20  # of three columns, those of 2.5 that are touched


def test_the_nearest_are_found_wherever_they_lie(faces, monkeypatch):
    monkeypatch.setattr(dcgan.metrics.reals, "BLOCK", 32)  # several blocks
    reals = Reals(str(faces.folder), SMALL, 64)
    found = neighbours.find(a_net(), reals)
    every = torch.cat([*reals.blocks()])
    samples = torch.cat([*fake_blocks(a_net(), 70, first=0)])
    assert found.samples.equal(samples[:8])
    among = neighbours.summary(every).double()
    for sample, nearest in zip(
        neighbours.summary(samples[:8]).double(), found.nearest, strict=True
    ):
        order = (among - sample).norm(dim=1).argsort(stable=True)
        assert nearest.equal(every[order[:7]])
    to_real = torch.cdist(neighbours.summary(samples).double(), among).min(dim=1).values
    between = torch.cdist(among, among).fill_diagonal_(torch.inf).min(dim=1).values
    assert found.measured is not None
    expected = float(to_real.median() / between.median())
    assert found.measured.value == pytest.approx(expected, rel=1e-5)
    assert (found.measured.n, found.measured.floor) == (70, 1.0)


def test_copies_are_seen_at_once(faces, monkeypatch):
    reals = Reals(str(faces.folder), SMALL, 64)
    monkeypatch.setattr(neighbours, "fake_blocks", lambda net, count, first: reals.blocks(0, count))
    found = neighbours.find(a_net(), reals)
    assert found.measured is not None
    assert found.measured.value == 0
    assert found.nearest[:, 0].equal(found.samples)


def test_real_images_that_repeat_leave_no_measure(tmp_path):
    shards = pack_pictures(tmp_path, {f"{k}.jpg": numbered(k % 2) for k in range(16)})
    assert neighbours.find(a_net(), Reals(str(shards.folder), SMALL, 16)).measured is None


def test_neighbours_are_found_among_four_images(tmp_path):
    shards = pack_pictures(tmp_path / "four", numbered_pictures(4))
    reals = Reals(str(shards.folder), replace(SMALL, batch_size=2), 16)
    assert neighbours.find(a_net(), reals).nearest.shape[0] == 4


# Labels


def test_a_sample_is_nearest_to_the_label_that_it_looks_like():
    """Dark, grey and bright noise; the samples of "bright" are as dark as the first."""
    space, random = LabelSpace("classes", ("dark", "grey", "bright")), torch.Generator()

    def noise(level: int) -> torch.Tensor:
        return torch.randint(level, level + 60, (20, 32, 32, 3), generator=random).byte()

    source = Provenance("", "", None, True, "")
    labels = [
        OfLabel(Label(space, {number: 1}), noise(drawn), noise(level), source)
        for number, (level, drawn) in enumerate([(0, 10), (60, 60), (180, 0)])
    ]
    found = [{each.metric: each.record(1, "") for each in row} for row in beside_others(labels)]
    assert [row["other_label"]["other"] for row in found] == ["grey", "dark", "dark"]
    obeyed = [row["own_label"]["value"] < row["other_label"]["value"] for row in found]
    assert obeyed == [True, True, False]
    assert found[2]["other_label"]["value"] == pytest.approx(0, abs=1)
    assert found[2]["other_label"]["floor"] > 1000  # as far as real images are


# The command


def test_a_run_is_measured_and_its_folder_says_so(run, faces, tmp_path):
    told = run_command(sys.executable, "-m", "dcgan.evaluate", run.path, cwd=tmp_path)
    assert told.returncode == 0, told.stderr
    lines = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    assert [line["metric"] for line in lines] == ["swd", "neighbours"]
    for line in lines:
        assert_as_documented(line, run.metrics.name)
    assert {(line["nimg"], line["net"]) for line in lines} == {(32, "netG_ema.pt")}
    assert tuple(lines[1]) == FIELDS
    here = metric(faces.folder).measure(load_generator(run.generator_average))
    assert lines[0] == here.record(32, "netG_ema.pt")  # the same in another process
    for words in ("n = 35", "32×32", "16×16", "real against real", f"{here.value:.2f}", "after 32"):
        assert words in told.stdout
    assert "Traceback" not in told.stderr
    height, width = 8 * 34 + 2, (34 + 2) + 6 + (7 * 34 + 2)
    with Image.open(run.path / "neighbours.png") as picture:
        assert picture.size == (width, height)
    measure(EvaluateOptions(net=run.path, raw_net=True, shards="synthetic", n=16))
    raw = json.loads(run.metrics.read_text().splitlines()[2])
    assert (raw["net"], raw["shards"], raw["n"]) == ("netG.pt", "synthetic", 16)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("nowhere",), "no such folder"),
        (("RUN", "--n", 3), "16 or more"),
        (("RUN", "--shards", "nowhere"), "no such folder"),
        (("RUN", "--shards", ""), "nothing"),
        (("RUN", "--weights", "nowhere.pth"), "no such file"),
    ],
)
def test_errors_are_told_plainly(run, monkeypatch, capsys, words, said):
    arguments = (str(run.path if word == "RUN" else word) for word in words)
    monkeypatch.setattr(sys, "argv", ["dcgan-evaluate", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    told = capsys.readouterr().err
    assert ended.value.code == 1
    assert all(part in told for part in (said, "error: ", "found ", "wanted ", "do "))


def test_a_bare_net_is_measured_and_nothing_is_written(faces, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    save_weights(a_net(), tmp_path / "netG.pth")
    options = EvaluateOptions(
        net=tmp_path / "netG.pth", shards=str(faces.folder), n=16, device="cpu"
    )
    assert measure(options) == 0
    told = capsys.readouterr().out
    found = metric(faces.folder, 16).measure(a_net())
    assert f"{found.value:.2f}" in told
    assert "distance to nearest real" in told
    assert "not written" in told
    assert [path.name for path in tmp_path.iterdir() if path.name != "cache"] == ["netG.pth"]
    for change, said in (({"shards": None}, "--shards FOLDER"), ({"raw_net": True}, "--raw-net")):
        with pytest.raises(UserError) as caught:
            measure(options.replace(**change))
        assert_four_parts(caught.value, said)


def test_a_run_that_cannot_be_written_to_is_refused_at_once(run, tmp_path, capsys):
    copy = RunFolder(Path(shutil.copytree(run.path, tmp_path / "run")))
    copy.metrics.unlink(missing_ok=True)
    copy.metrics.mkdir()
    with pytest.raises(UserError) as caught:
        measure(EvaluateOptions(net=copy.path, n=16))
    assert_four_parts(caught.value, "metrics.jsonl")
    assert not capsys.readouterr().out


def test_a_set_that_has_moved_is_asked_for(tmp_path):
    moved = tmp_path / "run"
    moved.mkdir()
    (moved / "config.json").write_text('{"shards": "gone"}')
    with pytest.raises(UserError) as caught:
        measure(EvaluateOptions(net=moved))
    assert_four_parts(caught.value, "shards gone", "--shards FOLDER")
