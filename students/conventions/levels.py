"""The noise levels of each convention: `NAME(setting, **options) -> levels`, a function for each name of CONVENTIONS.

Levels are sigma / alpha, the sigma of EDM: float64, n + 1 of them, decreasing from the noise end to the data end, the
last one 0 where the convention is `to_zero`. Formulas and constants are those of the authors' code that CONVENTIONS
names. A range that the authors give (80 to 0.002, t from 1 to 1e-3) is narrowed to what the teacher has seen, before
the levels are spaced, as EDM's sampler does; single levels of discrete processes are as they are, and `student.py`
narrows them.
"""

import math
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
from torch import Tensor

from students.diffusion.schedules import VPLinear
from students.errors import FewstepError, UnsupportedSteps
from students.options import Choices, Range

STEPS = 1000  # of the discrete processes
BETAS = {"linear": (1e-4, 0.02), "scaled_linear": (0.00085, 0.012)}  # first and last: DDPM's, Stable Diffusion's
FEW, T_END = 15, (1e-3, 1e-4)  # DPM-Solver's end of t, up to so many evaluations and beyond
EPSILON_S = 1e-3  # least t of diff-sampler's VP process
POINTS = {1: (0, 39), 2: (0, 22, 39)}  # ImageNet-64, distilled
VP = VPLinear()

Positive = Annotated[float, Range(0, open=True)]
BetaNames = Annotated[str, Choices(*BETAS)]


@dataclass(frozen=True)
class Setting:
    """What a list is asked for: n steps, by a solver of so many network evaluations, of a teacher's range of levels.

    orders: of the steps of DPM-Solver-fast, which takes one over several levels; None for other solvers.
    """

    steps: int
    lowest: float
    highest: float
    evaluations: int
    orders: tuple[int, ...] | None = None

    def within(self, sigma_min: float, sigma_max: float) -> tuple[float, float]:
        """The range, narrowed to the teacher's; raises FewstepError where nothing of it is left."""
        low, high = max(sigma_min, self.lowest), min(sigma_max, self.highest)
        if low >= high:
            raise FewstepError(
                f"no noise levels lie between {sigma_min:.4g} and {sigma_max:.4g} and within what the teacher has seen "
                f"({self.lowest:.4g} to {self.highest:.4g}): change the ends"
            )
        return low, high


def _between(start: float, end: float, intervals: int, rho: float = 1.0) -> Tensor:
    """intervals + 1 values from start to end, both exact, even in the rho-th root."""
    fractions = torch.arange(intervals + 1, dtype=torch.float64) / intervals
    try:
        first, last = start ** (1 / rho), end ** (1 / rho)
    except OverflowError as error:
        raise FewstepError(f"rho={rho:g} makes levels that no float holds: take a larger one") from error
    values = (first + fractions * (last - first)) ** rho
    values[0], values[-1] = start, end
    return values


def _to_zero(levels: Tensor) -> Tensor:
    return torch.cat([levels, levels.new_zeros(1)])


def edm(setting: Setting, rho: Positive = 7.0, sigma_min: Positive = 0.002, sigma_max: Positive = 80.0) -> Tensor:
    """sigma_i = (sigma_max^(1/rho) + i / (n - 1) (sigma_min^(1/rho) - sigma_max^(1/rho)))^rho, i < n; sigma_n = 0."""
    low, high = setting.within(sigma_min, sigma_max)
    return _to_zero(_between(high, low, setting.steps - 1, rho))


def diff_sampler_polynomial(
    setting: Setting, rho: Positive = 7.0, sigma_min: Positive = 0.002, sigma_max: Positive = 80.0
) -> Tensor:
    """EDM's formula over n intervals, without the step to 0. diff-sampler's num_steps is n + 1."""
    low, high = setting.within(sigma_min, sigma_max)
    return _between(high, low, setting.steps, rho)


def diff_sampler_logsnr(setting: Setting, sigma_min: Positive = 0.002, sigma_max: Positive = 80.0) -> Tensor:
    """Even in log sigma."""
    low, high = setting.within(sigma_min, sigma_max)
    return _between(math.log(high), math.log(low), setting.steps).exp()


