"""A denoiser is a network read as an estimate of the clean image: D(x_t, t) ~ E[x_0 | x_t].

Anything callable as `denoise(x, t, condition=None) -> x0` with a `.schedule` is one. `Denoiser` makes one of
a network by its parameterisation; `guided` mixes two evaluations of one into a third.
"""

import copy
import math
from collections.abc import Callable
from dataclasses import asdict
from typing import Self

import torch
from torch import Tensor, nn

from students.diffusion.preconditioning import CONSISTENCY, EDM, PRECONDITIONINGS
from students.diffusion.schedules import Schedule, make_schedule, schedule_name
from students.errors import FewstepError, unknown


def expand(coefficient: Tensor, x: Tensor) -> Tensor:
    """A 0-d or (N,) coefficient in a shape and dtype that multiplies x of shape (N, ...).

    A 0-d one stays on its device: from the CPU it multiplies a tensor on a GPU as a number, without a transfer.
    """
    if coefficient.ndim == 0:
        return coefficient.to(x.dtype)
    return coefficient.to(x).reshape(-1, *[1] * (x.ndim - 1))


# What the network's output F means: (F, x, alpha, sigma) -> x0, with x = alpha x0 + sigma eps.
PREDICTIONS: dict[str, Callable[..., Tensor]] = {
    "x0": lambda f, x, alpha, sigma: f,
    "eps": lambda f, x, alpha, sigma: (x - sigma * f) / alpha,
    # v = alpha eps - sigma x0 (Salimans & Ho 2022, App. D); the denominator is 1 for a VP schedule
    "v": lambda f, x, alpha, sigma: (alpha * x - sigma * f) / (alpha**2 + sigma**2),
    # the velocity eps - x0 of rectified flow
    "flow": lambda f, x, alpha, sigma: (x - sigma * f) / (alpha + sigma),
}


class Denoiser(nn.Module):
    """A network, a noise schedule and a parameterisation.

    network: called as `network(x, t)` or, with `classes`, `network(x, t, condition)`, where the class `classes` stands
        for "no class"; see students/networks/network.py for the contract of those that students are distilled from.
    prediction: one of PREDICTIONS, "x0", "eps", "v", "flow", whose network is told t; or one of PRECONDITIONINGS, such
        as "edm" and "consistency", whose network is told of sigma / alpha and sees x in VE coordinates.
    shape: of one sample, without the batch. classes: how many, or None.
    The network runs on x in the dtype of its parameters and is told the time in float32 or better (bfloat16 cannot
    tell near noise levels apart); the result comes back in the dtype of x.
    """

    def __init__(
        self,
        network: nn.Module,
        schedule: Schedule,
        prediction: str,
        shape: tuple[int, ...],
        classes: int | None = None,
        sigma_data: float = 0.5,
    ):
        super().__init__()
        if prediction not in (*PREDICTIONS, *PRECONDITIONINGS):
            raise unknown("prediction", prediction, [*PREDICTIONS, *PRECONDITIONINGS])
        self.network = network
        self.schedule = schedule
        self.prediction = prediction
        self.shape = tuple(shape)
        self.classes = classes
        self.sigma_data = sigma_data

    def forward(self, x: Tensor, t: Tensor, condition: Tensor | None = None, extra: Tensor | None = None) -> Tensor:
        """x0 (N, *shape) of x (N, *shape) at t, 0-d or (N,).

        condition: (N,) int64 classes, `classes` for none, or None for none at all. extra: (N, n) for networks with
        extra conditioning, such as a guidance scale or a second time.
        """
        scaled, told, read = self._preconditioned(x, t)
        return read(self.evaluate(scaled, told, condition, extra))

    def with_features(self, x: Tensor, t: Tensor, condition: Tensor | None = None) -> tuple[Tensor, list[Tensor]]:
        """x0, and the hidden states of the network that lead to it (`Network.features`), in one evaluation."""
        scaled, told, read = self._preconditioned(x, t)
        f, hidden = self.network(*self._inputs(scaled, told, condition), return_features=True)
        return read(f.to(x.dtype)), hidden

    def evaluate(self, x: Tensor, t: Tensor, condition: Tensor | None = None, extra: Tensor | None = None) -> Tensor:
        """The raw network output (N, *shape); t, 0-d or (N,), is what the network is told of the time."""
        named = {} if extra is None else {"extra": extra.to(x.device, self._precise)}
        return self.network(*self._inputs(x, t, condition), **named).to(x.dtype)

    def _preconditioned(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Callable[[Tensor], Tensor]]:
        """What the network sees of x, what it is told of t, and how its output is read as x0."""
        t = torch.as_tensor(t, dtype=torch.float64)
        if t.ndim:
            t = t.to(x.device)
        alpha, sigma = self.schedule.alpha(t), self.schedule.sigma(t)
        if self.prediction in PREDICTIONS:
            return x, t, lambda f: PREDICTIONS[self.prediction](f, x, expand(alpha, x), expand(sigma, x))
        sigma = sigma / alpha
        c_skip, c_out, c_in, told = PRECONDITIONINGS[self.prediction](sigma, self.sigma_min, self.sigma_data)
        scaled = x * expand(c_in / alpha, x)
        return scaled, told, lambda f: expand(c_skip / alpha, x) * x + expand(c_out, x) * f

    def _inputs(self, x: Tensor, t: Tensor, condition: Tensor | None) -> list[Tensor]:
        if t.ndim == 0:
            t = x.new_empty(len(x), dtype=self._precise).fill_(t)
        inputs = [x.to(self._dtype), t.to(x.device, self._precise)]
        if self.classes is not None:
            classes = x.new_full((len(x),), self.classes, dtype=torch.int64) if condition is None else condition
            inputs.append(classes)
        return inputs

    @property
    def _dtype(self) -> torch.dtype:
        return next(self.network.parameters()).dtype

    @property
    def _precise(self) -> torch.dtype:
        return torch.promote_types(self._dtype, torch.float32)

    @property
    def sigma_min(self) -> float:
        """sigma / alpha at the data end of the schedule."""
        return math.exp(-self.schedule.lam(self.schedule.t_min))

    def record(self) -> dict:
        """What `from_record` builds an untrained one like this from, as plain JSON."""
        return {
            "network": self.network.config,
            "schedule": {"kind": schedule_name(self.schedule), **asdict(self.schedule)},
            "prediction": self.prediction,
            "shape": list(self.shape),
            "classes": self.classes,
            "sigma_data": self.sigma_data,
        }

    @classmethod
    def from_record(cls, record: dict) -> Self:
        """Build what `record` describes, its weights still to be loaded; raises FewstepError for an unknown kind."""
        from students.networks import build_network

        values = {key: value for key, value in record["schedule"].items() if key != "kind"}
        schedule = make_schedule(record["schedule"]["kind"], **values)
        rest = {key: record[key] for key in ("prediction", "shape", "classes", "sigma_data")}
        return cls(build_network(record["network"]), schedule, **rest)


