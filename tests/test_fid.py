"""FID and KID: torch-fidelity's path through an Inception of random weights, and its refusals."""

import urllib.error
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch_fidelity import feature_extractor_inceptionv3 as extractor

from dcgan.metrics import fid
from dcgan.metrics.evaluation import print_rest
from dcgan.metrics.fid import Inception
from dcgan.metrics.reals import BATCH, Reals
from dcgan.nets.models import Generator, init_weights
from pipeline.errors import UserError
from pipeline.files import cache_folder
from pipeline.loading.options import LoaderOptions
from tests.running import assert_four_parts

CPU = torch.device("cpu")

LAYER = fid.LAYER


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
def inception(weights: Path) -> Iterator[Inception]:
    """Of a layer of 64 features: the eigenvalues of 2,048 take many seconds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fid, "LAYER", "64")
        yield Inception(weights, CPU)


def a_net() -> Generator:
    net = Generator(32, nz=8, ngf=4)
    init_weights(net, torch.Generator().manual_seed(0))
    return net


def test_a_generator_beside_noise(inception, weights, monkeypatch, capsys):
    reals = Reals("synthetic", LoaderOptions(BATCH, 32), 12)
    found = fid.measure(a_net(), reals, inception, 6)
    assert [each.metric for each in found] == ["fid", "kid"]
    assert all(each.n == 6 for each in found)
    assert all(abs(each.floor) < each.value for each in found)
    record = found[0].record(5, "netG.pt")
    assert record["comparable"] is False
    assert record["digest"] == inception.digest
    assert "InceptionV3" in record["extractor"]
    print_rest(found)
    told = capsys.readouterr().out
    assert told.count("not comparable") == 2
    assert inception.digest[:8] in told
    # Once more, and the real images' part is taken from the cache
    assert len([*cache_folder().iterdir()]) == 1
    monkeypatch.setattr(Reals, "blocks", None)
    assert fid.measure(a_net(), reals, inception, 6) == found


def test_grey_images_are_taken_as_colour(weights, monkeypatch):
    monkeypatch.setattr(fid, "LAYER", LAYER)
    inception = Inception(weights, CPU)
    grey = torch.randint(0, 256, (2, 32, 32, 1), dtype=torch.uint8)
    found = inception.features([grey[:1], grey[1:]])
    assert found.shape == (2, 2048)
    assert found.equal(inception.features([grey.expand(-1, -1, -1, 3)]))


def test_the_formulas_are_those_of_the_papers():
    random = np.random.default_rng(0)
    one = random.normal(size=(4000, 3)).astype(np.float32)
    other = (2 * random.normal(size=(4000, 3)) + 1).astype(np.float32)
    pair = torch.from_numpy(one), torch.from_numpy(other)
    # Between N(0, 1) and N(1, 4): |0 - 1|² + (1 - 2)² in each of three dimensions
    assert fid.fid(*pair) == pytest.approx(6, rel=0.05)
    assert fid.fid(pair[0], pair[0]) == pytest.approx(0, abs=1e-4)
    few = pair[0][:100], pair[1][:100], pair[0][100:200]
    assert fid.kid(few[0], few[1]) > 10 * abs(fid.kid(few[0], few[2]))


def test_the_published_digest_is_comparable(weights, inception, monkeypatch):
    assert not inception.comparable
    monkeypatch.setattr(fid, "PUBLISHED", inception.digest)
    assert Inception(weights, CPU).comparable


def test_without_weights_and_network_the_way_out_is_told(monkeypatch):
    def offline(url: str, path: str, hash_prefix: str) -> None:
        assert hash_prefix == fid.PUBLISHED
        raise urllib.error.URLError("no network")

    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    with pytest.raises(UserError) as caught:
        Inception(None, CPU)
    assert_four_parts(caught.value, "no network", "--weights", "https://")


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
    assert_four_parts(caught.value, f"--weights {path}", "pt_inception-2015-12-05-6726825d.pth")
    assert not (tmp_path / "harmed").exists()


def test_weights_that_give_nothing_are_refused(inception, monkeypatch):
    monkeypatch.setattr(
        inception, "_net", lambda images: [images.float().mean((1, 2, 3)) / 0.0 * 0.0]
    )
    with pytest.raises(UserError) as caught:
        inception.features([torch.zeros(2, 32, 32, 3, dtype=torch.uint8)])
    assert_four_parts(caught.value, "not finite")


def test_too_few_images_are_refused(inception):
    with pytest.raises(UserError) as caught:
        fid.measure(a_net(), Reals("synthetic", LoaderOptions(BATCH, 32), 2), inception, 1)
    assert_four_parts(caught.value, "at least 4")