def diff_sampler_time_uniform(
    setting: Setting, rho: Positive = 2.0, sigma_min: Positive = 0.002, sigma_max: Positive = 80.0
) -> Tensor:
    """t_i even in t^(1/rho) from 1 to 1e-3; sigma(t)^2 = exp(beta_d t^2 / 2 + beta_min t) - 1.

    beta_d and beta_min are such that sigma(1) = sigma_max and sigma(1e-3) = sigma_min. rho = 2 is the authors' choice
    for DEIS.
    """
    low, high = (math.log1p(sigma**2) for sigma in setting.within(sigma_min, sigma_max))
    beta_d = 2 * (low / EPSILON_S - high) / (EPSILON_S - 1)
    beta_min = high - beta_d / 2
    t = _between(1.0, EPSILON_S, setting.steps, rho)
    return torch.expm1(beta_d * t**2 / 2 + beta_min * t).sqrt()


def _alphas_bar(betas: str, zero_snr: bool = False) -> np.ndarray:
    """(1000,) alpha_bar_k; `zero_snr` rescales to none at the last step ([2305.08891], Alg. 1)."""
    first, last = BETAS[betas]
    power = 2 if betas == "scaled_linear" else 1
    beta = np.linspace(first ** (1 / power), last ** (1 / power), STEPS) ** power
    alphas_bar = np.cumprod(1 - beta)
    if zero_snr:
        root = np.sqrt(alphas_bar)
        alphas_bar = ((root - root[-1]) * root[0] / (root[0] - root[-1])) ** 2
    return alphas_bar


def _discrete(setting: Setting, steps, alphas_bar: np.ndarray) -> Tensor:
    """sigma / alpha = sqrt(1 / alpha_bar - 1) at steps of the process, the last one first, and 0."""
    with np.errstate(divide="ignore"):
        levels = np.sqrt((1 - alphas_bar[steps]) / alphas_bar[steps])
    return _to_zero(torch.from_numpy(levels))


def diff_sampler_discrete(setting: Setting, rho: Positive = 1.0, betas: BetaNames = "scaled_linear") -> Tensor:
    """t_i = (t_max + i / n (t_min^(1/rho) - t_max))^rho, with log alpha(t) linear between the steps t = (k + 1) / 1000.

    The range is that of the discrete process; rho = 1 is the authors' choice.
    """
    log_alpha = np.log(_alphas_bar(betas)) / 2
    t = np.arange(1, STEPS + 1) / STEPS
    low, high = setting.within(*(math.sqrt(math.expm1(-2 * log_alpha[k])) for k in (0, -1)))
    t_min, t_max = (np.interp(math.log1p(sigma**2) / 2, -log_alpha, t) for sigma in (low, high))
    at = (t_max + np.arange(setting.steps + 1) / setting.steps * (t_min ** (1 / rho) - t_max)) ** rho
    return torch.from_numpy(np.sqrt(np.expm1(-2 * np.interp(at, t, log_alpha))))


def _vp_ends(setting: Setting, t_end: float | None) -> tuple[float, float]:
    """First and last t of Song's VP process (beta 0.1 to 20), from 1 to t_end."""
    end = t_end or T_END[setting.evaluations > FEW]
    low, high = setting.within(float(VP.u(end)), float(VP.u(1.0)))
    return float(VP.time_of_u(high)), float(VP.time_of_u(low))


EndOfTime = Annotated[float | None, Range(0, 0.5, open=True)]


def dpm_solver_logsnr(setting: Setting, t_end: EndOfTime = None) -> Tensor:
    """Even in lambda. The steps of DPM-Solver-fast are equally long, whatever their order."""
    start, end = (-float(VP.lam(t)) for t in _vp_ends(setting, t_end))
    if setting.orders is None:
        return _between(start, end, setting.steps).exp()
    places = [i + k / order for i, order in enumerate(setting.orders) for k in range(order)]
    fractions = torch.tensor([*places, len(setting.orders)], dtype=torch.float64) / len(setting.orders)
    return (start + fractions * (end - start)).exp()


