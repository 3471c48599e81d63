"""A multilayer perceptron for vectors, conditioned like the U-Net: for tasks in the plane."""

import torch
from torch import Tensor, nn

from students.networks.embedding import NumberEmbedding


class MLP(nn.Module):
    """`network(x, condition, labels, numbers)` on x (N, D): residual layers, each shifted by the embedded conditions.

    condition: (N,), of order one. classes: None or their number; label `classes`, or no labels, means "no class".
    numbers: (N, n) further inputs, once `take_numbers` has made room for them.
    """

    def __init__(self, shape: tuple[int], width: int = 64, layers: int = 3, classes: int | None = None):
        super().__init__()
        self.classes = classes
        self.inner = nn.Linear(shape[0], width)
        self.condition = NumberEmbedding(1, width)
        self.label = None if classes is None else nn.Embedding(classes + 1, width)
        self.numbers = None
        self.layers = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
            for _ in range(layers)
        )
        self.outer = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, shape[0]))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.normal_(self.condition.linear.weight, std=0.1)

    @property
    def last_layer(self) -> nn.Module:
        return self.outer[-1]

    def take_numbers(self, n: int) -> None:
        """Make room for n further inputs, such as a guidance scale or a second time; the output stays what it was."""
        self.numbers = NumberEmbedding(n, self.inner.out_features)

    def forward(
        self, x: Tensor, condition: Tensor, labels: Tensor | None = None, numbers: Tensor | None = None
    ) -> Tensor:
        embedding = self.condition(condition[:, None].to(x))
        if self.label is not None:
            none = torch.full((len(x),), self.classes, device=x.device)
            embedding = embedding + self.label(none if labels is None else labels)
        if self.numbers is not None:
            embedding = embedding + self.numbers(numbers.to(x))
        h = self.inner(x)
        for layer in self.layers:
            h = h + layer(h + embedding)
        return self.outer(h)
