"""Networks that tell data from samples: small heads on the features of another network, and one that reads states."""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, leaky_relu

from students.errors import FewstepError
from students.networks.embedding import ExtraEmbedding


class Heads(nn.Module):
    """Logits (N, M), one for each position of each of a list of hidden tensors, (N, C) or (N, C, H, W).

    like: such a list, of any batch. classes: of the conditions, whose embedding is projected on what a head sees
    (Miyato & Koyama 2018 [1802.05637]); None for features that know the condition already, and where there is none.
    """

    def __init__(self, like: Sequence[Tensor], classes: int | None = None, width: int = 32):
        super().__init__()
        self.channels = [hidden.shape[1] for hidden in like]
        vectors = like[0].ndim == 2
        layer = nn.Linear if vectors else partial(nn.Conv2d, kernel_size=3, padding=1)
        self.inner = nn.ModuleList(
            nn.Sequential(layer(channels, width), nn.LeakyReLU(0.2)) for channels in self.channels
        )
        self.outer = nn.ModuleList(nn.Linear(width, 1) if vectors else nn.Conv2d(width, 1, 1) for _ in like)
        self.label = None if classes is None else nn.Embedding(classes + 1, width)

    def forward(self, features: Sequence[Tensor], condition: Tensor | None = None) -> Tensor:
        """condition: (N,) classes. Raises FewstepError for features of another network."""
        if (found := [hidden.shape[1] for hidden in features]) != self.channels:
            raise FewstepError(f"these heads read features of {self.channels} channels, not {found}")
        logits = []
        for hidden, inner, outer in zip(features, self.inner, self.outer, strict=True):
            seen = inner(hidden)
            logit = outer(seen)
            if self.label is not None:
                direction = self.label(condition)
                logit = logit + (seen * direction.reshape(*direction.shape, *[1] * (seen.ndim - 2))).sum(1, True)
            logits.append(logit.flatten(1))
        return torch.cat(logits, dim=1)


class FeatureDiscriminator(nn.Module):
    """Heads on the hidden tensors of a denoiser, which know noise level and condition: logits (N, M)."""

    def __init__(self, network: nn.Module, classes: int | None = None):
        super().__init__()
        self.network = network
        parameter = next(network.parameters())
        x = torch.zeros(1, *network.shape, device=parameter.device)  # type: ignore[misc]
        with torch.no_grad():
            self.heads = Heads(self.features(x, x.new_ones(1), None), classes).to(parameter.device)

    def features(self, x: Tensor, sigma: Tensor, condition: Tensor | None) -> list[Tensor]:
        return self.network.with_features(x, sigma, condition)[1]  # type: ignore[operator]

    def forward(self, x: Tensor, sigma: Tensor, condition: Tensor | None = None) -> tuple[Tensor, list[Tensor]]:
        """The logits, and the features that they were read from, by which they can be differentiated.

        x: (N, *shape), states at noise levels sigma, (N,).
        """
        features = self.features(x, sigma, condition)
        for hidden in features:
            if not hidden.requires_grad:
                hidden.requires_grad_()
        return self.heads(features, condition), features


class JudgingDenoiser(FeatureDiscriminator):
    """A denoiser that can be asked for the logits of its heads in the same evaluation."""

    def forward(self, x, sigma, condition=None, judge: bool = False):
        """x0 (N, *shape), or with `judge` x0 and the logits."""
        if not judge:
            return self.network(x, sigma, condition)
        x0, features = self.network.with_features(x, sigma, condition)  # type: ignore[operator]
        return x0, self.heads(features)


class EncoderDiscriminator(FeatureDiscriminator):
    """The same on an image encoder (students/networks/encoder.py), which sees images and is told nothing else."""

    def features(self, x, sigma, condition):
        return self.network(x)


class Discriminator(nn.Module):
    """Logits (N,) of one state or several, of a number that says at which time, and of a class.

    shape: of one state. states: how many, one behind the other in the channels of x. Residual layers, for images at
    half the resolution of the layer before, the first at half of the image's, down to 2 pixels.
    """

    def __init__(
        self, shape: Sequence[int], states: int = 1, classes: int | None = None, width: int = 64, layers: int = 3
    ):
        super().__init__()
        self.shape = (states * shape[0], *shape[1:])
        layer = nn.Linear if len(shape) == 1 else partial(nn.Conv2d, kernel_size=3, padding=1)
        self.inner = layer(self.shape[0], width) if len(shape) == 1 else nn.Conv2d(self.shape[0], width, 4, 2, 1)
        self.time = ExtraEmbedding(1, width)
        nn.init.normal_(self.time.linear.weight, std=0.1)
        self.label = None if classes is None else nn.Embedding(classes + 1, width)
        self.layers = nn.ModuleList(
            nn.Sequential(nn.LeakyReLU(0.2), layer(width, width), nn.LeakyReLU(0.2), layer(width, width))
            for _ in range(layers)
        )
        self.outer = nn.Linear(width, 1)

    def forward(self, x: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
        """x: (N, states * C, ...). t: (N,), of order one. Raises FewstepError for states of another shape."""
        if x.shape[1:] != self.shape:
            raise FewstepError(
                f"this discriminator reads {self.shape}, not {tuple(x.shape[1:])}: build one of that shape"
            )
        emb = self.time(t.to(x)[:, None])
        if self.label is not None:
            emb = emb + self.label(condition)
        emb = emb.reshape(*emb.shape, *[1] * (x.ndim - 2))
        h = self.inner(x)
        for layer in self.layers:
            h = h + layer(h + emb)
            if h.ndim == 4 and h.shape[2] > 2:
                h = avg_pool2d(h, 2)
        h = leaky_relu(h, 0.2)
        return self.outer(h.flatten(2).sum(2) if h.ndim == 4 else h)[:, 0]
