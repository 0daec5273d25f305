"""FID, KID, Inception score, precision, recall: by torch-fidelity, on random weights; refusals."""

import urllib.error
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from torch import nn
from torch_fidelity import feature_extractor_inceptionv3 as extractor

from dcgan.metrics import fidelity
from dcgan.metrics.pretrained import Inception, Pretrained, Vgg16
from dcgan.metrics.reals import BATCH, Reals
from dcgan.metrics.tables import print_rest
from dcgan.nets.models import Generator, init_weights
from pipeline.errors import UserError
from pipeline.files import cache_folder
from pipeline.loading.options import LoaderOptions
from tests.running import assert_four_parts

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither this user's cache nor this user's download."""
    torch.set_num_threads(1)  # several wait for each other wherever the machine is busy
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Of an Inception that has learned nothing; 95 MB, removed afterwards."""
    path = tmp_path_factory.mktemp("inception") / "random.pth"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(extractor, "load_state_dict_from_url", lambda *_, **__: {})
        patch.setattr(extractor.FeatureExtractorInceptionV3, "load_state_dict", lambda *_: None)
        net = extractor.FeatureExtractorInceptionV3("random", ["2048"])
    random = torch.Generator().manual_seed(0)
    for name, tensor in net.state_dict().items():
        if tensor.ndim == 4:  # so that activations neither vanish nor grow
            deviation = (2 / tensor[0].numel()) ** 0.5
            tensor.copy_(torch.randn(tensor.shape, generator=random) * deviation)
        assert tensor.ndim == 4 or "bn" in name or name.startswith("fc.")
    torch.save(net.state_dict(), path)
    yield path
    path.unlink()


@pytest.fixture(scope="module")
def inception(weights: Path) -> Inception:
    return Inception(weights, CPU)