def dpm_solver_time_uniform(setting: Setting, t_end: EndOfTime = None) -> Tensor:
    """Even in t."""
    return VP.u(_between(*_vp_ends(setting, t_end), setting.steps))


def dpm_solver_time_quadratic(setting: Setting, t_end: EndOfTime = None) -> Tensor:
    """Even in sqrt(t)."""
    return VP.u(_between(*_vp_ends(setting, t_end), setting.steps, rho=2))


def ddim_linear(setting: Setting) -> Tensor:
    """Steps k (n - 1) ... k, 0 with k = floor(1000 / n).

    Raises UnsupportedSteps where the authors' range(0, 1000, k) has not n entries.
    """
    steps = range(0, STEPS, STEPS // setting.steps)
    if len(steps) != setting.steps:
        raise UnsupportedSteps(
            f"every {STEPS // setting.steps}-th of {STEPS} steps are {len(steps)}, not {setting.steps}: take a divisor "
            f"of {STEPS}, or convention=leading"
        )
    return _discrete(setting, steps[::-1], _alphas_bar("linear"))


def ddim_quadratic(setting: Setting) -> Tensor:
    """Steps floor(s^2), s even from sqrt(800) to 0. From 30 steps on the least of them come twice."""
    steps = (np.linspace(0, np.sqrt(STEPS * 0.8), setting.steps) ** 2).astype(int)
    return _discrete(setting, steps[::-1], _alphas_bar("linear"))


def leading(setting: Setting, zero_snr: bool = False, betas: BetaNames = "linear") -> Tensor:
    """Steps k (n - 1) ... k, 0 with k = floor(1000 / n)."""
    steps = np.arange(setting.steps) * (STEPS // setting.steps)
    return _discrete(setting, steps[::-1], _alphas_bar(betas, zero_snr))


def trailing(setting: Setting, zero_snr: bool = False, betas: BetaNames = "linear") -> Tensor:
    """Steps round(1000 - i 1000 / n) - 1."""
    steps = np.round(STEPS - np.arange(setting.steps) * STEPS / setting.steps).astype(int) - 1
    return _discrete(setting, steps, _alphas_bar(betas, zero_snr))


def linspace(setting: Setting, zero_snr: bool = False, betas: BetaNames = "linear") -> Tensor:
    """n steps, rounded, even from 999 to 0."""
    steps = np.round(np.linspace(0, STEPS - 1, setting.steps)).astype(int)
    return _discrete(setting, steps[::-1], _alphas_bar(betas, zero_snr))


def cm(setting: Setting, points: list | None = None, of: Annotated[int, Range(2)] = 40) -> Tensor:
    """Levels number `points` of EDM's `of`, of which the last is the data end.

    Consistency sampling jumps to the data from each but the last, and adds noise of sqrt(sigma^2 - 0.002^2) for the
    next. By default those of ImageNet-64, distilled: one and two steps. Raises UnsupportedSteps for other step counts.
    """
    if points is None and (of != POINTS[1][-1] + 1 or setting.steps not in POINTS):
        raise UnsupportedSteps(f"no points of {of} are known for {setting.steps} steps: name them, points=[0,22,39]")
    chosen = POINTS[setting.steps] if points is None else points
    whole = all(type(point) is int for point in chosen)
    if not chosen or not whole or sorted(set(chosen)) != [*chosen] or chosen[0] < 0 or chosen[-1] != of - 1:
        raise UnsupportedSteps(f"points are whole numbers that increase, the last {of - 1}, the data end; got {chosen}")
    if len(chosen) != setting.steps + 1:
        raise UnsupportedSteps(f"{len(chosen)} points make {len(chosen) - 1} steps, not {setting.steps}")
    low, high = setting.within(0.002, 80.0)
    return _between(high, low, of - 1, rho=7)[[*chosen]]
