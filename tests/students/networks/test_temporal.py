"""The temporal convolution against the dense one of its Fourier coefficients."""

import torch
from torch import nn

from students.networks.temporal import TemporalConvolution


def test_the_convolution_is_the_one_of_its_fourier_coefficients():
    layer = TemporalConvolution(channels=3, states=5, modes=2)
    nn.init.normal_(layer.weight)
    u = torch.randn(2 * 5, 3, 7)
    weight = torch.view_as_complex(layer.weight.detach())
    angles = 2j * torch.pi * torch.arange(5) / 5
    # of a real signal, a mode k > 0 and its conjugate: K[t] = (R_0 + 2 Re(R_1 exp(i 2 pi t / 5))) / 5
    kernel = (weight[0].real + 2 * (weight[1] * angles.exp()[:, None, None]).real) / 5
    times = torch.arange(5)
    dense = torch.einsum("nsi...,tsio->nto...", u.unflatten(0, (2, 5)), kernel[(times[:, None] - times) % 5])
    expected = u + nn.functional.leaky_relu(dense.flatten(0, 1))
    assert torch.allclose(layer(u), expected, atol=1e-5)
    assert torch.allclose(layer.double()(u.double()), expected.double(), atol=1e-5)
