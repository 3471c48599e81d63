"""Noise schedules: how much signal and how much noise a state holds at time t.

    x_t = alpha(t) x_0 + sigma(t) eps,    eps ~ N(0, I)

`lam(t) = log(alpha / sigma)` is half the log-SNR, the variable of the DPM-Solver family.

Probability-flow ODE solvers work in *straight coordinates* (z, u): where the denoiser D is constant,
z moves on a straight line in u, and for every schedule

    z = x / scale(t),    dz/du = (z - D) / u.

For VP and VE, scale = alpha and u = sigma / alpha, so dz/du is eps (DDIM, Eq. 14; EDM, Sec. 4).
For flow matching, scale = 1 and u = t, so dz/du = eps - x_0 is the velocity, finite at pure noise.

All functions take t as a number or tensor and compute in float64 on t's device.
"""

import functools
import math
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

import torch
from torch import Tensor

from students.errors import unknown


def _float64(t) -> Tensor:
    return torch.as_tensor(t, dtype=torch.float64)


def _remembered(coefficient: Callable) -> Callable:
    """A coefficient computed once for each time: samplers ask for the same few over and over.

    Only for single times in inference mode; elsewhere a time may carry a derivative. Each call gives a tensor of its
    own, as a solver may change it in place.
    """

    @functools.lru_cache(maxsize=4096)
    def known(schedule, t: float) -> float:
        return coefficient(schedule, t).item()

    @functools.wraps(coefficient)
    def value(schedule, t) -> Tensor:
        if torch.is_inference_mode_enabled() and torch.is_tensor(t) and t.ndim == 0 and t.device.type == "cpu":
            with suppress(RuntimeError):  # under vmap a time has no value of its own
                return torch.tensor(known(schedule, t.item()), dtype=torch.float64)
        return coefficient(schedule, t)

    return value


@dataclass(frozen=True)
class Schedule:
    """Base class. `t_max` is the noise end, where sampling starts; `t_min` the data end, where it stops."""

    t_min: float
    t_max: float

    def alpha(self, t) -> Tensor:
        raise NotImplementedError

    def sigma(self, t) -> Tensor:
        raise NotImplementedError

    def time(self, lam) -> Tensor:
        """The inverse of `lam`: the time at which log(alpha / sigma) has the given value."""
        raise NotImplementedError

    def lam(self, t) -> Tensor:
        """log(alpha / sigma), half the log-SNR; infinite where alpha or sigma is zero."""
        return self.alpha(t).log() - self.sigma(t).log()

    def scale(self, t) -> Tensor:
        return self.alpha(t)

    def u(self, t) -> Tensor:
        return self.sigma(t) / self.alpha(t)

    def time_of_u(self, u) -> Tensor:
        """The inverse of `u`."""
        return self.time(-_float64(u).log())

    def rounded(self, times: Tensor) -> Tensor:
        """The nearest of the times that a network has seen: all of them, unless a schedule says otherwise."""
        return times


@dataclass(frozen=True)
class VPLinear(Schedule):
    """Variance preserving with linear beta(t) (Song et al. 2021 [2011.13456], App. C; DDPM's in continuous time).

    log alpha(t) = -t^2 (beta_max - beta_min) / 4 - t beta_min / 2
    """

    t_min: float = 1e-3
    t_max: float = 1.0
    beta_min: float = 0.1
    beta_max: float = 20.0

    def log_alpha(self, t) -> Tensor:
        t = _float64(t)
        return -(t**2) * (self.beta_max - self.beta_min) / 4 - t * self.beta_min / 2

    @_remembered
    def alpha(self, t) -> Tensor:
        return self.log_alpha(t).exp()

    @_remembered
    def sigma(self, t) -> Tensor:
        return (-torch.expm1(2 * self.log_alpha(t))).sqrt()

    def time(self, lam) -> Tensor:
        minus_two_log_alpha = torch.nn.functional.softplus(-2 * _float64(lam))
        slope = self.beta_max - self.beta_min
        return 2 * minus_two_log_alpha / (self.beta_min + (self.beta_min**2 + 2 * slope * minus_two_log_alpha).sqrt())


