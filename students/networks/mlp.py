"""A multilayer perceptron for vectors, conditioned like the U-Net: for tasks in the plane."""

from collections.abc import Iterator

from torch import Tensor, nn

from students.networks.embedding import ExtraEmbedding
from students.networks.network import Network


class MLP(Network):
    """Residual layers on x (N, D), each shifted by the embedding of t, class and extra inputs. t is of order one."""

    kind = "mlp"

    def __init__(self, shape: tuple[int], width: int = 64, layers: int = 3, classes: int | None = None):
        super().__init__(locals())
        self.classes, self.emb_channels = classes, width
        self.inner = nn.Linear(shape[0], width)
        self.condition = ExtraEmbedding(1, width)  # of t; this is its name in the weights that ship
        self.label = None if classes is None else nn.Embedding(classes + 1, width)
        self.layers = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
            for _ in range(layers)
        )
        self.outer = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, shape[0]))
        nn.init.normal_(self.condition.linear.weight, std=0.1)

    @property
    def last_layer(self) -> nn.Linear:
        return self.outer[1]  # type: ignore[return-value]

    def residual_blocks(self) -> Iterator[tuple[nn.ModuleList, int, int]]:
        return ((self.layers, i, self.emb_channels) for i in range(len(self.layers)))  # type: ignore[misc]

    def forward(self, x, t, condition=None, extra=None, return_features=False):
        emb = self.condition(t[:, None])
        if self.label is not None:
            emb = emb + self.label(self.classes_of(condition, x))
        emb = self.add_to_embedding(emb, extra)
        hidden: list[Tensor] = [self.inner(x)]
        for layer in self.layers:
            hidden.append(hidden[-1] + layer(hidden[-1] + emb))
        last = self.outer[0](hidden[-1])
        out = self.last_layer(last)
        return (out, [*hidden[1:-1], last]) if return_features else out
