"""Numbers that a network takes beside the noise level: a guidance scale w, a second time s."""

import math

import torch
from torch import Tensor, nn

FREQUENCIES = 16


class NumberEmbedding(nn.Module):
    """(N, n) numbers of order one to an embedding (N, dim) that starts at zero.

    Sines and cosines of 2^k pi / 4, k = 0 ... 4 in FREQUENCIES steps, of each number, and a linear map of them. It
    is zero before training, so that a network that was given such inputs still computes what it did without.
    """

    def __init__(self, n: int, dim: int):
        super().__init__()
        frequencies = math.pi / 4 * 2 ** torch.linspace(0, 4, FREQUENCIES)
        self.register_buffer("frequencies", frequencies, persistent=False)
        self.linear = nn.Linear(2 * FREQUENCIES * n, dim)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, numbers: Tensor) -> Tensor:
        angles = (numbers[..., None] * self.frequencies.to(numbers)).flatten(1)
        return self.linear(torch.cat([angles.sin(), angles.cos()], dim=1))
