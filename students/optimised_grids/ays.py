"""Align Your Steps: the grid of the least upper bound on a KL divergence (Sabour et al. 2024 [2404.14507]).

One step of stochastic DDIM from noise level b to a < b holds the estimate D(y_b, b) where the reverse SDE has
D(y_t, t). In VE coordinates y = x / alpha with t = sigma / alpha, their divergence is by Girsanov at most (Eq. 10)

    KLUB(a, b) = int_a^b t^-3 E |D(y_t, t) - D(y_b, b)|^2 dt,    y_b = y_t + sqrt(b^2 - t^2) n,

and that of a grid the sum over its steps. It is estimated over forward paths y_t of images: of one path all levels of a
fine geometric scale are asked once, which gives every pair of levels and so every candidate, where the authors draw a
level anew for each. The integral over t is taken by importance (Sec. 3.3): the ratio of the integrand to that of
Gaussian data of deviation c = 0.5, t^-3 (1 / (t^2 + c^2) - 1 / (b^2 + c^2)), is interpolated between levels, and the
mass of the latter is exact. The images are the teacher's own, as a checkpoint comes without its data.

As in the paper, ten steps begin as EDM's; each inner level in turn takes the best of eleven candidates between its
neighbours (Alg. 1), until a sweep over all no longer brings ten DDIM steps closer to the fine solution: the bound is
one on paths, and its minimum is not that of the error at their end (App. A.3). Two subdivisions follow, whose new
levels alone move, and other step counts interpolate the 40 steps log-linearly.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from students.diffusion.grids import LAM_CLIP, make_grid
from students.optimised_grids.source import Found, Source, Trajectory
from students.solvers.euler import ddim

IMAGES = 256
INTERVALS = 160  # of the fine scale
STEPS, SUBDIVISIONS, CANDIDATES, MOST_SWEEPS = 10, 2, 11, 30
C = 0.5
MOST_STEPS = STEPS * 2**SUBDIVISIONS


class Solution(NamedTuple):
    """Where the fine solution of a batch starts and ends."""

    denoise: Callable[..., Tensor]
    start: Tensor
    end: Tensor


def find(source: Source, steps: Iterable[int]) -> Found:
    """The grid of each step count, up to MOST_STEPS."""
    levels = fine_levels(source.schedule)
    changes, solutions = np.zeros((len(levels), len(levels))), []
    for trajectory in source.trajectories():
        clean = trajectory.states[-1] / source.schedule.alpha(trajectory.times[-1])
        changes += squared_changes(forward_estimates(trajectory, clean, levels)).cpu().numpy()
        solutions.append(Solution(trajectory.denoise, trajectory.states[0].clone(), trajectory.states[-1].clone()))
    bounds = upper_bounds(levels, changes / len(source.seeds))
    first = [int(i) for i in nearest(levels, _edm(source.schedule, STEPS))]
    points, sweeps = optimise(first, bounds, lambda points: _distance(source, solutions, levels[points]))
    for left in reversed(range(SUBDIVISIONS)):
        points = subdivide(points, bounds, 2**left)
    settings = {
        "images": len(source.seeds),
        "levels": len(levels),
        "sweeps": sweeps,
        "bound": {"EDM": _total(first, bounds), "AYS": _total(points[:: 2**SUBDIVISIONS], bounds)},
    }
    return Found({n: times_of(source.schedule, levels[points], n) for n in steps}, settings)


def fine_levels(schedule) -> np.ndarray:
    """(INTERVALS + 1,) noise levels sigma / alpha, decreasing geometrically from the noise end to the data end."""
    start, end = schedule.lam([schedule.t_max, schedule.t_min]).clamp(-LAM_CLIP, LAM_CLIP).tolist()
    return np.exp(-np.linspace(start, end, INTERVALS + 1))


def _edm(schedule, n: int) -> np.ndarray:
    times = make_grid("polynomial", schedule, n)
    return np.exp(-schedule.lam(times).clamp(-LAM_CLIP, LAM_CLIP).numpy())


def nearest(levels: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """The index of the level nearest to each one wanted, in the logarithm."""
    return abs(np.log(levels)[:, None] - np.log(wanted)).argmin(0)


def forward_estimates(trajectory: Trajectory, clean: Tensor, levels: np.ndarray) -> Tensor:
    """(F, N, D) float64: the denoiser's estimates along one forward path of each image (N, *shape)."""
    schedule, y, below, estimates = trajectory.denoise.schedule, clean.double(), 0.0, []
    for level in reversed(levels.tolist()):
        y = y + math.sqrt(level**2 - below**2) * trajectory.noise()
        t = schedule.time(torch.tensor(-math.log(level), dtype=torch.float64))
        estimates.append(trajectory.denoise((schedule.alpha(t) * y).to(clean), t).flatten(1).double())
        below = level
    return torch.stack(estimates[::-1])


