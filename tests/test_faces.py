"""Faces: the recogniser's numbers, the distance between sets of them, and who is nearest."""

import sys
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from dcgan.metrics import described, faces
from dcgan.metrics.faces import FaceRecogniser, Faces, kernel_distance
from dcgan.metrics.reals import BATCH, Reals, fake_blocks
from dcgan.metrics.tables import print_rest
from dcgan.nets.models import Generator, init_weights
from pipeline.errors import UserError
from pipeline.loading.options import LoaderOptions
from tests.needs import require
from tests.running import assert_four_parts


@pytest.fixture(autouse=True)
def apart(tmp_path, monkeypatch):
    torch.set_num_threads(1)  # several wait for each other wherever the machine is busy
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


class Colours:
    """A recogniser for which a person is a mean colour."""

    description, digest, comparable = "mean colours", "0" * 64, False

    def features(self, blocks):
        return torch.cat([block.float().mean(dim=(1, 2)) / 255 for block in blocks])


def a_net():
    net = Generator(32, nz=8, ngf=4)
    init_weights(net, torch.Generator().manual_seed(0))
    return net


def noise(total):
    return Reals("synthetic", LoaderOptions(BATCH, 32), total)


def measure(*arguments: Any) -> Faces:
    found = faces.measure(*arguments)
    assert found is not None
    return found


def literal_distance(one, other):
    """Equation 4 of Binkowski et al., pair by pair."""

    def kernel(x, y):
        return (sum(a * b for a, b in zip(x, y, strict=True)) + 1) ** 3

    def mean(pairs):
        found = [kernel(x, y) for x, y in pairs]
        return sum(found) / len(found)

    within = [
        mean([(x, y) for i, x in enumerate(some) for j, y in enumerate(some) if i != j])
        for some in (one, other)
    ]
    return 1000 * (sum(within) - 2 * mean([(x, y) for x in one for y in other]))


def test_the_distance_is_that_of_all_pairs(monkeypatch):
    monkeypatch.setattr(faces, "ROWS_AT_ONCE", 3)
    random = torch.Generator().manual_seed(0)
    one, other = torch.randn(5, 4, generator=random), torch.rand(7, 4, generator=random)
    expected = literal_distance(one.tolist(), other.tolist())
    assert kernel_distance(one, other) == pytest.approx(expected, rel=1e-9)


def test_samples_and_held_out_images_are_compared_with_the_same_others(capsys):
    reals, net = noise(45), a_net()
    found = measure(net, reals, Colours(), 5)
    every = Colours().features(reals.blocks(0, 45))
    fakes = Colours().features(fake_blocks(net, 5))
    assert [found.distance.value, found.distance.floor] == [
        pytest.approx(kernel_distance(some, every[5:]), rel=1e-6) for some in (fakes, every[:5])
    ]
    assert [found.persons.value, found.persons.floor] == [
        pytest.approx(float(torch.cdist(some, every[5:]).min(dim=1).values.median()), rel=1e-3)
        for some in (fakes, every[:5])
    ]
    assert (found.distance.n, found.persons.n) == (5, 5)
    assert found.distance.source.extractor.endswith("beside 40 real images")
    print_rest([found.distance, found.persons])
    told = capsys.readouterr().out
    assert "\nfaces, distance to nearest real face: mean colours, weights 00000000" in told


def test_who_is_copied_is_shown_first(monkeypatch):
    reals, net = noise(99), a_net()
    every = torch.cat([*reals.blocks(0, 99)])
    samples = torch.cat([*fake_blocks(net, 11)])
    samples[7] = every[50]
    monkeypatch.setattr(described, "fakes_from", lambda net: lambda start, stop: iter([samples]))
    found = measure(net, reals, Colours(), 11)
    assert found.seeds[0] == 1_000_007
    assert found.most_alike.nearest.shape == (8, 7, 32, 32, 3)
    assert found.most_alike.nearest[0, 0].equal(every[50])
    gaps = torch.cdist(Colours().features([samples]), Colours().features([every[11:]]))
    second = int(gaps.min(dim=1).values.argsort()[1])
    assert found.seeds[1] == 1_000_000 + second
    assert found.most_alike.nearest[1, 1].equal(every[11 + int(gaps[second].argsort()[1])])


def test_too_few_images_are_refused():
    with pytest.raises(UserError) as caught:
        faces.measure(a_net(), noise(2), Colours(), 1)
    assert_four_parts(caught.value, "at least 4")


# dlib's recogniser


@pytest.fixture(scope="module")
def recogniser():
    require("faces")
    return FaceRecogniser()


def test_the_whole_image_is_the_face(recogniser):
    images = torch.randint(0, 256, (3, 40, 40, 1), dtype=torch.uint8)
    found = recogniser.features([images[:2], images[2:]])
    enlarged = [Image.fromarray(image[..., 0].numpy()).resize((150, 150)) for image in images]
    alone = [
        recogniser._net.compute_face_descriptor(np.asarray(image.convert("RGB")))
        for image in enlarged
    ]
    assert (found.shape, found.dtype) == ((3, 128), torch.float32)
    assert found.equal(torch.tensor(np.array(alone), dtype=torch.float32))
    assert recogniser.comparable


@pytest.mark.parametrize("absent", ["dlib", "face_recognition_models", "the file", "its content"])
def test_what_is_missing_can_be_installed(absent, tmp_path, monkeypatch):
    require("faces")
    if absent.startswith("dlib"):
        monkeypatch.setitem(sys.modules, "dlib", None)
    elif absent == "face_recognition_models":
        monkeypatch.setattr(faces, "MODELS", "no_such_package")
    elif absent == "the file":
        monkeypatch.setattr(faces, "WEIGHTS", "nothing.dat")
    else:
        (tmp_path / "no.dat").write_text("<html>")
        monkeypatch.setattr(faces, "WEIGHTS", str(tmp_path / "no.dat"))
    with pytest.raises(UserError) as caught:
        FaceRecogniser()
    assert_four_parts(caught.value, "--faces", "pip install 'dcgan-shards[faces]'")
