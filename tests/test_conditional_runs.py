"""Conditional runs: begun, resumed, refused, and sampled by label."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from dcgan.metrics import evaluation, sharing
from dcgan.metrics.reals import Reals
from dcgan.nets.models import Generator
from dcgan.nets.weights import load_generator, save_weights
from dcgan.options import EvaluateOptions
from dcgan.reporting.page import run_page
from dcgan.reporting.read import read_run
from dcgan.sample import sample
from dcgan.sampling.generate import generate, latents
from dcgan.sampling.labels import Label, parse_label, parse_walk
from pipeline.errors import UserError
from pipeline.images.labels import LabelSpace
from pipeline.loading.options import LoaderOptions
from tests.conditional_runs import ATTRIBUTES, NAMES, SIDE, labelled_set
from tests.markdown import assert_as_documented
from tests.pictures import names_in
from tests.reference.conditional import embedding_of
from tests.running import assert_four_parts, new_trainer, stopped_after, tiny, train_here
from tests.test_animation import frames_of

pytestmark = pytest.mark.usefixtures("undrawn")

DARK, BRIGHT = NAMES
FULL = {"conditional": True, "mirror": True, "augment": "diff", "ema_nimg": 64, "max_steps": 9}
"""Into the second epoch."""


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    """Labelled sets, by kind."""
    folder = tmp_path_factory.mktemp("labelled")
    return {
        kind: str(labelled_set(folder / kind, attributes=kind == "attributes").folder)
        for kind in ("classes", "attributes")
    }


@pytest.fixture(scope="module")
def runs(sets, tmp_path_factory):
    """Trained runs, by kind."""
    folder = tmp_path_factory.mktemp("runs")
    options: dict[str, dict[str, Any]] = {
        "classes": {"conditional": True, "max_steps": 2},
        "attributes": FULL,
    }
    return {
        kind: train_here(tiny(folder / kind, shards=shards, **options[kind])).run.folder
        for kind, shards in sets.items()
    }


def last_state(run):
    return torch.load(max(run.checkpoints.glob("*.pt")), weights_only=True)["step"]


def test_a_run_goes_on_to_the_bit(sets, runs, tmp_path):
    config = tiny(tmp_path / "run", shards=sets["attributes"], **FULL)
    stopped_after(new_trainer(config), 4)
    again = train_here(config).run.folder
    found, wanted = last_state(again), last_state(runs["attributes"])
    for net in ("generator", "discriminator", "average"):
        assert "embedding.attributes" in found[net]
        for name, tensor in wanted[net].items():
            assert torch.equal(found[net][name], tensor), name
    assert torch.equal(found["random"], wanted["random"])


def test_a_run_keeps_what_its_labels_are_called(runs):
    kept = {kind: json.loads(run.config.read_text())["labels"] for kind, run in runs.items()}
    assert kept["classes"] == {"kind": "classes", "names": [*NAMES], "rows": []}
    assert kept["attributes"]["names"] == [*ATTRIBUTES]
    rows = kept["attributes"]["rows"]
    assert len(rows) == 64
    assert rows.count("11") == 11  # every sixth image


def test_the_batches_labels_are_those_of_its_pixels(sets, tmp_path):
    for kind, shards in sets.items():
        trainer = new_trainer(tiny(tmp_path / kind, shards=shards, conditional=True))
        for _ in range(9):  # into the second epoch, from the cache
            trainer.batches.fill(*trainer.step.inputs)
            pixels, labels = trainer.step.inputs
            bright = pixels.float().mean((1, 2, 3)) > 128
            assert torch.equal(labels.view(8, -1)[:, 0] == 1, bright)
        trainer.batches.close()


# Refused


def refused(config, *said):
    with pytest.raises(UserError) as refusal:
        new_trainer(config)
    assert_four_parts(refusal.value, *said)


def test_sets_without_labels_and_with_others(sets, runs, tmp_path):
    bare = str(labelled_set(tmp_path / "bare", labelled=False, images=8).folder)
    refused(tiny(tmp_path / "new", shards=bare, conditional=True), bare, "--labels")
    swapped = str(labelled_set(tmp_path / "swapped", names=(BRIGHT, DARK), images=8).folder)
    run = runs["classes"].path
    refused(tiny(run, conditional=True, shards=swapped, allow_change=True), "number 0 is", DARK)
    plain = {"shards": sets["classes"], "allow_change": True}
    refused(tiny(run, **plain), "--conditional off (was on)")
    train_here(tiny(tmp_path / "plain", shards=bare, max_steps=1))
    old = tmp_path / "plain/config.json"  # of a version that knew of no labels
    options = json.loads(old.read_text())
    old.write_text(
        json.dumps({k: v for k, v in options.items() if k not in ("conditional", "labels")})
    )
    refused(tiny(tmp_path / "plain", **plain | {"conditional": True}), "--conditional on (was off)")


def test_nets_of_the_other_kind_do_not_begin_a_run(sets, runs, tmp_path):
    net, shards = str(runs["classes"].generator), sets["classes"]
    refused(tiny(tmp_path / "a", netG=net), f"--netG {net}", "on 2 classes: run with --conditional")
    save_weights(Generator(32, 8, 4), tmp_path / "plain.pt")
    plain = str(tmp_path / "plain.pt")
    refused(
        tiny(tmp_path / "b", shards=shards, conditional=True, netG=plain), "without --conditional"
    )
    other = tiny(tmp_path / "c", shards=sets["attributes"], conditional=True, netG=net)
    refused(other, "on 2 classes: name a set")
    begun = tiny(tmp_path / "d", shards=shards, conditional=True, netG=net)
    state = torch.load(net, weights_only=True)
    trainer = new_trainer(begun)
    assert torch.equal(embedding_of(trainer.run.generator).weight, state["embedding.classes"])
    trainer.batches.close()


# Labels as they are written


CLASSES = LabelSpace("classes", ("cats", "cats:dogs", "dogs", "a,b=1", "--x", "é 猫"))
VALUES = LabelSpace("attributes", ("Male", "a,b", "x=y"))


def test_labels_are_read_whatever_their_names():
    for name in CLASSES.names:
        assert parse_label(name, CLASSES).name == name
    assert [label.name for label in parse_walk("dogs:cats:dogs:--x", CLASSES)] == [
        "dogs",
        "cats:dogs",
        "--x",
    ]
    found = parse_label("a,b=1,Male=-1,x=y=0", VALUES)
    assert (dict(found.values), found.name) == ({1: 1, 0: 0, 2: 0}, "a,b=1,Male=-1,x=y=-1")
    for text, space in (
        *((each, CLASSES) for each in ("", "cat", "cats,dogs", "dogs:", "Cats")),
        *((each, VALUES) for each in ("", "Male", "Male=2", "Male=1,Male=-1", "y=1", "Male=1,")),
    ):
        with pytest.raises(UserError) as error:
            parse_label(text, space)
        assert_four_parts(error.value, f"--label {text}", space.names[0], "config.json")
    with pytest.raises(UserError, match="--label='dogs'"):
        parse_label("dgos", CLASSES)
    with pytest.raises(UserError) as error:
        parse_label("dogs:cats", CLASSES)
    assert_four_parts(error.value, "2 labels", "--interpolate")


def test_attributes_that_are_not_named_occur_together():
    examples = torch.tensor([[1.0, 0.0, 1.0], [0.0, 1.0, 1.0], [1.0, 1.0, 0.0]])
    male = Label(VALUES, {0: 1})
    assert torch.equal(male.labels(examples), examples[[0, 2]])
    none_has = Label(VALUES, {1: 0, 2: 0})
    assert torch.equal(none_has.labels(examples), examples * torch.tensor([1, 0, 0]))
    assert torch.equal(male.labels(None), torch.tensor([[1.0, 0.0, 0.0]]))
    assert male.fits(examples).tolist() == [True, False, True]


# Samples


def picture(path):
    with Image.open(path) as opened:
        return np.asarray(opened), opened.info


def test_a_grid_has_a_row_for_each_label(runs, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    run = runs["classes"]
    sample(net=run.path, out=Path("g.png"), each=Path("each"), device="cpu")
    assert capsys.readouterr().out.startswith("a row for each of 2 labels\n16 images in each/\n")
    net = load_generator(run.generator)
    expected = generate(net, latents(range(8), 8), torch.ones(8, dtype=torch.int64)).numpy()
    pixels, info = picture("each/label001-seed000005.png")
    assert np.array_equal(pixels, expected[5])
    assert info["Label"] == BRIGHT
    grid, info = picture("g.png")
    assert info["Labels"] == f"{DARK}; {BRIGHT}"
    left = grid.shape[1] - 8 * (SIDE + 2)
    assert np.array_equal(grid[-SIDE - 2 : -2, left : left + SIDE], expected[0])
    assert (grid[:, : left - 8] == 255).mean() > 0.5  # names on white
    assert (grid[:, : left - 8] < 99).any()
    trained, _ = picture(max(run.samples.glob("*.png")))
    assert np.array_equal(trained, grid), "training draws the same"


@pytest.mark.parametrize("kind", ["classes", "attributes"])
def test_a_label_is_drawn_by_name_or_by_number(kind, runs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    label, number = {
        "classes": (BRIGHT, "1"),
        "attributes": ("Bright=1,Red=-1", "0=1,1=-1"),
    }[kind]
    value = torch.tensor([1] if kind == "classes" else [[1.0, 0.0]])
    sample(net=runs[kind].path, label=label, seeds="3-5", each=Path("named"), device="cpu")
    net = load_generator(runs[kind].generator_to_sample())
    expected = generate(net, latents([3, 4, 5], 8), value.repeat(3, *[1] * (value.dim() - 1)))
    (named,) = Path("named").glob("*-seed000004.png")
    assert np.array_equal(picture(named)[0], expected[1].numpy())
    save_weights(net, Path("bare.pt"))
    sample(net=Path("bare.pt"), label=number, seeds="3-5", each=Path("numbered"), device="cpu")
    (numbered,) = Path("numbered").glob("*-seed000004.png")
    assert np.array_equal(picture(numbered)[0], expected[1].numpy())
    sample(net=Path("bare.pt"), label="0" if kind == "classes" else "0=-1", seeds="4",
           each=Path("numbered"), device="cpu")  # fmt: skip
    assert len(names_in(Path("numbered"))) == 4, "another label's picture took one's place"


def test_a_walk_goes_from_label_to_label(runs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    net, out = load_generator(runs["classes"].generator), Path("w.webp")
    with torch.no_grad():
        embedding_of(net).weight.mul_(50)
    save_weights(net, Path("net.pt"))
    sample(net=Path("net.pt"), label="0:1", interpolate="5:5", frames=5, out=out, device="cpu")
    shares = torch.linspace(0, 1, 5)
    rows = torch.stack([1 - shares, shares], dim=1)
    expected = generate(net, latents([5] * 5, 8), rows).numpy()
    assert len(set(map(bytes, expected))) == 5
    frames, _ = frames_of(out)
    assert np.array_equal(frames[:, ::8, ::8], expected)
    both = f"{DARK}:{BRIGHT}"
    for label, said in ((None, "0 labels for 3 seeds"), (both, "2 labels for 3 seeds")):
        with pytest.raises(UserError) as error:
            sample(
                net=runs["classes"].path, label=label, interpolate="1:2:3", out=out, device="cpu"
            )
        assert_four_parts(error.value, said)


def test_labels_that_a_net_has_not(runs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_weights(Generator(32, 8, 4), Path("plain.pt"))
    for net, label, said in (
        (runs["classes"].path, "cats", f"of its 2 classes: {DARK}, {BRIGHT}"),
        (runs["attributes"].path, "Bright=3", "of its 2 attributes: Bright, Red"),
        (Path("plain.pt"), "cats", "trained without labels"),
    ):
        with pytest.raises(UserError) as error:
            sample(net=net, label=label, each=Path("each"), device="cpu")
        assert_four_parts(error.value, f"--label {label}", said)
        assert not Path("each").exists()


# Measurements


def images_of(shards, label):
    options = LoaderOptions(16, SIDE, 3, labels=True)
    return Reals(shards, options, 64, None if label is None else parse_label(*label))


@pytest.mark.parametrize("kind", ["classes", "attributes"])
def test_real_images_of_a_label(kind, sets):
    everything = images_of(sets[kind], None)
    space = everything.label_space
    label = BRIGHT if kind == "classes" else "Bright=1,Red=-1"
    some = images_of(sets[kind], (label, space))
    (pixels,) = everything.blocks()
    levels = pixels.float().mean((1, 2))
    wanted = levels.mean(1) > 128
    if kind == "attributes":
        wanted &= levels[:, 0] - levels[:, 2] < 10
    (found,) = some.blocks()
    assert some.total == len(found) == wanted.sum() > 15
    assert torch.equal(found, pixels[wanted])
    assert torch.equal(torch.cat([*some.blocks(5, 9)]), found[5:9])
    assert some.recipe == f"{everything.recipe}, only {label}"


def test_each_label_is_measured_by_itself(runs, sets, monkeypatch):
    run, drawn = runs["classes"], []
    draw = sharing.draw

    def noted(net, n, ranks):
        drawn.append((sorted(set(net.usual_labels.tolist())), n))
        return draw(net, n, ranks)

    monkeypatch.setattr(evaluation, "draw", noted)
    evaluation.evaluate(EvaluateOptions(net=run.path, n=16, per_label=True, device="cpu"))
    lines = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    found = [(line["metric"], line.get("label"), line["n"]) for line in lines]
    assert found == [
        *(("swd", None, 16), ("neighbours", None, 64), ("swd", DARK, 16), ("swd", BRIGHT, 16)),
        *((metric, label, 16) for label in NAMES for metric in ("own_label", "other_label")),
    ]
    assert [line["other"] for line in lines if "other" in line] == [BRIGHT, DARK]
    assert drawn == [([0, 1], 16), ([0], 16), ([1], 16)]
    for line in lines:
        assert_as_documented(line, run.metrics.name)
    page = run_page(read_run(run.path))
    assert all(f">{name}</th>" in page for name in NAMES)
    assert "Each row has the label beside it" in page
    best = read_run(run.path).best("swd")
    assert best is not None
    assert best.value == lines[0]["value"]


def test_nets_and_sets_of_other_labels_are_not_compared(runs, sets, tmp_path):
    save_weights(Generator(32, 8, 4), tmp_path / "plain.pt")
    for net, shards, said in (
        (runs["classes"].path, sets["attributes"], "2 attributes, Bright, Red"),
        (tmp_path / "plain.pt", sets["classes"], "without labels"),
    ):
        options = EvaluateOptions(net=net, shards=shards, n=16, per_label=True, device="cpu")
        with pytest.raises(UserError) as error:
            evaluation.evaluate(options)
        assert_four_parts(error.value, said)


@pytest.mark.slow
def test_training_tells_classes_apart(sets, tmp_path):
    """Of 400 tiny steps, some eight seconds."""
    config = tiny(
        tmp_path / "run", shards=sets["classes"], conditional=True, batch_size=16, nz=16, ngf=8,
        ndf=8, lr=1e-3, ema_nimg=1000, epochs=1000, max_steps=400,
    )  # fmt: skip
    net = load_generator(train_here(config).run.folder.generator_average)
    dark, bright = (
        generate(net, latents(range(64), 16), torch.full((64,), number)).float().mean((1, 2, 3))
        for number in (0, 1)
    )
    assert dark.max() + 20 < bright.min()
