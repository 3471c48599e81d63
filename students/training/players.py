"""Players: the networks that a training trains, each with a loss and an optimiser of its own.

Most methods have one, the student. Score distillation adds a fake score, an adversarial method a discriminator; all
take turns in one loop (loop.py), each seeing the others as they are.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from torch import Tensor, nn

from students.training.ema import EMA

STUDENT = "student"
Loss = Callable[..., Tensor | dict[str, Tensor]]


@dataclass
class Player:
    """A module that is trained.

    loss(generator, step): the mean loss of a fresh batch, a tensor or named terms, which are added; all randomness is
        drawn from the generator (dropout uses the global one). That of a method's opponent is given a batch first,
        loss(batch, step, generator).
    lr: the peak of a linear warm-up over `warmup` steps and half a cosine to zero. betas, weight_decay: of AdamW.
    clip: the largest norm of a gradient. every: the player is updated in one of so many steps, the first included.
    ema_decay: of the average that is kept of it, which is what the training returns; None for none.
    averages: further moving averages, which a loss uses as its target; updated with the player and stored with it.
    """

    module: nn.Module
    loss: Loss
    lr: float
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = 0.0
    clip: float = 1.0
    warmup: int = 200
    every: int = 1
    ema_decay: float | None = None
    averages: dict[str, EMA] = field(default_factory=dict)


@contextmanager
def others_fixed(parameters: Mapping[str, Sequence[nn.Parameter]], name: str) -> Iterator[None]:
    """Within, gradients go to the parameters of one player only; parameters: by player, those that are trained."""
    fixed = [p for owner, own in parameters.items() if owner != name for p in own]
    for parameter in fixed:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in fixed:
            parameter.requires_grad_(True)
