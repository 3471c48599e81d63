"""What a distillation method is: the networks it trains, what an update minimises, how the result samples.

Everything that is the same for all methods lies elsewhere: the loop (students/training/loop.py), noise-image pairs
(students/training/pairs.py), and the command that joins them (students/training/distill.py).

Methods work in VE coordinates, x_t = x_0 + sigma_t eps, in which a denoiser of any schedule can be read (`under`), and
where the probability-flow ODE is dx/dsigma = (x - D(x, sigma)) / sigma.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from students.base import Student
from students.diffusion.denoiser import Denoiser, expand, under
from students.diffusion.grids import make_grid, polynomial
from students.diffusion.schedules import VE
from students.errors import FewstepError, unknown
from students.training.ema import EMA

DATA, PAIRS, NOISE = "data", "pairs", "noise"


@dataclass(frozen=True)
class Batch:
    """What an update sees, N rows.

    noise: (N, *shape) standard normal; of a pair, that which its image was made of. labels: (N,) classes, or None.
    x0: (N, *shape) images, None for a data-free method. path: (N, M, *shape), for pairs with the states between, in
    VE coordinates from the noise end to the data end.
    """

    noise: Tensor
    labels: Tensor | None = None
    x0: Tensor | None = None
    path: Tensor | None = None


@dataclass(frozen=True)
class Pairs:
    """Which noise-image pairs a method is trained on: `count` of them, made by `solver` in `steps` steps.

    path: how many states of the way are kept, evenly spaced among the steps; 0 for none.
    """

    count: int
    solver: str = "ddim"
    steps: int = 32
    path: int = 0


class Distillation:
    """One method, in one or several stages, each of which trains a model and hands it to the next.

    teacher: the frozen denoiser, in VE coordinates. start: the trainable denoiser that students are copied from, the
        teacher itself or, where that is exact, a network trained for the same. Keyword arguments are the method's own
        options. Raises FewstepError for a teacher that cannot be distilled this way.

    stages: their names; the weights of a stage are `method-stage.safetensors`. shares: of the budget, one a stage.
    source: what batches are made of, DATA, PAIRS or NOISE (data-free). pairs: which, for PAIRS.
    after: the method whose student this one starts from and, for PAIRS, which makes the pairs.
    evaluations: of networks, teacher's and students', an update costs for each image; the plan of a budget.
    budget: evaluations of the training, all stages, relative to those of the teacher's own.
    settings: arguments of the loop (batch_size, lr, ema_decay ...). vector_settings: others, for tasks of vectors.
    ranges: least and largest value of options that are numbers.
    target_decay: of the moving average `self.target` of the model, which a loss may use; None for no such.
    """

    stages: ClassVar[Sequence[str]] = ("",)
    shares: ClassVar[Sequence[float]] = (1.0,)
    source: ClassVar[str] = DATA
    pairs: ClassVar[Pairs | None] = None
    after: ClassVar[str | None] = None
    evaluations: ClassVar[float] = 2
    budget: ClassVar[float] = 1.5
    settings: ClassVar[dict] = {}
    vector_settings: ClassVar[dict] = {}
    target_decay: ClassVar[float | None] = None
    ranges: ClassVar[dict[str, tuple[float, float]]] = {}

    def __init__(self, teacher, start: Denoiser):
        self.levels_of = teacher
        self.teacher, self.start = under(teacher, VE), start

    def prepare(self) -> None:
        """Load what only training needs, such as LPIPS; raises FewstepError if it is not there."""

    def build(self, stage: str, trained: dict[str, nn.Module]) -> nn.Module:
        """The model of a stage before training; `trained` holds those of earlier stages, if they are at hand."""
        return trainable(self.start, VE)

    def begin(self, stage: str, trained: dict[str, nn.Module], steps: int) -> nn.Module:
        """Set `stage`, `model`, `steps` (the updates planned) and `target`, and return the model."""
        self.stage, self.steps = stage, steps
        self.model = self.build(stage, trained)
        self.target_ema = None if self.target_decay is None else EMA(self.model, self.target_decay)
        return self.model

    @property
    def target(self) -> nn.Module:
        """The moving average of the model."""
        return self.target_ema.module

    def loss(self, batch: Batch, step: int, generator: torch.Generator) -> Tensor:
        """What update `step` minimises: a mean over the batch. All randomness is drawn from `generator`."""
        raise NotImplementedError

    def student(self, trained: dict[str, nn.Module]) -> Student:
        """How the models of the stages that are there sample."""
        raise NotImplementedError

    def networks(self) -> list[nn.Module]:
        """The modules whose calls are the student's evaluations in training."""
        return [self.model] if self.target_ema is None else [self.model, self.target]

    def report(self, model: nn.Module) -> dict:
        """Further numbers about a trained model, for its record."""
        return {}

    def edm_weight(self, sigma: Tensor) -> Tensor:
        """(N,) EDM's lambda = (sigma^2 + d^2) / (sigma d)^2 in float32, d = sigma_data (EDM [2206.00364], Table 1)."""
        data = self.start.sigma_data
        return ((sigma**2 + data**2) / (sigma * data) ** 2).float()

    def sigmas(self, n: int) -> Tensor:
        """(n + 1,) noise levels of the teacher's own grid, decreasing, float64."""
        denoiser = self.levels_of
        times = make_grid(getattr(denoiser, "grid", "log_snr"), denoiser.schedule, n)
        return denoiser.schedule.u(times)

    def karras(self, n: int) -> Tensor:
        """(n,) noise levels of EDM's polynomial grid, decreasing, float64."""
        schedule = self.teacher.schedule
        return polynomial(schedule, n - 1, schedule.t_max, schedule.t_min)


