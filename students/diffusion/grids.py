"""Time grids: where the steps of a solver go.

Each grid is a function `(schedule, n_steps, **options) -> times`: a decreasing float64 tensor of
n_steps + 1 times from `schedule.t_max` to `schedule.t_min` (both can be overridden).
"""

import inspect
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from students.diffusion.schedules import Schedule
from students.errors import FewstepError, unknown

LAM_CLIP = 10.0  # log-SNR in [-20, 20], as in Salimans & Ho 2022: flow schedules are infinite at both ends


def _fractions(n_steps: int) -> Tensor:
    return torch.linspace(0, 1, n_steps + 1, dtype=torch.float64)


def _pin_ends(times: Tensor, t_max: float, t_min: float) -> Tensor:
    times[0], times[-1] = t_max, t_min
    return times


def uniform(schedule: Schedule, n_steps: int, t_max: float, t_min: float) -> Tensor:
    """t_i = t_max + i/n (t_min - t_max)"""
    return _pin_ends(t_max + _fractions(n_steps) * (t_min - t_max), t_max, t_min)


def quadratic(schedule: Schedule, n_steps: int, t_max: float, t_min: float) -> Tensor:
    """Uniform in sqrt(t), so that steps are finer near the data (DDIM [2010.02502], App. D.2)."""
    return _pin_ends(_power(t_max, t_min, n_steps, rho=2.0), t_max, t_min)


def log_snr(schedule: Schedule, n_steps: int, t_max: float, t_min: float) -> Tensor:
    """Uniform in lambda = log(alpha / sigma) (DPM-Solver [2206.00927], Sec. 3.4)."""
    start, end = schedule.lam([t_max, t_min]).clamp(-LAM_CLIP, LAM_CLIP)
    return _pin_ends(schedule.time(start + _fractions(n_steps) * (end - start)), t_max, t_min)


def polynomial(schedule: Schedule, n_steps: int, t_max: float, t_min: float, rho: float = 7.0) -> Tensor:
    """v_i = (v_max^(1/rho) + i/n (v_min^(1/rho) - v_max^(1/rho)))^rho for v = sigma / alpha (EDM [2206.00364], Eq. 5).

    EDM's own grid takes one more step, from sigma_min to 0: here the last time is the data end.
    """
    v_max, v_min = torch.exp(-schedule.lam([t_max, t_min]).clamp(-LAM_CLIP, LAM_CLIP))
    return _pin_ends(schedule.time(-_power(v_max, v_min, n_steps, rho).log()), t_max, t_min)


def _power(start, end, n_steps: int, rho: float) -> Tensor:
    """From start to end, uniform in the rho-th root."""
    start, end = start ** (1 / rho), end ** (1 / rho)
    return (start + _fractions(n_steps) * (end - start)) ** rho


GRIDS: dict[str, Callable[..., Tensor]] = {
    "uniform": uniform,
    "quadratic": quadratic,
    "log_snr": log_snr,
    "polynomial": polynomial,
}


def make_grid(
    grid: str | Sequence[float], schedule: Schedule, n_steps: int, t_max=None, t_min=None, **options
) -> Tensor:
    """The times of a named grid, or of a list of n_steps + 1 decreasing times.

    Raises FewstepError for an unknown name or option, a list of another length, or times that do not decrease.
    """
    t_max = schedule.t_max if t_max is None else t_max
    t_min = schedule.t_min if t_min is None else t_min
    if not isinstance(grid, str):
        try:
            times = torch.as_tensor(grid, dtype=torch.float64)
        except (TypeError, ValueError, RuntimeError) as error:
            raise FewstepError(f"a grid is a name or a list of times, not {grid!r}") from error
        if times.ndim != 1:
            raise FewstepError(f"a grid is a name or a list of times, not {grid!r}")
        if len(times) != n_steps + 1:
            raise FewstepError(f"a grid of {len(times)} times makes {len(times) - 1} steps, not {n_steps}")
    elif grid not in GRIDS:
        raise unknown("grid", grid, GRIDS)
    elif surplus := options.keys() - inspect.signature(GRIDS[grid]).parameters.keys():
        raise FewstepError(f"grid {grid!r} takes no option {min(surplus)!r}: leave it out or take another grid")
    else:
        times = schedule.rounded(GRIDS[grid](schedule, n_steps, t_max, t_min, **options))
    if not (times.diff() < 0).all():
        raise FewstepError(f"grid times must decrease strictly, got {[round(t, 6) for t in times.tolist()]}")
    return times
