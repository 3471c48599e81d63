"""What adversarial methods share: losses of both sides, R1, and the discriminator as the student's opponent."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import relu, softplus

from students.diffusion.denoiser import expand
from students.diffusion.schedules import VE
from students.distillation.functions import randint
from students.distillation.method import Distillation, trainable
from students.options import Range
from students.samplers import Sampler
from students.training.batches import Batch
from students.training.players import Player

DISCRIMINATOR = "discriminator"
BETAS, WARMUP = (0.0, 0.99), 20  # of the discriminator, which is to be ahead of the student

VECTOR_RATE, IMAGE_RATE = 4e-3, 1e-3
AT_NOISE = 0.5  # share of the rows that start from the first level


@dataclass(frozen=True)
class Game:
    """The two losses of logits of any shape: `discriminator(real, fake)`, and `generator(fake)`."""

    discriminator: Callable[[Tensor, Tensor], Tensor]
    generator: Callable[[Tensor], Tensor]


# -log sigmoid(real) - log(1 - sigmoid(fake)); -log sigmoid(fake) (Goodfellow et al. 2014 [1406.2661])
NON_SATURATING = Game(
    lambda real, fake: softplus(-real).mean() + softplus(fake).mean(), lambda fake: softplus(-fake).mean()
)
# max(0, 1 - real) + max(0, 1 + fake); -fake (Lim & Ye 2017 [1705.02894])
HINGE = Game(lambda real, fake: relu(1 - real).mean() + relu(1 + fake).mean(), lambda fake: -fake.mean())
# (real - 1)^2 + (fake + 1)^2; (fake - 1)^2 (Mao et al. 2017 [1611.04076])
LEAST_SQUARES = Game(
    lambda real, fake: (real - 1).square().mean() + (fake + 1).square().mean(), lambda fake: (fake - 1).square().mean()
)


def r1_penalty(logits: Tensor, inputs: Tensor | Sequence[Tensor]) -> Tensor:
    """E |gradient of the logits by the inputs|^2, taken at data (Mescheder et al. 2018 [1801.04406]).

    logits: (N, ...), of which a row's mean is taken, as in the losses; it depends on that row of the inputs, (N, ...)
    each, alone.
    """
    inputs = [inputs] if torch.is_tensor(inputs) else list(inputs)
    means = logits.reshape(len(logits), -1).mean(1)
    gradients = torch.autograd.grad(means.sum(), inputs, create_graph=True)
    return sum(gradient.square().flatten(1).sum(1) for gradient in gradients).mean()  # type: ignore[union-attr]


def opponent(critic: nn.Module, loss: Callable, lr: float | None = None, every: int = 1) -> dict[str, Player]:
    """A discriminator as the one opponent of a student; lr by default VECTOR_RATE or IMAGE_RATE."""
    vectors = not any(isinstance(module, nn.Conv2d) for module in critic.modules())
    rate = lr or (VECTOR_RATE if vectors else IMAGE_RATE)
    return {DISCRIMINATOR: Player(critic, loss, rate, BETAS, warmup=WARMUP, every=every)}


def judged(game: Game, real: Tensor, fake: Tensor, inputs: Tensor | Sequence[Tensor], r1: float) -> dict[str, Tensor]:
    """A discriminator's loss: the game, and r1 / 2 times R1 of the logits of data, which depend on `inputs`."""
    terms = {"game": game.discriminator(real, fake)}
    return terms | ({"r1": r1 / 2 * r1_penalty(real, inputs)} if r1 else {})


def noised(x0: Tensor, levels: Tensor, i: Tensor, noise: Tensor) -> Tensor:
    """x_s (N, ...) at levels number i, (N,), of a path; at the first nothing but noise, as where sampling starts."""
    return expand(i > 0, x0) * x0 + expand(levels[i], x0) * noise


class Adversarial(Distillation):
    """A student whose opponent, a discriminator, learns to tell what it makes from data.

    Options r1: the weight of R1 / 2 in the discriminator's loss, 0 for none, by default that of the class, for vectors
    its `vector_r1`. discriminator_lr, discriminator_every: of that player (students/training/players.py), the rate by
    default VECTOR_RATE or IMAGE_RATE.
    A student that starts as the teacher moves slowly, so that the discriminator keeps up: on the digits, after a third
    of the training, add has half of the distance at 5e-5 that it has at 5e-4, ddgan a twentieth.
    visited: the steps of the path whose levels it is trained at; sampling visits all of them, every second or fourth.
    A step of the discriminator costs three evaluations: it sees as many samples, which the student makes, as data.
    """

    @dataclass(frozen=True)
    class Options:
        r1: Annotated[float, Range(0, 1e6)] | None = None
        discriminator_lr: Annotated[float, Range(0, 1, open=True)] | None = None
        discriminator_every: Annotated[int, Range(1, 1000)] = 1

    game: Game = NON_SATURATING
    r1: ClassVar[float] = 1.0
    vector_r1: ClassVar[float] = 20.0
    visited: ClassVar[int] = 4
    evaluations = 2
    budget = 1.0
    vector_budget = 3.0
    settings = {"batch_size": 64, "lr": 5e-5, "ema_decay": 0.99}
    vector_settings = {"batch_size": 512, "lr": 7e-4, "ema_decay": 0.98, "warmup": 50}

    def __init__(self, teacher, start, options=None):
        super().__init__(teacher, start, options)
        self.opponent_evaluations = 3 / self.options.discriminator_every

    def build(self, stage, trained):
        self.path = self.visits(self.visited)
        return trainable(self.start, VE)

    def starts(self, n: int, generator: torch.Generator) -> Tensor:
        """(n,) which level of the path a row starts from: half of them from the first, others from any.

        One step of sampling starts there alone, and all it makes is up to the discriminator.
        """
        i = randint(self.visited, n, generator)
        return torch.where(torch.rand(n, generator=generator, device=i.device) < AT_NOISE, 0, i)

    def discriminator(self) -> nn.Module:
        """A new discriminator for the stage that has begun."""
        raise NotImplementedError

    def discriminator_loss(self, batch: Batch, step: int, generator: torch.Generator) -> Tensor | dict[str, Tensor]:
        raise NotImplementedError

    def opponents(self) -> dict[str, Player]:
        self.critic = self.discriminator().to(next(self.model.parameters()).device)
        options = self.options
        return opponent(self.critic, self.discriminator_loss, options.discriminator_lr, options.discriminator_every)

    def judged(self, real: Tensor, fake: Tensor, inputs: Tensor | Sequence[Tensor]) -> dict[str, Tensor]:
        """The discriminator's loss of logits of data and of samples; the data's depend on `inputs`."""
        own = self.vector_r1 if len(self.start.shape) == 1 else self.r1
        return judged(self.game, real, fake, inputs, own if self.options.r1 is None else self.options.r1)

    def levels_of(self, *counts: int) -> dict[str, list[float]]:
        """The levels that so many steps visit, as samplers take them."""
        return {str(n): self.visits(n).tolist() for n in counts}

    def sampler(self, model):
        return Sampler("levels", {"levels": self.levels_of(1, 2, 4), "solver": "consistency"})
