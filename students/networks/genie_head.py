"""A small head on a denoiser that predicts how its noise estimate changes along the trajectory (GENIE [2210.05475])."""

from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.functional import pixel_shuffle, pixel_unshuffle, silu

from students.diffusion.denoiser import expand
from students.errors import FewstepError
from students.networks.embedding import NumberEmbedding
from students.networks.mlp import MLP
from students.networks.unet import UNet


class GenieHead(nn.Module):
    """d eps / d gamma of x (N, *shape) at gamma, mixed of three outputs k1, k2, k3 (GENIE, Eq. 14):

        -1/gamma k1 + gamma / (1 + gamma^2) k2 + 1 / (gamma (1 + gamma^2)) k3

    It sees the state in the coordinates of a VP schedule, eps, and `features` channels of the denoiser's last layer
    (Fig. 4), images in the `patch` x patch squares of its network. All outputs are zero before training.
    """

    def __init__(self, shape: tuple[int, ...], features: int = 0, patch: int = 1, width: int = 32, layers: int = 1):
        super().__init__()
        self.patch = patch
        layer = nn.Linear if len(shape) == 1 else partial(nn.Conv2d, kernel_size=3, padding=1)
        channels = shape[0] * patch ** (len(shape) - 1)
        self.inner = layer(features + 2 * channels, width)
        self.condition = NumberEmbedding(1, width)
        nn.init.normal_(self.condition.linear.weight, std=0.1)
        self.layers = nn.ModuleList(
            nn.Sequential(nn.GroupNorm(8, width), layer(width, width), nn.SiLU(), layer(width, width))
            for _ in range(layers)
        )
        self.outer = layer(width, 3 * channels)
        nn.init.zeros_(self.outer.weight)
        nn.init.zeros_(self.outer.bias)

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


def last_layer(network: nn.Module) -> tuple[nn.Module, int, int]:
    """The output layer of a network, how many channels it takes, and the patch they stand for.

    Raises FewstepError for a network that is no UNet and no MLP.
    """
    if isinstance(network, UNet):
        return network.network.conv_out, network.network.conv_out.in_channels, network.patch
    if isinstance(network, MLP):
        return network.outer, network.inner.out_features, 1
    raise FewstepError(f"{type(network).__name__} shows no features for a head: take a UNet or an MLP for the teacher")
