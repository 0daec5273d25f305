"""Conditional nets written literally, image by image, around the nets without labels."""

import torch
from torch import nn

from dcgan.nets.conditional import LabelEmbedding
from dcgan.nets.models import Discriminator, Generator
from pipeline.images.labels import LabelSpace


def embedding_of(net: Generator | Discriminator) -> LabelEmbedding:
    assert net.embedding is not None
    return net.embedding


def vector_of(weight: torch.Tensor, label: torch.Tensor, space: LabelSpace) -> torch.Tensor:
    """The learned vector of one image's label."""
    if space.kind == "classes":
        vector: torch.Tensor = weight[int(label)]
        return vector
    total: torch.Tensor = torch.zeros_like(weight[0])
    for place in range(len(space.names)):
        total = total + (weight[place] if label[place] == 1 else -weight[place])
    scaled: torch.Tensor = total / len(space.names) ** 0.5
    return scaled


class LiteralGenerator(nn.Module):
    """The generator of longer latents, the last numbers of which are labels' vectors."""

    def __init__(self, net: Generator) -> None:
        super().__init__()
        assert net.labels is not None
        self.space = net.labels
        options, features = net.options, embedding_of(net).weight.shape[1]
        self.net = Generator(options["--image-size"], options["--nz"] + features, options["--ngf"])
        self.net.to(embedding_of(net).weight.dtype).main.load_state_dict(net.main.state_dict())
        self.weight = nn.Parameter(embedding_of(net).weight.detach().clone())
        self.labels: torch.Tensor

    def forward(self, noise: torch.Tensor) -> torch.Tensor:
        rows = [
            torch.cat((latent.flatten(), vector_of(self.weight, label, self.space)))
            for latent, label in zip(noise, self.labels, strict=True)
        ]
        images: torch.Tensor = self.net(torch.stack(rows)[:, :, None, None])
        return images


class LiteralDiscriminator(nn.Module):
    """Equation 3 of Miyato and Koyama 2018: yᵀ V φ(x) + ψ(φ(x)), φ summed over places."""

    def __init__(self, net: Discriminator) -> None:
        super().__init__()
        assert net.labels is not None
        self.space = net.labels
        self.net = Discriminator(net.options["--image-size"], net.options["--ndf"])
        self.net.to(embedding_of(net).weight.dtype).main.load_state_dict(net.main.state_dict())
        self.weight = nn.Parameter(embedding_of(net).weight.detach().clone())
        self.labels_in_turn: list[torch.Tensor] = []

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        labels = self.labels_in_turn.pop(0)
        maps = []
        hook = self.net.main[-1].register_forward_pre_hook(lambda layer, args: maps.append(args[0]))
        logits = self.net(images)
        hook.remove()
        found = []
        for logit, phi, label in zip(logits, maps[0], labels, strict=True):
            v, product = vector_of(self.weight, label, self.space), torch.zeros_like(logit)
            for channel in range(len(phi)):
                product = product + v[channel] * phi[channel].sum()
            found.append(logit + product)
        return torch.stack(found)
