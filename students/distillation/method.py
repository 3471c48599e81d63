"""What a distillation method is: the networks it trains, what an update minimises, how the result samples.

Everything that is the same for all methods lies elsewhere: the loop (students/training/loop.py), batches and
noise-image pairs (batches.py, pairs.py), and the command that joins them (distill.py).

Methods work in VE coordinates, x_t = x_0 + sigma_t eps, in which a denoiser of any schedule can be read (`under`), and
where the probability-flow ODE is dx/dsigma = (x - D(x, sigma)) / sigma.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from students.diffusion.denoiser import Denoiser, under
from students.diffusion.grids import make_grid, polynomial
from students.diffusion.schedules import VE
from students.distillation.functions import LPIPS
from students.errors import FewstepError
from students.models.teacher import Teacher
from students.networks import build_network
from students.networks.network import as_network
from students.samplers import Sampler
from students.training.batches import DATA, NOISE, Batch
from students.training.ema import EMA
from students.training.players import Player

FIRST = 5.0  # in units of sigma_data, the level of the noise that generators make images of


@dataclass(frozen=True)
class Pairs:
    """Which noise-image pairs a method is trained on: `count` of them, made by `solver` in `steps` steps.

    path: how many states of the way are kept, evenly spaced among the steps; 0 for none.
    """

    count: int
    solver: str = "ddim"
    steps: int = 32
    path: int = 0


@dataclass(frozen=True)
class NoOptions:
    """The options of a method that has none."""


class Distillation:
    """One method, in one or several stages, each of which trains a model and hands it to the next.

    teacher: what is distilled. start: the trainable denoiser that students are copied from, the teacher itself or,
        where that is exact, a network trained for the same. options: an instance of the class' `Options`.
        Raises FewstepError for a teacher that cannot be distilled this way.

    Options: a frozen dataclass, the method's own options with types, ranges and defaults (students/options.py).
    needs: what a batch carries, of NOISE, DATA and PAIRS. pairs: which pairs.
    stages: their names; the weights of a stage are `method-stage.safetensors`. shares: of the updates, one a stage.
    passing: stages whose model only serves later ones: it is neither sampled from nor stored.
    after: the method whose student this one starts from and, for PAIRS, which makes the pairs.
    evaluations: of networks, all players' and the teacher's, that an update of the student costs for each image, and
        opponent_evaluations: a step of its opponents; the plan of a budget.
    budget: evaluations of the training, all stages, relative to those of the teacher's own. vector_budget: another, for
        tasks of vectors, whose networks are small.
    settings: of the student as a player, and the batch size. vector_settings: others, for tasks of vectors.
    target_decay: of the moving average `self.target` of the model, which a loss may use; None for no such.
    """

    Options: ClassVar[type] = NoOptions
    needs: frozenset | set = frozenset({NOISE, DATA})
    pairs: Pairs | None = None
    stages: ClassVar[Sequence[str]] = ("",)
    shares: ClassVar[Sequence[float]] = (1.0,)
    passing: ClassVar[Sequence[str]] = ()
    after: ClassVar[str | None] = None
    evaluations: float = 2
    opponent_evaluations: float = 0
    budget: ClassVar[float] = 1.5
    vector_budget: ClassVar[float | None] = None
    settings: ClassVar[dict] = {}
    vector_settings: ClassVar[dict] = {}
    target_decay: ClassVar[float | None] = None
    model: Any

    def __init__(self, teacher: Teacher, start: Denoiser, options=None):
        self.source, self.start = teacher, start
        self.teacher = under(teacher.denoiser, VE)
        self.options = self.Options() if options is None else options

    def prepare(self) -> None:
        """Load what only training needs, such as LPIPS; raises FewstepError if it is not there."""

    def build(self, stage: str, trained: dict[str, nn.Module]) -> nn.Module:
        """The model of a stage before training; `trained` holds those of earlier stages, if they are at hand."""
        return trainable(self.start, VE)

    def before(self, stage: str, trained: dict[str, nn.Module]) -> Any:
        """The model of the latest stage before this one that is at hand, or None."""
        earlier = [trained[name] for name in self.stages[: self.stages.index(stage)] if name in trained]
        return earlier[-1] if earlier else None

    def begin(self, stage: str, trained: dict[str, nn.Module], steps: int) -> nn.Module:
        """Set `stage`, `model`, `steps` (the updates planned) and `target`, and return the model."""
        self.stage, self.steps = stage, steps
        self.model = self.build(stage, trained)
        self.target_ema = None if self.target_decay is None else EMA(self.model, self.target_decay)
        return self.model

    @property
    def target(self) -> Any:
        """The moving average of the model."""
        return self.target_ema.module  # type: ignore[union-attr]

    def loss(self, batch: Batch, step: int, generator: torch.Generator) -> Tensor | dict[str, Tensor]:
        """What the student's update of a step minimises: a mean over the batch, or named terms, which are added.

        All randomness is drawn from `generator`.
        """
        raise NotImplementedError

    def opponents(self) -> dict[str, Player]:
        """The other players by name, such as a fake score or a discriminator, for the stage that has begun.

        The `loss(batch, step, generator)` of each is like the student's, on a batch of its own. They move before the
        student does.
        """
        return {}

    def sampled(self, model: nn.Module) -> nn.Module:
        """What of a trained model is stored and samples."""
        return model

    def sampler(self, model: nn.Module) -> Sampler:
        """How what `sampled` returns samples."""
        raise NotImplementedError

    def teachers(self) -> list[nn.Module]:
        """The modules whose calls are the teacher's evaluations in training."""
        return [self.teacher]

    def networks(self) -> list[nn.Module]:
        """The modules whose calls are the student's evaluations in training."""
        return [self.model] if self.target_ema is None else [self.model, self.target]

    def feature_spaces(self) -> list[str]:
        """The feature spaces in which the student is trained, where it is not to be ranked."""
        return [LPIPS] if getattr(self.options, "distance", None) == LPIPS else []

    def report(self, model: nn.Module) -> dict:
        """Further numbers about a trained model, for its record."""
        return {}

    def edm_weight(self, sigma: Tensor) -> Tensor:
        """(N,) EDM's lambda = (sigma^2 + d^2) / (sigma d)^2 in float32, d = sigma_data (EDM [2206.00364], Table 1)."""
        data = self.start.sigma_data
        return ((sigma**2 + data**2) / (sigma * data) ** 2).float()

    def sigmas(self, n: int) -> Tensor:
        """(n + 1,) noise levels of the teacher's own grid, decreasing, float64."""
        return self.source.schedule.u(make_grid(self.source.grid, self.source.schedule, n))

    @property
    def noisiest(self) -> float:
        """FIRST sigma_data, SiD's 2.5 at sigma_data = 0.5, where the generators of part C start.

        There the teacher's estimates already differ with the noise, while at its noisiest level they are all one mean.
        """
        return FIRST * self.start.sigma_data

    def visits(self, n: int) -> Tensor:
        """(n + 1,) levels from `noisiest` to the data end on EDM's polynomial grid, decreasing, float64."""
        return polynomial(self.teacher.schedule, n, self.noisiest, self.teacher.schedule.t_min)

    def karras(self, n: int) -> Tensor:
        """(n,) noise levels of EDM's polynomial grid, decreasing, float64."""
        schedule = self.teacher.schedule
        return polynomial(schedule, n - 1, schedule.t_max, schedule.t_min)


