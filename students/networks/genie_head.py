"""A small head on a denoiser that predicts how its noise estimate changes along the trajectory (GENIE [2210.05475])."""

from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.functional import pixel_shuffle, pixel_unshuffle, silu

from students.diffusion.denoiser import expand
from students.networks.embedding import ExtraEmbedding


class GenieHead(nn.Module):
    """d eps / d gamma of x (N, *shape) at gamma, mixed of three outputs k1, k2, k3 (GENIE, Eq. 14):

        -1/gamma k1 + gamma / (1 + gamma^2) k2 + 1 / (gamma (1 + gamma^2)) k3

    It sees the state in the coordinates of a VP schedule, eps, and what the last layer of the denoiser's network takes
    (Fig. 4): `features` is the `feature_channels` of that network, `patch` its patch. All outputs are zero before
    training. config: plain JSON, of which `students.networks.build_network` makes the same head, untrained.
    """

    def __init__(self, shape: tuple[int, ...], features: int = 0, patch: int = 1, width: int = 32, layers: int = 1):
        super().__init__()
        sizes = {"features": features, "patch": patch, "width": width, "layers": layers}
        self.config = {"kind": "genie_head", "shape": list(shape), **sizes}
        self.patch = patch
        layer = nn.Linear if len(shape) == 1 else partial(nn.Conv2d, kernel_size=3, padding=1)
        channels = shape[0] * patch ** (len(shape) - 1)
        self.inner = layer(features + 2 * channels, width)
        self.condition = ExtraEmbedding(1, width)
        nn.init.normal_(self.condition.linear.weight, std=0.1)
        self.layers = nn.ModuleList(
            nn.Sequential(nn.GroupNorm(8, width), layer(width, width), nn.SiLU(), layer(width, width))
            for _ in range(layers)
        )
        self.outer = layer(width, 3 * channels)
        nn.init.zeros_(self.outer.weight)
        nn.init.zeros_(self.outer.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor, gamma: Tensor, eps: Tensor, features: Tensor | None = None) -> Tensor:
        """x, eps: (N, *shape), x in VE coordinates. gamma: (N,)."""
        inputs = [x / expand((1 + gamma**2).sqrt(), x), eps]
        if x.ndim == 4:
            inputs = [pixel_unshuffle(value, self.patch) for value in inputs]
        h = self.inner(torch.cat(inputs if features is None else [*inputs, features], dim=1))
        embedding = self.condition(gamma[:, None].log().to(x) / 4)
        embedding = embedding.reshape(*embedding.shape, *[1] * (x.ndim - 2))
        for layer in self.layers:
            h = h + layer(h + embedding)
        out = self.outer(silu(h))
        k1, k2, k3 = (pixel_shuffle(out, self.patch) if x.ndim == 4 else out).chunk(3, dim=1)
        gamma = expand(gamma, x)
        return (gamma**2 * k2 + k3) / (gamma * (1 + gamma**2)) - k1 / gamma