def squared_changes(estimates: Tensor) -> Tensor:
    """(F, F): |D_i - D_j|^2 between levels, summed over images, of estimates (F, N, D)."""
    rows = estimates.flatten(1)
    products = rows @ rows.T
    squares = products.diagonal()
    return (squares[:, None] + squares - 2 * products).clamp(min=0)


def upper_bounds(levels: np.ndarray, changes: np.ndarray, c: float = C) -> np.ndarray:
    """(F, F): at [i, j], i < j, KLUB(levels[j], levels[i]); zero elsewhere.

    changes: (F, F), E |D_i - D_j|^2. levels: (F,), decreasing.
    """
    bounds = np.zeros_like(changes)
    inverse = 1 / (levels**2 + c**2)
    # antiderivatives of t^-3 / (t^2 + c^2) and of t^-3
    mixed = -1 / (2 * c**2 * levels**2) + np.log1p(c**2 / levels**2) / (2 * c**4)
    cubic = -1 / (2 * levels**2)
    for i in range(len(levels) - 1):
        ratio = changes[i, i + 1 :] / (inverse[i + 1 :] - inverse[i])
        mass = -np.diff(mixed[i:]) + inverse[i] * np.diff(cubic[i:])
        between = np.concatenate([ratio[:1], (ratio[1:] + ratio[:-1]) / 2])  # at the level itself it is 0 / 0
        bounds[i, i + 1 :] = np.cumsum(mass * between)
    return bounds


def _total(points: Sequence[int], bounds: np.ndarray) -> float:
    return float(sum(bounds[i, j] for i, j in pairwise(points)))


def improve(points: Sequence[int], movable: Iterable[int], bounds: np.ndarray, gap: int) -> list[int]:
    """One sweep: each movable index takes the best of its candidates, which stay `gap` from its neighbours.

    The present value is a candidate, so the bound never rises.
    """
    points = list(points)
    for k in movable:
        above, below = points[k - 1], points[k + 1]
        spread = np.linspace(above + gap, below - gap, CANDIDATES).round().astype(int).tolist()
        candidates = [points[k], *(j for j in spread if above + gap <= j <= below - gap)]
        points[k] = min(candidates, key=lambda j: bounds[above, j] + bounds[j, below])
    return points


def optimise(points: Sequence[int], bounds: np.ndarray, error) -> tuple[list[int], int]:
    """Sweeps over all inner points until one changes nothing or makes `error(points)` no less; and their number."""
    best, least = list(points), error(points)
    for sweeps in range(MOST_SWEEPS):
        points = improve(best, range(1, len(best) - 1), bounds, 2**SUBDIVISIONS)
        if points == best or (now := error(points)) >= least:
            return best, sweeps
        best, least = points, now
    return best, MOST_SWEEPS


def subdivide(points: Sequence[int], bounds: np.ndarray, gap: int) -> list[int]:
    """Twice the steps: a new point in the middle of each, log-linearly; these then move until none does.

    gap: between neighbours afterwards; before, it was twice that.
    """
    middles = [(i + j) // 2 for i, j in pairwise(points)]
    points = [*(point for pair in zip(points, middles, strict=False) for point in pair), points[-1]]
    while (moved := improve(points, range(1, len(points), 2), bounds, gap)) != points:
        points = moved
    return points


def times_of(schedule, levels: np.ndarray, n: int) -> list[float]:
    """n + 1 times, by log-linear interpolation of a grid's levels; the ends are the schedule's."""
    places = np.linspace(0, len(levels) - 1, n + 1)
    lam = -np.interp(places, np.arange(len(levels)), np.log(levels))
    times = schedule.time(torch.from_numpy(lam)).tolist()
    return [schedule.t_max, *times[1:-1], schedule.t_min]


def _distance(source: Source, solutions: Sequence[Solution], levels: np.ndarray) -> float:
    """The mean distance of DDIM's images on a grid from the fine solution's."""
    times = torch.tensor(times_of(source.schedule, levels, len(levels) - 1), dtype=torch.float64)
    distances = [
        (ddim(solution.denoise, solution.start, times) - solution.end).flatten(1).norm(dim=1) for solution in solutions
    ]
    return torch.cat(distances).mean().item()
