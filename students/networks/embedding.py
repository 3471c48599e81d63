"""The embedding of numbers: extra inputs such as a guidance scale or a second time, and the noise level of an MLP."""

import math

import torch
from torch import Tensor, nn

FREQUENCIES = 16


class ExtraEmbedding(nn.Module):
    """(N, n) numbers of order one to an embedding (N, dim) that starts at zero.

    Sines and cosines of 2^k pi / 4, k = 0 ... 4 in FREQUENCIES steps, of each number, and a linear map of them. It is
    zero before training, so that a network which was given extra inputs still computes what it did without. The angles
    are computed in the dtype of the numbers, whatever that of the map is.
    """

    def __init__(self, n: int, dim: int):
        super().__init__()
        self.linear = nn.Linear(2 * FREQUENCIES * n, dim)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, numbers: Tensor) -> Tensor:
        frequencies = math.pi / 4 * 2 ** torch.linspace(0, 4, FREQUENCIES, device=numbers.device)
        angles = (numbers[..., None] * frequencies.to(numbers.dtype)).flatten(1)
        return self.linear(torch.cat([angles.sin(), angles.cos()], dim=1).to(self.linear.weight.dtype))
