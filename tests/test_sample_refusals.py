"""`dcgan-sample` refuses: in four parts, and nothing that stood there is lost."""

from pathlib import Path

import pytest
from PIL import Image

import dcgan.sampling.sample
from dcgan.nets.models import Discriminator, Generator
from dcgan.nets.weights import load_generator, save_weights
from dcgan.sample import sample
from dcgan.sampling.pictures import save_image
from pipeline.errors import UserError
from tests.pictures import names_in
from tests.running import assert_four_parts
from tests.sample_runs import SIDE, make_run, pixels
from tests.test_generate import trained


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A run in the current folder."""
    monkeypatch.chdir(tmp_path)
    return make_run(Path("0007"))[0]


def refusal(*said: str, **options) -> UserError:
    before = sorted(Path().rglob("*"))
    with pytest.raises(UserError) as error:
        sample(device="cpu", **options)
    assert_four_parts(error.value, *said)
    assert sorted(Path().rglob("*")) == before  # nothing half-written, nor an empty folder
    return error.value


def test_options_that_do_not_go_together(run):
    for options, said in (
        ({"seeds": "1", "interpolate": "1:2", "out": Path("w.gif")}, "--seeds"),
        ({"each": Path("e"), "interpolate": "1:2", "out": Path("w.gif")}, "--each"),
        ({"frames": 9}, "--interpolate"),
        ({"out": Path("walk.gif")}, ".png"),
        ({"interpolate": "1:2"}, "--out"),
        ({"interpolate": "1:2", "out": Path("walk.mp4")}, ".gif or .webp"),
        ({"interpolate": "1:2:3", "out": Path("walk.gif"), "frames": 2}, "--frames 2"),
        ({"interpolate": "1:2", "out": Path("walk.gif"), "frames": 10**9}, "--frames"),
        ({"interpolate": ":".join(["1"] * 3601), "out": Path("walk.gif")}, "3,601 seeds"),
        ({"seeds": ""}, "--seeds"),
        ({"seeds": "1", "arithmetic": "1 - 2"}, "--seeds beside it"),
        ({"seeds": "1", "latents": Path("z.npy")}, "leave --latents out"),
        ({"arithmetic": "1 - 2", "each": Path("e")}, "draw with --seeds, or draw with --latents"),
        ({"arithmetic": "1 - 2", "frames": 9}, "there only --out, --save-latents"),
        ({"arithmetic": "1"}, "one term"),
        ({"arithmetic": f"1 - 0-{10**6}"}, "million pixels"),
        ({"latents": Path("z.npy"), "save_latents": Path("y.npy")}, "--latents beside it"),
        ({"save_latents": Path("z.pt")}, ".npy"),
        ({"save_latents": Path("none/z.npy")}, "no folder none"),
        ({"out": Path("g.jpg")}, ".png"),
        ({"out": Path("none/g.png")}, "no folder none"),
        ({"out": Path("none/g.png"), "each": Path("e")}, "no folder none"),
        ({"each": run.config}, "a file"),
    ):
        refusal(said, net=run.path, **options)


def test_what_is_no_net(run):
    save_weights(Discriminator(32, 2), Path("netD.pt"))
    save_weights(Generator(32, 2), Path("net.pt"))
    Path("empty").mkdir()
    refusal("no such file or folder", "run folder", net=Path("nothere"), each=Path("e"))
    refusal("no config.json", net=Path("empty"), each=Path("e"))
    refusal("Discriminator", net=Path("netD.pt"), each=Path("e"))
    refusal("--raw-net", net=Path("net.pt"), raw_net=True, each=Path("e"))


def test_a_run_that_has_not_ended_offers_its_latest_net(run):
    run.generator.unlink()
    run.generator_average.unlink()
    assert refusal("no netG.pt", net=run.path).remedy.startswith("wait")
    run.nets.mkdir()
    for nimg in (128, 2560):
        save_weights(trained(SIDE, 4), run.generator_at(nimg))
    error = refusal("no netG.pt", net=run.path)
    assert error.remedy.endswith(f"dcgan-sample {run.generator_at(2560)}")
    load_generator(run.generator_at(2560))


def test_a_grid_that_no_viewer_opens(run):
    error = refusal("--each", net=run.path, seeds="0-99999", out=Path("g.png"), each=Path("e"))
    assert "100,000 images" in error.found
    assert dcgan.sampling.sample.MAX_PIXELS == Image.MAX_IMAGE_PIXELS


# What stood there before


def test_the_default_grid_replaces_samples_and_nothing_else(run):
    Path("samples.png").write_bytes(b"mine")
    assert "did not write" in refusal("--out", net=run.path).found
    Image.new("RGB", (8, 8)).save("samples.png")
    refusal("--out", net=run.path)
    Path("samples.png").unlink()
    sample(net=run.path, seeds="1", device="cpu")
    first = Path("samples.png").read_bytes()
    sample(net=run.path, seeds="2", device="cpu")
    assert Path("samples.png").read_bytes() != first


def test_a_named_grid_is_replaced(run):
    Path("g.png").write_bytes(b"old")
    sample(net=run.path, seeds="1", out=Path("g.png"), device="cpu")
    assert pixels(Path("g.png")).shape == (SIDE, SIDE, 3)


def test_what_breaks_off_leaves_whole_files_only(run, monkeypatch):
    Path("g.png").write_bytes(b"old")
    save = save_image

    def break_off(image, path, texts):
        if path.name == "seed000020.png":
            raise OSError(28, "No space left on device")
        save(image, path, texts)

    monkeypatch.setattr(dcgan.sampling.sample, "save_image", break_off)
    with pytest.raises(UserError) as error:
        sample(net=run.path, seeds="0-40", out=Path("g.png"), each=Path("each"), device="cpu")
    assert_four_parts(error.value, "each", "No space left")
    assert Path("g.png").read_bytes() == b"old"
    assert names_in(Path("each")) == [f"seed{seed:06d}.png" for seed in range(20)]
    for path in Path("each").iterdir():
        assert pixels(path).shape == (SIDE, SIDE, 3)