@dataclass(frozen=True)
class VPCosine(Schedule):
    """Variance preserving, alpha = cos(pi t / 2), sigma = sin(pi t / 2) (Salimans & Ho 2022 [2202.00512]).

    `t_max` is where the log-SNR is -20, the paper's clip.
    """

    t_min: float = 1e-3
    t_max: float = 2 / math.pi * math.atan(math.exp(10))

    @_remembered
    def alpha(self, t) -> Tensor:
        return torch.cos(math.pi / 2 * _float64(t))

    @_remembered
    def sigma(self, t) -> Tensor:
        return torch.sin(math.pi / 2 * _float64(t))

    def time(self, lam) -> Tensor:
        return 2 / math.pi * torch.atan(torch.exp(-_float64(lam)))


@dataclass(frozen=True)
class VE(Schedule):
    """Variance exploding in EDM's form, alpha = 1, sigma = t (Karras et al. 2022 [2206.00364], Table 1)."""

    t_min: float = 0.002
    t_max: float = 80.0

    def alpha(self, t) -> Tensor:
        return torch.ones_like(_float64(t))

    def sigma(self, t) -> Tensor:
        return _float64(t)

    def time(self, lam) -> Tensor:
        return torch.exp(-_float64(lam))


@functools.cache
def iddpm_levels() -> Tensor:
    """(M,) the noise levels u_{M-1} ... u_0 of iDDPM's networks, increasing (EDM [2206.00364], Table 1).

    u_{j-1}^2 + 1 = (u_j^2 + 1) / max(a_{j-1} / a_j, C_1), u_M = 0, a_j = sin^2(pi / 2 j / (M (C_2 + 1))), with
    M = 1000, C_1 = 0.001, C_2 = 0.008.
    """
    a = torch.sin(math.pi / 2 * torch.arange(1001, dtype=torch.float64) / (1000 * 1.008)) ** 2
    ratios = (a[:-1] / a[1:]).clamp(min=0.001).flip(0)
    return (1 / ratios.cumprod(0) - 1).sqrt()


@dataclass(frozen=True)
class IDDPM(VE):
    """VE for networks that have seen `iddpm_levels` alone; from the least of them to the one nearest to EDM's 80."""

    t_min: float = iddpm_levels()[0].item()
    t_max: float = iddpm_levels()[(iddpm_levels() - 80).abs().argmin()].item()

    @staticmethod
    def nearest(sigma: Tensor) -> Tensor:
        """The index in `iddpm_levels` of the level nearest to sigma."""
        levels = iddpm_levels().to(sigma.device)
        return torch.searchsorted((levels[1:] + levels[:-1]) / 2, sigma.contiguous())

    def rounded(self, times: Tensor) -> Tensor:
        return iddpm_levels()[self.nearest(times)]


@dataclass(frozen=True)
class Flow(Schedule):
    """Rectified flow, x_t = (1 - t) x_0 + t eps (Liu et al. 2022 [2209.03003]); alpha is exactly 0 at t = 1."""

    t_min: float = 1e-3
    t_max: float = 1.0

    def alpha(self, t) -> Tensor:
        return 1 - _float64(t)

    def sigma(self, t) -> Tensor:
        return _float64(t)

    def time(self, lam) -> Tensor:
        return torch.sigmoid(-_float64(lam))

    def scale(self, t) -> Tensor:
        return torch.ones_like(_float64(t))

    def u(self, t) -> Tensor:
        return _float64(t)

    def time_of_u(self, u) -> Tensor:
        return _float64(u)


SCHEDULES = {"vp_linear": VPLinear, "vp_cosine": VPCosine, "ve": VE, "flow": Flow}


def schedule_name(schedule: Schedule) -> str:
    """The name in SCHEDULES of a schedule's kind; raises FewstepError for one that is not there."""
    for name, kind in SCHEDULES.items():
        if type(schedule) is kind:
            return name
    raise unknown("schedule", type(schedule).__name__, SCHEDULES)


def make_schedule(name: str, **arguments) -> Schedule:
    """A schedule by its name in SCHEDULES; raises FewstepError for an unknown one."""
    if name not in SCHEDULES:
        raise unknown("schedule", name, SCHEDULES)
    return SCHEDULES[name](**arguments)
