"""What every network can be asked for, so that nothing outside of a network looks inside it."""

import json
from collections.abc import Iterator
from typing import ClassVar, NoReturn, TypeVar

import torch
from torch import Tensor, nn

from students.errors import FewstepError
from students.networks.embedding import ExtraEmbedding
from students.networks.temporal import TemporalConvolution, TemporalLayer

Module = TypeVar("Module", bound=nn.Module)


def plain(arguments: dict) -> dict:
    """The arguments of an `__init__`, its `locals()`, as plain JSON."""
    given = {name: value for name, value in arguments.items() if name not in ("self", "__class__")}
    return json.loads(json.dumps(given))


class Network(nn.Module):
    """`network(x, t, condition=None, extra=None, return_features=False)` -> a tensor of the shape of x.

    x: (N, *shape). t: (N,), what the network is told of the noise level, such as log(sigma) / 4 (EDM [2206.00364],
    Table 1). condition: (N,) int64 classes, `classes` for "no class"; None for no class in the whole batch.
    extra: (N, n) further inputs of order one, such as a guidance scale or a second time, once `add_extra` has made
    room for n of them. With return_features, the result is (output, features): hidden tensors (N, C, ...), the deepest
    first, the last one what the last layer takes.

    A subclass hands the arguments of its `__init__`, `locals()`, to this one, which keeps them for `config`. It
    implements `forward` and `last_layer`; it sets `emb_channels`, adds its extra inputs by `add_to_embedding`, and
    names its residual blocks in `residual_blocks`, if extra inputs and several states are to be possible.

    kind: the network's name in students.networks.NETWORKS. classes: their number, or None. extra: how many extra inputs
    there are. states: (M, modes) after `add_states`, or None. patch: the side of the squares of pixels of x that one
    position of the last features stands for. emb_channels: width of the embedding that extra inputs are added to.
    scale: what t is multiplied by before its sines and cosines are taken, whose frequencies are then of order one.
    """

    kind: ClassVar[str | None] = None
    classes: int | None = None
    patch: int = 1
    emb_channels: int | None = None
    scale: float = 1.0

    def __init__(self, arguments: dict):
        super().__init__()
        self.arguments = plain(arguments)
        self.extra = 0
        self.states: tuple[int, int] | None = None
        self.numbers: ExtraEmbedding | None = None  # the name that parameters have in the weights that ship

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        condition: Tensor | None = None,
        extra: Tensor | None = None,
        return_features: bool = False,
    ) -> Tensor | tuple[Tensor, list[Tensor]]:
        raise NotImplementedError

    def features(
        self, x: Tensor, t: Tensor, condition: Tensor | None = None, extra: Tensor | None = None
    ) -> list[Tensor]:
        """The hidden tensors, the deepest first, the last one what the last layer takes; one evaluation."""
        return self(x, t, condition, extra, return_features=True)[1]

    @property
    def last_layer(self) -> nn.Conv2d | nn.Linear:
        """The layer that makes the output, a convolution or a linear map with a `weight`."""
        self._refuse("shows no last layer")

    @property
    def feature_channels(self) -> int:
        """Channels of the last features."""
        return self.last_layer.weight.shape[1]

    @property
    def config(self) -> dict:
        """Plain JSON, of which `students.networks.build_network` makes the same network, untrained."""
        if self.kind is None:
            self._refuse("cannot be built from a config")
        return {"kind": self.kind, **self.arguments, "extra": self.extra, "states": self.states and [*self.states]}

    def add_extra(self, n: int) -> None:
        """Make room for n extra inputs; the output stays what it was until the embedding of them is trained.

        Asking for the same n again changes nothing. Raises FewstepError for another n, and for a network without room.
        """
        if self.emb_channels is None:
            self._refuse("takes no extra inputs")
        if self.extra not in (0, n):
            raise FewstepError(
                f"{type(self).__name__} takes {self.extra} extra inputs already, not {n}: start from its teacher"
            )
        if not self.extra:
            self.numbers = self._like_ours(ExtraEmbedding(n, self.emb_channels))
            self.extra = n

    def add_states(self, states: int, modes: int = 2) -> None:
        """Put a temporal convolution after each residual block, which changes nothing until it is trained.

        A batch is then N * M rows, the M = `states` of a trajectory in a row (students/networks/temporal.py). Asking
        for the same again changes nothing. Raises FewstepError for other numbers, and where there are no such blocks.
        """
        if self.states == (states, modes):
            return
        if self.states is not None:
            raise FewstepError(
                f"{type(self).__name__} has {self.states[0]} states and {self.states[1]} modes already, "
                f"not {states} and {modes}: start from its teacher"
            )
        blocks = list(self.residual_blocks())
        if not blocks:
            self._refuse("has no place for temporal layers")
        for group, name, channels in blocks:
            convolution = self._like_ours(TemporalConvolution(channels, states, modes))
            group[name] = TemporalLayer(group[name], convolution)  # type: ignore[index]
        self.states = states, modes

    def set_dropout(self, p: float) -> None:
        """Drop activations in training with probability p; no effect in a network without dropout."""
        for module in self.modules():
            if isinstance(module, nn.Dropout):
                module.p = p

    def slow_time(self, scale: float) -> None:
        """Multiply t by no more than `scale`, for losses that differentiate by t; the embedding is then another one.

        No effect in a network whose own `scale` is not larger.
        """

    def embed_time(self, t: Tensor) -> Tensor:
        """(N, emb_channels), what of the embedding depends on t alone."""
        self._refuse("embeds no time by itself")

    def residual_blocks(self) -> Iterator[tuple[nn.ModuleList | nn.ModuleDict, int | str, int]]:
        """(container, index or name in it, channels that come out) of each residual block, before `add_states`."""
        return iter(())

    def add_to_embedding(self, emb: Tensor, extra: Tensor | None) -> Tensor:
        """(N, emb_channels) emb, and the embedding of the extra inputs; raises FewstepError for a wrong number."""
        given = 0 if extra is None else extra.shape[1]
        if given != self.extra:
            raise FewstepError(
                f"{type(self).__name__} takes {self.extra} extra inputs, not {given}: call add_extra first"
            )
        return emb + self.numbers(extra) if given else emb  # type: ignore[misc]

    def classes_of(self, condition: Tensor | None, x: Tensor) -> Tensor:
        """(N,) classes; of None, "no class" for each row of x."""
        return x.new_full((len(x),), self.classes, dtype=torch.int64) if condition is None else condition  # type: ignore[arg-type]

    def _like_ours(self, module: Module) -> Module:
        """A new part of the network, on its device and in its dtype."""
        own = next(self.parameters())
        return module.to(own.device, own.dtype)

    def _refuse(self, what: str) -> NoReturn:
        raise FewstepError(f"{type(self).__name__} {what}: start from a network of students/networks that does")


def set_dropout(model: nn.Module, p: float) -> None:
    """`Network.set_dropout` of every network inside of a module."""
    for module in model.modules():
        if isinstance(module, Network):
            module.set_dropout(p)


def as_network(module: nn.Module) -> Network:
    """The module, if it keeps the contract; raises FewstepError for any other."""
    if not isinstance(module, Network):
        raise FewstepError(
            f"{type(module).__name__} is no Network, so nothing is known of its last layer, features and further "
            "inputs: derive it from students.networks.network.Network"
        )
    return module