def trainable(denoiser: Denoiser, kind=None, extra: int = 0, prediction=None) -> Denoiser:
    """A copy to be trained, under a schedule of another `kind` if one is given, with another `prediction` likewise.

    Without dropout, which only the student that is trained has (`Settings.dropout`).
    extra: how many extra inputs its network is given room for. Raises FewstepError where it has none to give.
    """
    copied = copy.deepcopy(denoiser if kind is None else under(denoiser, kind)).requires_grad_(True).train()
    network = as_network(copied.network)
    network.set_dropout(0.0)
    if extra:
        network.add_extra(extra)
    copied.prediction = prediction or copied.prediction
    return copied


def untrained(denoiser: Denoiser, extra: int = 0) -> Denoiser:
    """The same denoiser with parameters drawn anew by the global generator, for methods that start from scratch.

    Without dropout, as `trainable`.
    """
    fresh = copy.copy(denoiser)
    fresh._modules = dict(denoiser._modules)
    device = next(denoiser.parameters()).device
    fresh.network = build_network(as_network(denoiser.network).config).to(device).train()
    fresh.network.set_dropout(0.0)  # type: ignore[operator]
    if extra:
        fresh.network.add_extra(extra)  # type: ignore[operator]
    return fresh


def needs_guidance(name: str, teacher: Teacher) -> None:
    """Raise FewstepError unless the teacher knows classes and the absence of one."""
    if teacher.classes is None:
        raise FewstepError(
            f"{name} distils classifier-free guidance, which an unconditional teacher has not: "
            "take a class-conditional one, trained with label dropout"
        )
    if not teacher.has_no_class:
        raise FewstepError(f"{name} distils classifier-free guidance: this teacher was trained without label dropout")