def unconditional(denoiser: Denoiser) -> Denoiser:
    """The "no class" side of a class-conditional denoiser; it shares the parameters."""
    view = copy.copy(denoiser)
    view.classes = None
    return view


def under(denoiser, kind: type[Schedule]):
    """The same denoiser read under a schedule of another kind, over the same range of sigma / alpha.

    At equal sigma / alpha two schedules' states differ by a factor alone, which an exact denoiser and an "edm" network
    take out themselves. The copy shares its parameters with the original. Raises FewstepError for other networks.
    """
    if getattr(denoiser, "prediction", EDM) not in (EDM, CONSISTENCY):
        raise FewstepError(
            f"a {denoiser.prediction!r} network knows one schedule only, this needs {kind.__name__}: "
            "take a teacher with EDM's preconditioning"
        )
    schedule, other = denoiser.schedule, kind()  # type: ignore[call-arg]
    t_min, t_max = other.time(schedule.lam([schedule.t_min, schedule.t_max])).tolist()
    view = copy.copy(denoiser)
    view.schedule = kind(t_min=t_min, t_max=t_max)
    return view


def guided(denoise, condition: Tensor | None, scale: float | Tensor):
    """Classifier-free guidance, eps_u + w (eps_c - eps_u), written for x0 [2207.12598].

    x0 is affine in eps at fixed x and t, so the same mixture holds for both. w = 1 is the plain
    conditional denoiser at one evaluation; any other w costs two, in one batch of 2N. A tensor of scales has a shape
    that multiplies x. `.rows(index)` is the same for a part of the batch, with that part's conditions.
    """

    def plain(x: Tensor, t: Tensor) -> Tensor:
        return denoise(x, t, condition)

    def mixed(x: Tensor, t: Tensor) -> Tensor:
        both = torch.cat([torch.full_like(condition, denoise.classes), condition])  # type: ignore[arg-type, list-item]
        times = t.repeat(2) if t.ndim else t
        without, with_class = denoise(torch.cat([x, x]), times, both).chunk(2)
        return without + scale * (with_class - without)

    result = mixed if torch.is_tensor(scale) or scale != 1 else plain
    result.schedule = denoise.schedule  # type: ignore[attr-defined]
    result.rows = lambda index: guided(denoise, None if condition is None else condition[index], scale)  # type: ignore[attr-defined]
    return result
