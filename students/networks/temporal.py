"""Temporal convolutions in Fourier space: what lets one call of a network predict M states of a trajectory together."""

import torch
from torch import Tensor, nn
from torch.nn.functional import leaky_relu


class TemporalConvolution(nn.Module):
    """u + LeakyReLU(F^-1(R F u)): a convolution over the M states that are in a row in the batch (DSNO [2211.13449]).

    F is the real Fourier transform over the states, R a complex matrix, channels to channels, for each of the lowest
    `modes` frequencies; the others are dropped. R is zero before training, and the layer the identity. Computed in
    float32 or better.
    """

    def __init__(self, channels: int, states: int, modes: int):
        super().__init__()
        self.states = states
        self.weight = nn.Parameter(torch.zeros(modes, channels, channels, 2))  # real and imaginary parts of R

    def forward(self, u: Tensor) -> Tensor:
        """u: (N * M, C, ...)."""
        precise = torch.promote_types(u.dtype, torch.float32)
        spectrum = torch.fft.rfft(u.to(precise).reshape(-1, self.states, *u.shape[1:]), dim=1)
        # contiguous, as a network with channels last keeps all its tensors of four dimensions in another order
        weight = torch.view_as_complex(self.weight.to(precise).contiguous())
        spectrum = torch.einsum("nmi...,mio->nmo...", spectrum[:, : len(weight)], weight)
        return u + leaky_relu(torch.fft.irfft(spectrum, n=self.states, dim=1).reshape(u.shape)).to(u)


class TemporalLayer(nn.Module):
    """A residual block of a network, and a temporal convolution of what it computes."""

    def __init__(self, layer: nn.Module, convolution: TemporalConvolution):
        super().__init__()
        self.layer, self.convolution = layer, convolution

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.convolution(self.layer(*inputs))
