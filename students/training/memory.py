"""How much memory an update holds, for every device alike: counted from tensors, not measured at an allocator."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from students.training.players import Player, others_fixed

MOMENTS = 2  # tensors that AdamW keeps for a parameter


def held(players: dict[str, Player], others: Iterable[nn.Module], generator: torch.Generator) -> int:
    """The bytes that a step of all players holds at its fullest, when the loss of one is about to be differentiated.

    Weights of all networks (`others`: those that nobody trains, such as the teacher), for what is trained a gradient,
    AdamW's moments and the moving averages, and, of the player with the most, what is kept for the backward pass.
    """
    networks = [*(player.module for player in players.values()), *others]
    weights = {id(p): p for module in networks for p in module.parameters()}
    own = {name: [p for p in player.module.parameters() if p.requires_grad] for name, player in players.items()}
    kept = sum(_bytes(trained) for trained in own.values()) * (1 + MOMENTS)
    kept += sum(_bytes(module.parameters()) for module in averages(players))
    graphs = []
    for name, player in players.items():
        with others_fixed(own, name):
            graphs.append(_graph(player.loss, generator, weights.values()))
    return _bytes(weights.values()) + kept + max(graphs)


def averages(players: dict[str, Player]) -> list[nn.Module]:
    """A module of the size of each moving average."""
    found = [average.module for player in players.values() for average in player.averages.values()]
    return found + [player.module for player in players.values() if player.ema_decay is not None]


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _graph(loss: Callable, generator: torch.Generator, weights: Iterable[Tensor]) -> int:
    """The bytes that autograd keeps of a loss, each storage once and weights not at all."""
    own = {tensor.untyped_storage().data_ptr() for tensor in weights}
    seen: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            seen[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        found = loss(generator, 0)
    del found
    return sum(seen.values())
