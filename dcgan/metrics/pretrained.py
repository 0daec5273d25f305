"""Pretrained nets that describe images, by torch-fidelity's code: InceptionV3 and VGG16.

Numbers are comparable with published ones only where the weights are those of the published file;
its digest goes with them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from dcgan.metrics.reals import GROUP, regrouped
from dcgan.nets.weights import load_tensors
from dcgan.step.precision import same_in_every_process
from pipeline.errors import UserError
from pipeline.files import file_digest


class Pretrained(ABC):
    """A net with weights from a file, an `Extractor`.

    Args:
        weights: the file; None for the published one, which is downloaded unless torch's hub
            folder has it.
        device: where it runs.

    Raises:
        UserError: no such file, another file, or no download.
    """

    name: str
    """What people call the net."""
    flag: str
    """The option that names the file."""
    asked: str
    """The option that downloads it."""
    file: str
    """The published file's usual name, and its size."""
    published: str
    """SHA-256 of the published file, whose name has its beginning."""
    layers: tuple[str, ...]
    """What torch-fidelity calls the layers whose numbers are taken, in a row."""

    def __init__(self, weights: Path | None, device: torch.device) -> None:
        path = self._found_or_downloaded() if weights is None else weights
        self._where = f"{self.flag} {path}"
        self._refuse_unsafe(path)
        from torch_fidelity.version import __version__

        self.digest = file_digest(path)
        self.comparable = self.digest == self.published
        self.description = f"{self.name}, torch-fidelity {__version__}"
        self._device = device
        try:
            net = self._build(str(path))
        except (RuntimeError, TypeError, AttributeError) as error:  # of load_state_dict
            raise self._unfit("tensors of another net") from error
        self._net = net.to(device)

    @abstractmethod
    def _build(self, path: str) -> Any:
        """Make torch-fidelity's net, with the weights of a file."""

    @abstractmethod
    def _url(self) -> str:
        """Where the published file is."""

    @torch.no_grad()
    def features(self, blocks: Iterable[torch.Tensor]) -> torch.Tensor:
        """Describe images; see `Extractor`.

        Raises:
            UserError: the weights are of no use.
        """
        found = []
        for images in regrouped(blocks, GROUP):
            planes = images.permute(0, 3, 1, 2).expand(-1, 3, -1, -1)
            with same_in_every_process(self._device):
                layers = self._net(planes.to(self._device))
            found.append(torch.cat([layer.cpu() for layer in layers], dim=1))
        features = torch.cat(found)
        if not features.isfinite().all():
            raise self._unfit("weights that give numbers which are not finite")
        return features

    def _found_or_downloaded(self) -> Path:
        """Find the published weights where torch's hub keeps them, or download them to there."""
        url = self._url()
        name = url.rpartition("/")[2]
        path = Path(str(torch.hub.get_dir())) / "checkpoints" / name
        if path.is_file():
            return path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            # Written beside, compared with the digest, and only then given its name
            torch.hub.download_url_to_file(url, str(path), hash_prefix=self.published)
        except (OSError, RuntimeError, ValueError) as error:
            raise UserError(
                self.asked,
                f"no weights of {self.name}, and no download ({error})",
                self.file,
                f"fetch {url} where there is a network, and give it as {self.flag} {name};"
                f" without {self.asked}, all the rest is measured",
            ) from error
        return path

    def _refuse_unsafe(self, path: Path) -> None:
        """Refuse all but a plain dict of tensors: torch-fidelity would run a pickle's code."""
        if not path.is_file():
            raise self._unfit("a folder" if path.is_dir() else "no such file")
        try:
            state = load_tensors(path)
        except Exception as error:  # whatever torch's readers trip over in a file not theirs
            found = f"a file that torch.load(weights_only=True) refuses ({type(error).__name__})"
            raise self._unfit(found) from error
        if not isinstance(state, dict):
            raise self._unfit(f"a {type(state).__name__}")

    def _unfit(self, found: str) -> UserError:
        return UserError(
            self._where,
            found,
            f"the state dict of {self.name}, such as {self.file}",
            f"check the path, or delete a damaged file and give {self.asked} alone to have it"
            " downloaded; without both, all the rest is measured",
        )


class Inception(Pretrained):
    """InceptionV3 as FID takes it: its last pooling (Heusel et al. 2017), then its logits.

    Attributes:
        pooled: how many of the features are the pooling's; the others are logits.
    """

    name, flag, asked = "InceptionV3", "--weights", "--fid"
    file = "weights-inception-2015-12-05-6726825d.pth, of 95 MB"
    published = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
    layers = ("2048", "logits_unbiased")
    pooled = 2048

    def _build(self, path: str) -> Any:
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

        return FeatureExtractorInceptionV3("inception-v3-compat", [*self.layers], path)

    def _url(self) -> str:
        from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3

        return str(URL_INCEPTION_V3)


class Vgg16(Pretrained):
    """VGG16 of torchvision's weights: its second fully connected layer, after the ReLU.

    Kynkäänniemi et al. 2019 take the same layer, with weights converted from another framework's:
    numbers are comparable with torch-fidelity's, and not quite with theirs.
    """

    name, flag, asked = "VGG16", "--vgg-weights", "--precision-recall"
    file = "vgg16-397923af.pth, of 553 MB"
    published = "397923af8e79cdbb6a7127f12361acd7a2f83e06b05044ddf496e83de57a5bf0"
    layers = ("fc2_relu",)

    def _build(self, path: str) -> Any:
        from torch_fidelity.feature_extractor_vgg16 import FeatureExtractorVGG16

        return FeatureExtractorVGG16("vgg16", [*self.layers], path)

    def _url(self) -> str:
        from torchvision.models import VGG16_Weights

        return str(VGG16_Weights.IMAGENET1K_V1.url)