def trainable(denoiser: Denoiser, kind=None, dropout: bool = False, **changes) -> Denoiser:
    """A copy to be trained, under a schedule of another `kind` if one is given; `changes` set its attributes.

    dropout: keep the network's dropout, for methods that learn from data; what learns from a teacher needs none.
    """
    copied = copy.deepcopy(denoiser if kind is None else under(denoiser, kind)).requires_grad_(True).train()
    for module in copied.modules():
        if isinstance(module, nn.Dropout) and not dropout:
            module.p = 0.0
    for name, value in changes.items():
        setattr(copied, name, value)
    return copied


def with_numbers(denoiser: Denoiser, n: int) -> Denoiser:
    """The denoiser, its network given room for n further inputs; raises FewstepError where it has none to give."""
    if not hasattr(denoiser.network, "take_numbers"):
        raise FewstepError(f"{type(denoiser.network).__name__} takes no further inputs: start from a UNet or an MLP")
    if denoiser.network.numbers is None:
        denoiser.network.take_numbers(n)
        denoiser.network.numbers.to(next(denoiser.network.parameters()).device)
    return denoiser


def jump(x: Tensor, x0: Tensor, s: Tensor, t: Tensor) -> Tensor:
    """DDIM's step from noise level s to t, each 0-d or (N,), in VE coordinates: x0 + t / s (x - x0)."""
    return x0 + expand(t / s, x) * (x - x0)


def heun_jump(denoise, x: Tensor, s: Tensor, t: Tensor, labels: Tensor | None) -> Tensor:
    """Heun's step from noise level s to t, each (N,), in VE coordinates (EDM [2206.00364], Alg. 1)."""
    slope = (x - denoise(x, s, labels)) / expand(s, x)
    there = x + expand(t - s, x) * slope
    slope_there = (there - denoise(there, t, labels)) / expand(t, x)
    return x + expand((t - s) / 2, x) * (slope + slope_there)


def squared(a: Tensor, b: Tensor) -> Tensor:
    """(N,) mean squared differences."""
    return (a - b).square().flatten(1).mean(1)


def absolute(a: Tensor, b: Tensor) -> Tensor:
    """(N,) mean absolute differences."""
    return (a - b).abs().flatten(1).mean(1)


def pseudo_huber(a: Tensor, b: Tensor) -> Tensor:
    """(N,) sqrt(|a - b|^2 + c^2) - c with c = 0.00054 sqrt(D) (iCT [2310.14189], Sec. 3.3)."""
    difference = (a - b).flatten(1)
    c = 0.00054 * difference.shape[1] ** 0.5
    return (difference.square().sum(1) + c**2).sqrt() - c


DISTANCES = {"l1": absolute, "l2": squared, "pseudo_huber": pseudo_huber}


def distance(name: str, shape: Sequence[int], device) -> Callable[[Tensor, Tensor], Tensor]:
    """(N,) distances of two batches: "l1", "l2" (means), "pseudo_huber", or "lpips" for colour images.

    Raises FewstepError for another name, and for LPIPS where it cannot be had: nothing takes its place silently.
    """
    if name in DISTANCES:
        return DISTANCES[name]
    if name != "lpips":
        raise unknown("distance", name, [*DISTANCES, "lpips"])
    if len(shape) != 3 or shape[0] != 3:
        raise FewstepError(f"LPIPS compares colour images, not {tuple(shape)}: take l2 or pseudo_huber")
    from students.perceptual import load_lpips

    lpips = load_lpips(device)
    return lambda a, b: lpips(a, b).flatten()


def randn(like: Tensor, generator: torch.Generator) -> Tensor:
    """Standard normal noise of the shape, dtype and device of `like`."""
    return torch.randn(like.shape, generator=generator, dtype=like.dtype, device=like.device)


def randint(high: int, n: int, generator: torch.Generator) -> Tensor:
    """(n,) integers from 0 to high - 1, uniform."""
    return torch.randint(high, (n,), generator=generator, device=generator.device)


def log_normal(n: int, mean: float, std: float, schedule: VE, generator: torch.Generator) -> Tensor:
    """(n,) noise levels, float64: log sigma ~ N(mean, std^2), clipped to the schedule's range."""
    z = torch.randn(n, generator=generator, device=generator.device, dtype=torch.float64)
    return (mean + std * z).exp().clamp(schedule.t_min, schedule.t_max)


def untrained(denoiser: Denoiser) -> Denoiser:
    """A copy with parameters drawn anew, for methods that start from scratch, by the global generator."""
    copied = trainable(denoiser, dropout=True)
    copied.apply(lambda module: module.reset_parameters() if hasattr(module, "reset_parameters") else None)
    return copied


def tangent(f: Callable, at: tuple[Tensor, ...], along: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
    """f(*at), and its derivative in the direction `along`, in forward mode."""
    with sdpa_kernel(SDPBackend.MATH):  # the fused kernels of attention have no forward-mode derivative
        return torch.func.jvp(f, at, along)
