"""Pictures of one shape to nets that draw another: packed, trained on, measured, sampled."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from dcgan.metrics.evaluation import evaluate
from dcgan.options import EvaluateOptions
from dcgan.report import write_page
from dcgan.sample import sample
from pipeline.errors import UserError
from pipeline.images.resize import fit
from pipeline.shards.shard_set import ShardSet
from pipeline.verify import save_sheet, verify
from tests.packing_runs import run_here, without_workers
from tests.pictures import encode, smooth, write_pictures
from tests.running import new_trainer, run_to_end, tiny, train_here
from tests.sample_runs import pixels
from tools import make_shards

SIZE, WIDE, HIGH = "28x20", 28, 20
COUNT = 40
PAD = "pad:#ff8000"


@pytest.fixture(scope="module")
def pictures():
    return [smooth(40 - k % 3, 60, seed=k) for k in range(COUNT)]


@pytest.fixture(scope="module")
def sets(tmp_path_factory, pictures):
    """The same pictures whole and as pixels, packed by the command."""
    folder = tmp_path_factory.mktemp("shapes")
    files = {f"{k:03d}.png": encode(picture, "PNG") for k, picture in enumerate(pictures)}
    write_pictures(folder / "drawn", files)
    with without_workers():
        for store in (["original"], ["raw", "--size", SIZE]):
            words = ["--store", *store, "--fit", PAD.upper(), "--out", store[0]]
            status, _, err = run_here(make_shards.main, "drawn", *words, cwd=folder)
            assert status == 0, err
    return folder


def config(path, sets, **changes):
    shape = {"image_size": SIZE, "channels": 1, "augment": "diff", "mirror": True}
    return tiny(path, shards=str(sets / "original"), max_steps=2, **shape | changes)


@pytest.fixture(scope="module")
def run(tmp_path_factory, sets):
    """Two steps on grey pictures; to be read, and added to."""
    return train_here(config(tmp_path_factory.mktemp("run") / "run", sets, evaluate_every=2)).run


def of_grid(path) -> torch.Tensor:
    """The images of a grid with 8 columns, (N, H, W)."""
    grid = torch.from_numpy(np.array(Image.open(path).convert("L")))[2:, 2:]
    cells = grid.unfold(0, HIGH, HIGH + 2).unfold(1, WIDE, WIDE + 2)
    return cells.flatten(0, 1)


def test_a_set_of_another_shape_is_of_format_2_and_whole(sets, pictures, tmp_path):
    shards = ShardSet.open(sets / "raw")
    told = json.loads((sets / "raw/manifest.json").read_text())
    assert (told["format"], told["recipe"]["size"], told["recipe"]["fit"]) == (2, [WIDE, HIGH], PAD)
    assert shards.manifest.largest_image == shards.manifest.smallest_image == (WIDE, HIGH)
    assert verify(shards, decoding=True).faults == []
    save_sheet(shards, tmp_path / "sheet.png")
    first = np.asarray(Image.open(tmp_path / "sheet.png"))[2:98, 2:98]
    assert (first[0] == 0).all(), "a wide picture in a square cell"
    assert (first[48, :20] == (255, 128, 0)).all()


def test_a_run_is_of_that_shape_from_its_options_to_its_grids(run, sets, pictures):
    assert json.loads(run.folder.config.read_text())["image_size"] == SIZE
    assert of_grid(run.folder.grids()[-1][1]).shape == (64, HIGH, WIDE)
    reals = of_grid(run.folder.reals)[:8]
    # Orange as grey, by ITU-R 601: 0.299 of 255 and 0.587 of 128
    assert reals[:, :, 0].unique().tolist() == reals[:, :, -1].unique().tolist() == [151]
    known = [fit(torch.from_numpy(picture), (WIDE, HIGH), PAD) for picture in pictures]
    weights = torch.tensor([0.299, 0.587, 0.114])
    known_grey = torch.stack([(picture.float() * weights).sum(-1) for picture in known])
    apart = torch.cdist(reals.flatten(1).float(), known_grey.flatten(1), p=torch.inf)
    assert (apart.min(dim=1).values < 12).all()  # JPEG's
    (line,) = run.folder.metrics.read_text().splitlines()
    assert list(json.loads(line)["scales"]) == [SIZE]


def test_it_goes_on_with_what_it_began_with_alone(run, sets):
    path = run.folder.path
    for change, said in (
        ({"image_size": "20x28"}, "--image-size 20x28 (was 28x20)"),
        ({"fit": "stretch"}, "--fit stretch (was not given)"),
    ):
        with pytest.raises(UserError) as error:
            new_trainer(config(path, sets, **change))
        assert said in error.value.found
    trainer = run_to_end(new_trainer(config(path, sets).replace(max_steps=3)))
    assert trainer.steps_done == 3


def test_a_run_that_knew_of_no_fit_cropped(run, sets):
    options = json.loads(run.folder.config.read_text())
    del options["fit"]
    run.folder.config.write_text(json.dumps(options))
    with pytest.raises(UserError, match=r"--fit pad \(was not given\)"):
        new_trainer(config(run.folder.path, sets, fit="pad"))
    assert new_trainer(config(run.folder.path, sets)).run.config.fit is None


def test_it_is_measured_sampled_and_reported(run, tmp_path, capsys):
    path = run.folder.path
    assert evaluate(EvaluateOptions(net=path, n=16, device="cpu")) == 0
    said = capsys.readouterr().out
    assert f"read at {WIDE}×{HIGH}×1" in said
    assert f"{WIDE}×{HIGH}  " in said
    assert pixels(run.folder.neighbours).shape == (8 * (HIGH + 2) + 2, 8 * (WIDE + 2) + 10, 3)
    sample(net=path, seeds="0-9", out=tmp_path / "grid.png", each=tmp_path / "each", device="cpu")
    assert of_grid(tmp_path / "grid.png").shape == (16, HIGH, WIDE)
    assert pixels(tmp_path / "each/seed000003.png").shape == (HIGH, WIDE)
    write_page([path], tmp_path / "page.html")
    assert f"{SIZE}: " in (tmp_path / "page.html").read_text()
