"""Temporal convolutions in Fourier space: what lets one call of a network predict M states of a trajectory together."""

import torch
from torch import Tensor, nn
from torch.nn.functional import leaky_relu

from students.errors import FewstepError
from students.networks.mlp import MLP
from students.networks.unet import UNet


class TemporalConvolution(nn.Module):
    """u + LeakyReLU(F^-1(R F u)): a convolution over the M states that are in a row in the batch (DSNO [2211.13449]).

    F is the real Fourier transform over the states, R a complex matrix, channels to channels, for each of the lowest
    `modes` frequencies; the others are dropped. R is zero before training, and the layer the identity.
    """

    def __init__(self, channels: int, states: int, modes: int):
        super().__init__()
        self.states = states
        self.weight = nn.Parameter(torch.zeros(modes, channels, channels, 2))  # real and imaginary parts of R

    def forward(self, u: Tensor) -> Tensor:
        """u: (N * M, C, ...)."""
        spectrum = torch.fft.rfft(u.float().reshape(-1, self.states, *u.shape[1:]), dim=1)
        weight = torch.view_as_complex(self.weight.float())
        spectrum = torch.einsum("nmi...,mio->nmo...", spectrum[:, : len(weight)], weight)
        return u + leaky_relu(torch.fft.irfft(spectrum, n=self.states, dim=1).reshape(u.shape)).to(u)


class TemporalLayer(nn.Module):
    """A layer of a network, and a temporal convolution of what it computes."""

    def __init__(self, layer: nn.Module, channels: int, states: int, modes: int):
        super().__init__()
        self.layer = layer
        self.convolution = TemporalConvolution(channels, states, modes)

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.convolution(self.layer(*inputs))


def along_time(network: nn.Module, states: int, modes: int = 2) -> nn.Module:
    """Put a temporal convolution after each residual block of a UNet, or residual layer of an MLP, in place.

    The network then takes batches of N * M rows, the `states` M of a trajectory in a row. Raises FewstepError for
    other networks.
    """
    if isinstance(network, UNet):
        unet = network.network
        groups = [block.resnets for block in (*unet.down_blocks, unet.mid_block, *unet.up_blocks)]
        widths = lambda block: block.out_channels
    elif isinstance(network, MLP):
        groups, widths = [network.layers], lambda layer: layer[-1].out_features
    else:
        raise FewstepError(f"{type(network).__name__} has no place for temporal layers: start from a UNet or an MLP")
    for group in groups:
        for i, block in enumerate(group):
            group[i] = TemporalLayer(block, widths(block), states, modes)
    return network