class Narrow(nn.Module):
    """Stands for torchvision's VGG16, whose 553 MB no test should write: its parts, all thin."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Conv2d(3, 8, 32, stride=32)
        hidden = [nn.Linear(8, 16), nn.ReLU(), nn.Dropout(), nn.Linear(16, 12), nn.ReLU()]
        self.classifier = nn.Sequential(*hidden, nn.Dropout(), nn.Linear(12, 10))

    def forward(self, images: torch.Tensor) -> Any:
        return self.classifier(self.features(images).mean(dim=(2, 3)))


@pytest.fixture
def vgg(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Vgg16:
    monkeypatch.setattr(torchvision.models, "vgg16", Narrow)
    torch.save(Narrow().state_dict(), tmp_path / "vgg16.pth")
    return Vgg16(tmp_path / "vgg16.pth", CPU)


def a_net() -> Generator:
    net = Generator(32, nz=8, ngf=4)
    init_weights(net, torch.Generator().manual_seed(0))
    return net


def noise(total: int) -> Reals:
    return Reals("synthetic", LoaderOptions(BATCH, 32), total)


class Few(Inception):
    """Six numbers for what Inception pools, and four logits: 2,048 eigenvalues take seconds."""

    pooled = 6
    description, digest, comparable = "InceptionV3, a stand-in", "0" * 64, False

    def __init__(self) -> None:
        pass

    def features(self, blocks: Iterable[torch.Tensor]) -> torch.Tensor:
        rows = [(block / 255 - 0.5).abs().mean(dim=2).flatten(1) for block in blocks]
        lines = torch.cat(rows)
        return lines[:, :10]


def test_a_generator_beside_noise(monkeypatch, capsys):
    found = fidelity.measure_fid(a_net(), noise(24), Few(), 12)
    assert [each.metric for each in found] == ["fid", "kid", "isc"]
    assert all(each.n == 12 for each in found)
    assert all(abs(each.floor) < each.value for each in found[:2])
    one, other = (Few().features(noise(24).blocks(k * 12, k * 12 + 12)) for k in (0, 1))
    assert found[0].floor == fidelity.fid(one[:, :6], other[:, :6])
    assert found[2].floor == fidelity.inception_score(other[:, 6:])
    record = found[1].record(5, "netG.pt")
    assert record["comparable"] is False
    assert record["digest"] == "0" * 64
    assert "100 subsets of 12" in record["extractor"]
    print_rest(found)
    told = capsys.readouterr().out
    assert "\nFID, KID, Inception score: InceptionV3, weights 00000000: unknown, not" in told
    # Once more, and the real images' part is taken from the cache
    assert len([*cache_folder().iterdir()]) == 1
    monkeypatch.setattr(Reals, "blocks", None)
    assert fidelity.measure_fid(a_net(), noise(24), Few(), 12) == found


def test_grey_images_are_taken_as_colour(inception):
    grey = torch.randint(0, 256, (2, 32, 32, 1), dtype=torch.uint8)
    found = inception.features([grey[:1], grey[1:]])
    assert found.shape == (2, Inception.pooled + 1008)
    assert found.equal(inception.features([grey.expand(-1, -1, -1, 3)]))


def test_vgg16_gives_precision_and_recall(vgg, capsys):
    found = fidelity.measure_precision(a_net(), noise(40), vgg, 20)
    assert [each.metric for each in found] == ["precision", "recall"]
    one, other = (vgg.features(noise(40).blocks(k * 20, k * 20 + 20)) for k in (0, 1))
    assert one.shape == (20, 12)
    assert (one >= 0).all()  # after the ReLU
    assert tuple(each.floor for each in found) == fidelity.precision_recall(one, other)
    assert found[1].value == 0 < found[1].floor  # one flat grey after the other: collapsed
    assert found[0].source.digest == vgg.digest
    assert "VGG16" in found[0].source.extractor
    print_rest(found)
    assert f"precision, recall: VGG16, weights {vgg.digest[:8]}: unknown" in capsys.readouterr().out


def test_the_formulas_are_those_of_the_papers():
    random = np.random.default_rng(0)
    one = random.normal(size=(4000, 3)).astype(np.float32)
    other = (2 * random.normal(size=(4000, 3)) + 1).astype(np.float32)
    pair = torch.from_numpy(one), torch.from_numpy(other)
    # Between N(0, 1) and N(1, 4): |0 - 1|² + (1 - 2)² in each of three dimensions
    assert fidelity.fid(*pair) == pytest.approx(6, rel=0.05)
    assert fidelity.fid(pair[0], pair[0]) == pytest.approx(0, abs=1e-4)
    few = pair[0][:100], pair[1][:100], pair[0][100:200]
    assert fidelity.kid(few[0], few[1]) > 10 * abs(fidelity.kid(few[0], few[2]))
    # Images that are surely of one class each, of four classes equally often
    assert fidelity.inception_score(50 * torch.eye(4).repeat(100, 1)) == pytest.approx(4, rel=0.1)
    # On a line: third neighbours of 0 … 4 are within 3 at the ends, and within 2 between
    reals = torch.arange(5.0)[:, None]
    assert fidelity.precision_recall(reals, torch.tensor([[-3.0], [7.5], [2.5], [90]])) == (0.5, 1)


def test_the_published_digest_is_comparable(vgg, tmp_path, monkeypatch):
    assert not vgg.comparable
    monkeypatch.setattr(Vgg16, "published", vgg.digest)
    assert Vgg16(tmp_path / "vgg16.pth", CPU).comparable


@pytest.mark.parametrize("net", [Inception, Vgg16])
def test_without_weights_and_network_the_way_out_is_told(net, monkeypatch):
    def offline(url: str, path: str, hash_prefix: str) -> None:
        assert hash_prefix == net.published
        assert hash_prefix[:8] in url
        raise urllib.error.URLError("no network")

    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    with pytest.raises(UserError) as caught:
        net(None, CPU)
    assert_four_parts(caught.value, "no network", net.flag, net.asked, "https://", "the rest is")


class Harm:
    """What a pickle may do."""

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return (Path.touch, (Path("harmed"),))


@pytest.mark.parametrize("kind", ["missing", "folder", "text", "code", "list", "another net"])
def test_what_is_no_inception_is_refused(tmp_path, monkeypatch, kind):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "weights.pth"
    if kind == "folder":
        path.mkdir()
    elif kind == "text":
        path.write_text("<html>not found</html>")
    elif kind != "missing":
        holds = {"code": Harm(), "list": [1], "another net": a_net().state_dict()}
        torch.save(holds[kind], path)
    with pytest.raises(UserError) as caught:
        Inception(path, CPU)
    assert_four_parts(
        caught.value, f"--weights {path}", "weights-inception-2015-12-05-6726825d.pth"
    )
    assert not (tmp_path / "harmed").exists()


def test_weights_that_give_nothing_are_refused(vgg, monkeypatch):
    monkeypatch.setattr(Pretrained, "_unfit", lambda self, found: UserError(found, "", "", ""))
    monkeypatch.setattr(vgg, "_net", lambda images: [images.float().mean((2, 3)) / 0.0 * 0.0])
    with pytest.raises(UserError, match="not finite"):
        vgg.features([torch.zeros(2, 32, 32, 3, dtype=torch.uint8)])


def test_too_few_images_are_refused(vgg):
    with pytest.raises(UserError) as caught:
        fidelity.measure_fid(a_net(), noise(2), Few(), 1)
    assert_four_parts(caught.value, "--fid", "at least 4")
    with pytest.raises(UserError) as caught:
        fidelity.measure_precision(a_net(), noise(8), vgg, 3)
    assert_four_parts(caught.value, "--precision-recall", "at least 8")
